"""What is committed of notebooks; that they run is for `python -m pytest --nbmake notebooks`."""

import ast
import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MOST_BYTES = 2_000  # of the outputs of one notebook


def cells(file: Path) -> list[dict]:
    return [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_outputs_are_stripped(file):
    outputs = [cell["outputs"] for cell in cells(file)]
    assert len(json.dumps(outputs)) < MOST_BYTES, "clear its outputs before it is committed"
    assert not any(cell["execution_count"] for cell in cells(file))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_kernel_imports_the_package_and_none_of_the_commands(file):
    lines = ["".join(cell["source"]) for cell in cells(file)]
    tree = ast.parse("\n".join(re.sub(r"(?m)^!", "#", text) for text in lines))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(re.match(r"(experiments|configs|tests)\b", name) for name in names)
    assert any(name.startswith("behrt_jax") for name in names)


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 3
