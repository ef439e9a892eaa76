"""A damaged file of a run or of prepared data is named, passed over or prepared again; nothing else is ever loaded.

The many of docs/reliability.md: pytest -m slow tests/experiments/test_damaged_runs.py
"""

import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import behrt_jax
from behrt_jax.data import dataset, prepare
from behrt_jax.data.config import DataConfig
from behrt_jax.training import config_file, workdir

SOME, MANY = range(12), range(12, 512)


def flip(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def overwrite(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start : start + 64] = rng.randbytes(64)


def damage(folder: Path, rng: random.Random) -> Path:
    """Damages a file below a folder, or removes it; returns which."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    file, how = rng.choice(files), rng.choice((flip, flip, flip, cut, overwrite, None))
    if how is None:
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        how(content, rng)
        file.write_bytes(content)
    return file


@pytest.fixture(scope="module")
def sound(whole, tmp_path_factory):
    """A workdir without what `load` does not read, and the digest of the parameters of each of its checkpoints."""
    folder = tmp_path_factory.mktemp("sound") / "run"
    shutil.copytree(whole[0], folder, ignore=shutil.ignore_patterns("tensorboard", "evaluation.json", "*.jsonl"))
    digests = set()
    for step in (folder / "checkpoints").iterdir():
        alone = shutil.copytree(folder, folder.parent / step.name)
        for other in (alone / "checkpoints").iterdir():
            if other.name != step.name:
                shutil.rmtree(other)
        digests.add(workdir.digest(behrt_jax.load(alone).params))
    assert len(digests) > 1
    return folder, digests


def check_run(sound, tmp_path, seed):
    folder = shutil.copytree(sound[0], tmp_path / "run")
    damaged = damage(folder, random.Random(seed))
    try:
        loaded = behrt_jax.load(folder)
    except ValueError as error:
        assert "\n" not in str(error) and str(folder) in str(error), damaged
        return
    assert workdir.digest(loaded.params) in sound[1], damaged
    assert config_file.read(folder) == config_file.read(sound[0]), damaged
    assert loaded.vocabulary == behrt_jax.load(sound[0]).vocabulary, damaged


def check_prepared(workplace, whole, tmp_path, seed):
    recipe, _ = config_file.read(whole[0])
    original = prepare.prepare(recipe.data)
    config: DataConfig = dataclasses.replace(recipe.data, prepared_dir=str(tmp_path / "prepared"))
    folder = shutil.copytree(original.folder, tmp_path / "prepared" / original.folder.name)
    damaged = damage(folder, random.Random(seed))
    found = prepare.prepare(config)
    assert found.vocabulary == original.vocabulary and found.report == original.report, damaged
    for split in ("train", "tuning", "held_out"):
        for name, column in dataclasses.asdict(dataset.read(found.folder, split)).items():
            expected = getattr(dataset.read(original.folder, split), name)
            np.testing.assert_array_equal(column, expected, f"{damaged}: {name} of {split}")


@pytest.mark.parametrize("seed", SOME)
def test_some_damaged_runs(sound, tmp_path, seed):
    check_run(sound, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY)
def test_many_damaged_runs(sound, tmp_path, seed):
    check_run(sound, tmp_path, seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_some_damaged_prepared_data(workplace, whole, tmp_path, seed):
    check_prepared(workplace, whole, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 102))
def test_much_damaged_prepared_data(workplace, whole, tmp_path, seed):
    check_prepared(workplace, whole, tmp_path, seed)
