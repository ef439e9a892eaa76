"""Imports run one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "behrt_jax": ("configs", "experiments", "tests", "pickle"),
    "behrt_jax/data": ("behrt_jax.models", "behrt_jax.objectives", "behrt_jax.train", "behrt_jax.evaluate"),
    "behrt_jax/models": ("behrt_jax.data", "behrt_jax.objectives", "behrt_jax.train", "behrt_jax.evaluate"),
    "behrt_jax/objectives": ("behrt_jax.data", "behrt_jax.train", "behrt_jax.evaluate"),
    "behrt_jax/train.py": ("behrt_jax.data",),
    "behrt_jax/evaluate.py": ("behrt_jax.data",),
    "behrt_jax/metrics.py": ("behrt_jax.data", "behrt_jax.models", "behrt_jax.objectives"),
    "behrt_jax/multilabel.py": ("behrt_jax.data", "behrt_jax.models", "behrt_jax.objectives"),
    "experiments": ("tests", "pickle"),
}


def imported(source: str, file: Path) -> set[str]:
    """Every module that a source names in an import, and each name that could be a module of a package."""
    package = file.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            base = base if node.level else node.module or ""
            found.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
    return found


def offences(source: str, file: Path, forbidden: tuple[str, ...]) -> set[str]:
    return {
        name for name in imported(source, file) if any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
    }


@pytest.mark.parametrize("place", FORBIDDEN)
def test_imports_run_one_way(place):
    target = ROOT / place
    files = sorted(target.rglob("*.py")) if target.is_dir() else [target]
    assert files
    for file in files:
        assert not offences(file.read_text(encoding="utf-8"), file, FORBIDDEN[place]), file


@pytest.mark.parametrize(
    "line",
    [
        "import behrt_jax.models",
        "from behrt_jax import models",
        "from behrt_jax.models.behrt import BEHRT",
        "from .. import models",
        "from ..models import behrt",
        "def inside():\n    from behrt_jax.models import heads",
    ],
)
def test_every_form_of_import_is_seen(line):
    file = ROOT / "behrt_jax" / "data" / "events.py"
    assert offences(line, file, ("behrt_jax.models",))
    assert not offences(line.replace("models", "modelling"), file, ("behrt_jax.models",))
