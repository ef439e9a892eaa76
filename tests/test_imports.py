"""Libraries that take long to import are imported where they are used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import behrt_jax

ROOT = Path(__file__).parents[1]
HEAVY = ("sklearn", "scipy.stats", "scipy.special", "scipy.optimize", "pandas", "matplotlib", "orbax")
HEAVY += ("xgboost", "lifelines", "sksurv", "umap", "torch", "transformers")
MODULES = "import json, sys; print(json.dumps(sorted(sys.modules)))"


@pytest.mark.parametrize(
    ("lines", "others"),
    [
        # All that a recipe needs up to its first step; Orbax comes with the first checkpoint.
        ("from behrt_jax.workflows.pretrain import pretrain; from behrt_jax.recipes import small", ()),
        ("import behrt_jax; behrt_jax.BEHRT; behrt_jax.encode", ("polars", "tensorflow_datasets", "optax")),
    ],
)
def test_a_start_imports_no_heavy_library(lines, others):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", f"{lines}\n{MODULES}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout)
    assert "behrt_jax.models.behrt" in modules
    found = [name for name in (*HEAVY, *others) if name in modules]
    assert not found, f"{', '.join(found)}: imported at the start; import where it is used"


def test_what_is_imported_at_first_use_is_there():
    found = [getattr(behrt_jax, name).__name__ for name in behrt_jax.__all__]
    assert {"behrt_jax.interpret.attribution", "pretrain"} <= set(found)
