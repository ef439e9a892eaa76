"""Imports run one way: the table says which package may import which, and a module of the library nothing else."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = {"data", "models", "metrics"}
MAY_IMPORT = {
    "data": set(),
    "models": set(),
    "metrics": set(),
    "labels": {"data"},
    "sources": {"data"},
    "objectives": {"models", "metrics"},
    "embeddings": CORE,
    "regression": {"data", "metrics"},
    "simulation": {"data", "metrics", "labels"},
    "training": CORE | {"objectives", "embeddings", "recipes"},
    "baselines": CORE | {"objectives", "regression"},
    "finetuning": CORE | {"labels", "objectives", "regression", "training"},
    "plots": {"metrics", "training"},
    "evaluation": CORE
    | {"labels", "objectives", "embeddings", "simulation", "training", "baselines", "finetuning", "plots"},
    "probing": CORE | {"labels", "objectives", "embeddings", "regression", "training", "finetuning", "evaluation"},
    "exploration": CORE | {"labels", "embeddings", "regression", "training", "evaluation"},
    "interpret": CORE | {"objectives", "simulation", "training", "finetuning", "evaluation"},
    "report": CORE | {"embeddings", "training", "evaluation", "exploration", "plots"},
    "publishing": CORE | {"objectives", "training", "evaluation"},
    "benchmarks": CORE | {"objectives", "embeddings", "training", "workflows"},
    "recipes": set(),
}
DOOR = {f"workflows/{name}.py" for name in ("pretrain", "finetune", "load")}
DOOR |= {"training/pretraining.py", "finetuning/setup.py"}
MAY_IMPORT["workflows"] = set(MAY_IMPORT) - {
    "publishing",
    "probing",
    "interpret",
    "simulation",
    "baselines",
    "benchmarks",
}
NEVER = {"behrt_jax": ("configs", "experiments", "tests", "pickle"), "experiments": ("tests", "pickle")}


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


def sources(place: str) -> list[Path]:
    files = sorted((ROOT / place).rglob("*.py"))
    assert files
    return files


def test_a_raw_config_stops_at_the_door():
    """Below these modules, sections of a recipe travel; what a run is, is a field of its recipe."""
    for file in sources("behrt_jax"):
        name = str(file.relative_to(ROOT / "behrt_jax"))
        if not name.startswith("recipes/"):
            assert name in DOOR or not offences(file.read_text(), file, ("ml_collections",)), file
            assert ".unlocked()" not in file.read_text(), file


def test_every_package_is_in_the_table():
    folders = {file.parent.name for file in (ROOT / "behrt_jax").glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT)
    assert [file.name for file in (ROOT / "behrt_jax").glob("*.py")] == ["__init__.py"]


def test_the_table_has_no_circle():
    for package, allowed in MAY_IMPORT.items():
        assert not {name for name in allowed if package in MAY_IMPORT[name]}, package


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_what_the_table_allows(package):
    others = set(MAY_IMPORT) - MAY_IMPORT[package] - {package}
    for file in sources(f"behrt_jax/{package}"):
        assert not offences(file.read_text(), file, tuple(f"behrt_jax.{name}" for name in others)), file


@pytest.mark.parametrize("place", NEVER)
def test_the_library_knows_no_command_and_nothing_pickles(place):
    for file in sources(place):
        assert not offences(file.read_text(), file, NEVER[place]), file


def test_commands_import_the_library_and_no_other_command():
    for file in sources("experiments"):
        own = {name for name in imported(file.read_text(), file) if name.startswith("experiments.")}
        studies = ("experiments.studies",) if "studies" in file.parts else ()
        allowed = ("experiments._cli", *studies)
        assert all(name.startswith(allowed) for name in own), (file, own)


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


def lines_of(place: str, pattern: str) -> dict[str, int]:
    return {str(file.relative_to(ROOT)): file.read_text().count("\n") for file in (ROOT / place).glob(pattern)}


def code_lines(file: Path) -> int:
    """Lines without blank ones, comments and docstrings."""
    source, docs = file.read_text(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docs.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(source.splitlines(), start=1)
    return sum(number not in docs and line.strip()[:1] not in ("", "#") for number, line in lines)


def test_files_and_functions_stay_short():
    limits = {("experiments", "[a-z]*.py"): 80, ("experiments/studies", "*.py"): 150, ("behrt_jax", "**/*.py"): 400}
    for (place, pattern), most in limits.items():
        found = lines_of(place, pattern)
        assert found and not {name: lines for name, lines in found.items() if lines > most}
    for file in (*sources("behrt_jax"), *sources("experiments")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{file}: {node.name}"


def test_packages_stay_small():
    core = ("data", "models", "objectives", "training")
    assert sum(code_lines(file) for name in core for file in sources(f"behrt_jax/{name}")) <= 6000
    for name in set(MAY_IMPORT) - {*core}:
        assert sum(lines_of(f"behrt_jax/{name}", "**/*.py").values()) <= 1500, name
