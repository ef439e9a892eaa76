"""The package is Apache-2.0: nothing that an installation brings may ask more of who passes it on (GPL)."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
COPYLEFT = re.compile(r"(?<![a-z])a?gpl|(?<!lesser )(?<!library or lesser )general public", re.IGNORECASE)
# A longer field is the text of all licences in a wheel: that of SciPy names GCC's runtime, which may be linked freely.
LONGEST_NAME = 200


def requirements(file: str) -> set[str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return {line for line in lines if line and not line.startswith("-")}


def closure(lines: set[str]) -> set[str]:
    """Names what is installed for requirements, their requirements and so on, without extras."""
    found, waiting = set(), [Requirement(line) for line in lines]
    while waiting:
        one = waiting.pop()
        name = one.name.lower().replace("_", "-")
        if name in found or (one.marker and not any(one.marker.evaluate({"extra": e}) for e in one.extras or {""})):
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform or set of versions
        found.add(name)
        waiting += [Requirement(need) for need in needs]
    return found


def licences(name: str) -> list[str]:
    known = importlib.metadata.metadata(name)
    given = [known.get("License-Expression"), known.get("License"), *(known.get_all("Classifier") or [])]
    return [each for each in given if each and len(each) < LONGEST_NAME]


def project() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])


def test_no_hard_requirement_is_under_the_gpl():
    names = closure(project() | requirements("requirements.txt") | requirements("requirements-metal.txt"))
    assert {"jax", "scikit-learn", "scipy", "pyyaml"} < names  # the last of them a requirement of others alone
    found = {name: own for name in names if (own := [each for each in licences(name) if COPYLEFT.search(each)])}
    assert not found


@pytest.mark.parametrize(
    ("text", "copyleft"),
    [
        ("GPL-3.0-or-later", True),
        ("GNU General Public License v3", True),
        ("AGPL-3.0", True),
        ("Apache-2.0", False),
        ("LGPL-2.1", False),
        ("GNU Lesser General Public License v2", False),
        ("License :: OSI Approved :: GNU General Public License v3 (GPLv3)", True),
    ],
)
def test_what_counts_as_gpl(text, copyleft):
    assert bool(COPYLEFT.search(text)) == copyleft
