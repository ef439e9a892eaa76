"""The package as `pip install .` gives it, used from Python in an empty folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.conftest import cut_data_set

ROOT = Path(__file__).parents[1]
USE = """
import behrt_jax
from behrt_jax.recipes import small

assert behrt_jax.__file__.startswith({site!r}) and behrt_jax.__version__ == "0.1.0", behrt_jax.__file__
config = small.get_config()
config.data.path, config.data.min_patients, config.train.num_steps, config.train.evaluate_every = {data!r}, 2, 10, 5
config.model.update(embedding_dim=8, hidden_dim=16, num_layers=1, num_heads=2, feedforward_dim=16)
config.data.row_length, config.train.batch_size, config.evaluation.num_mask_samples = 64, 2, 2
before = config.to_dict()
run = behrt_jax.pretrain(config, "run", baselines=False)
assert run.status == 0 and run.evaluation.own["mlm/loss"]["value"] > 0 and config.to_dict() == before
assert "masked codes" in behrt_jax.evaluate("run", baselines=False).table()
assert len(behrt_jax.load("run").vocabulary) == behrt_jax.load("run").config.model.vocab_size
"""


@pytest.mark.current_only
def test_the_installed_package_pretrains_in_an_empty_folder(tmp_path):
    source, site, work = (tmp_path / name for name in ("source", "site", "work"))
    work.mkdir()
    for folder in ("behrt_jax", "configs"):  # a build leaves files beside its source
        shutil.copytree(ROOT / folder, source / folder, symlinks=True)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", f"--target={site}", str(source)]
    subprocess.run(install, check=True, capture_output=True)
    script = USE.format(site=str(site), data=str(cut_data_set(tmp_path / "meds", skip=0)))
    environment = {**os.environ, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "held_out" in done.stdout
