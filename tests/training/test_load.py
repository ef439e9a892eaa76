"""Loading where researchers load: in notebooks, in threads, on other devices, without the commands or the data."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import behrt_jax
from behrt_jax.data import dataset
from behrt_jax.data.prepare import prepare
from behrt_jax.training import pretraining, workdir
from behrt_jax.training.checkpoints import Checkpoints
from behrt_jax.training.state import TrainState
from tests.training.test_workdir import config, run_of, vocabulary

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "pretrained" / "synthea-small"
DIGEST = """
import sys, jax, behrt_jax

def digest():
    found = behrt_jax.load(sys.argv[1])
    print(jax.device_count(), sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(found.params)))
"""
PLAIN = DIGEST + "digest()"
IN_A_LOOP = (
    DIGEST
    + """
import asyncio

async def cell():
    digest()

asyncio.run(cell())
"""
)
IN_A_THREAD = (
    DIGEST
    + """
import threading

thread = threading.Thread(target=digest)
thread.start()
thread.join()
"""
)
SAVE = "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; from tests.training import test_load; "


SAVE += "test_load.save_tiny(Path(sys.argv[1])); import jax; print(jax.device_count())"


def save_tiny(folder: Path) -> None:
    """Writes a workdir of a tiny model with its parameters alone."""
    recipe, facts = run_of(config())
    workdir.open_workdir(folder, recipe, facts, vocabulary())
    model = workdir.build_model(recipe.model, recipe.objective)
    params = jax.jit(functools.partial(workdir.initialize, model))(jax.random.key(0))
    checkpoints = Checkpoints(folder / workdir.CHECKPOINTS, workdir.TUNING_LOSS)
    checkpoints.save(TrainState(jax.numpy.int32(3), params, None), {workdir.TUNING_LOSS: 1.5})
    checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_tiny(folder)
    return folder


def python(code: str, *arguments, where: Path, devices: int = 1, path: Path = ROOT) -> str:
    """Runs Python elsewhere, with a folder on its path and a number of devices; returns what it prints."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "PYTHONPATH": str(path), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_alone_loads_elsewhere_and_imports_no_command(saved, tmp_path):
    package = tmp_path / "site"
    package.mkdir()
    (package / "behrt_jax").symlink_to(ROOT / "behrt_jax")
    code = PLAIN + "; behrt_jax.counterfactuals.remove_code, behrt_jax.attribution.occlusion"
    code += "; print({name.split('.')[0] for name in sys.modules} & {'experiments', 'configs', 'tests'})"
    printed = python(code, saved, where=tmp_path, path=package).splitlines()
    assert printed[0].startswith("1 ") and printed[1] == "set()"


@pytest.mark.slow
def test_it_loads_on_another_number_of_devices(saved, tmp_path):
    expected = sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(behrt_jax.load(saved).params))
    count, total = python(PLAIN, saved, where=tmp_path, devices=4).split()
    assert int(count) == 4 and float(total) == pytest.approx(expected, rel=1e-6)
    assert python(SAVE, tmp_path / "run", ROOT, where=tmp_path, devices=4) == "4"
    found = behrt_jax.load(tmp_path / "run")
    assert sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(found.params)) == pytest.approx(expected, rel=1e-6)


# In processes of their own: inside a running loop Orbax 0.11 patches asyncio, and later loops of the process stay open.
@pytest.mark.parametrize(
    "code",
    [
        pytest.param(IN_A_LOOP, id="in a running event loop"),
        pytest.param(IN_A_THREAD, id="in a thread", marks=pytest.mark.slow),
    ],
)
def test_it_loads(saved, tmp_path, code):
    expected = sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(behrt_jax.load(saved).params))
    count, total = python(code, saved, where=tmp_path).split()
    assert count == "1" and float(total) == pytest.approx(expected, rel=1e-6)


def test_parameters_alone_are_not_trained_on(saved):
    checkpoints = Checkpoints(saved / workdir.CHECKPOINTS, workdir.TUNING_LOSS)
    assert checkpoints.best() == (3, {workdir.TUNING_LOSS: 1.5})
    like = TrainState(jax.numpy.int32(0), behrt_jax.load(saved).params, {"m": jax.numpy.zeros(2)})
    with pytest.raises(ValueError, match="none of the checkpoints"):
        checkpoints.restore_newest(like)
    checkpoints.close()


def test_the_shipped_encoder_is_small_and_is_what_its_card_says():
    _, known, _, params = behrt_jax.load(SHIPPED)
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 5e6 and len(files) < 40
    card = (SHIPPED / "README.md").read_text()
    assert re.search(r"encoder of ([\d,]+) parameters", card)[1] == f"{behrt_jax.count_parameters(params):,}"
    assert f"| {len(known):,} |" in card and min(known.patients) >= 5
    assert 'behrt_jax.load("pretrained/synthea-small")' in card


@pytest.mark.current_only
def test_the_shipped_encoder_does_on_tuning_what_it_did_when_it_was_trained(tmp_path):
    found = workdir.load_pretraining(SHIPPED, "shipped")
    checkpoints = Checkpoints(SHIPPED / workdir.CHECKPOINTS, workdir.TUNING_LOSS)
    _, expected = checkpoints.best()
    checkpoints.close()
    data = found.recipe.data
    prepared = prepare(dataclasses.replace(data, path=str(ROOT / data.path), prepared_dir=str(tmp_path)))
    assert prepared.vocabulary.fingerprint == found.vocabulary.fingerprint
    task = pretraining.make_task(found.recipe, found.facts, found.vocabulary)
    tuning = dataset.read(prepared.folder, "tuning")
    scores = pretraining.tuning_scorer(task, tuning)(found.params)
    assert scores == pytest.approx(expected, rel=1e-3)
    shuffled = jax.tree.map(lambda leaf: leaf[::-1], found.params)
    assert pretraining.tuning_scorer(task, tuning)(shuffled)["loss"] > 2 * expected["loss"]
