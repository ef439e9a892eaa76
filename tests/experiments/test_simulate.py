import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from behrt_jax.data import events
from behrt_jax.simulation.ceilings import write_patients
from behrt_jax.simulation.world import WORLD_FILE

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.simulate", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("written") / "inner" / "simulated"
    return folder, run("--patients=60", f"--output={folder}", "--seed=3", "--ceilings")


def test_prints_the_counts_of_what_it_wrote(written):
    folder, done = written
    assert done.returncode == 0, done.stderr
    found = pl.concat([events.read_shard(shard, ("visit_id",)) for shard in events.find_shards(folder)])
    visits = found.drop_nulls("visit_id")
    deaths = found.filter(code=events.DEATH).height
    line = (
        f"60 patients, {visits.select('subject_id', 'visit_id').n_unique():,} visits, {visits.height:,} codes, "
        f"{deaths} deaths"
    )
    assert done.stdout.splitlines()[0] == line
    assert "60/60" in done.stderr  # progress
    assert sorted(path.name for path in folder.iterdir()) == ["data", "metadata", "truth.parquet", WORLD_FILE]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no scratch is left


def test_the_next_command_can_be_copied(written):
    folder, done = written
    words = shlex.split(done.stdout.splitlines()[-1])
    assert words[:4] == ["next:", "python", "-m", "experiments.pretrain"]
    assert words[4:6] == ["--config=configs/small.py", f"--config.data.path={folder}"]
    assert words[6:] == ["--config.data.codes_exclude=('MEDS_BIRTH','MEDS_DEATH')"]


def test_the_oracle_is_above_counting(written):
    scores = dict(re.findall(r"^  ([a-z ]+): (\d\.\d+)$", written[1].stdout, re.MULTILINE))
    assert float(scores["oracle"]) > float(scores["last visit again"]) + 0.1
    accuracies = re.findall(r"^  (?:oracle|counting): (\d\.\d+), (\d+\.\d)$", written[1].stdout, re.MULTILINE)
    (best, surprise), (counted, more_surprise) = ((float(a), float(b)) for a, b in accuracies)
    assert best > counted + 0.05 and surprise < more_surprise


def test_the_same_seed_writes_the_same(written, tmp_path):
    write_patients(tmp_path / "again", 60, 3)
    assert contents(tmp_path / "again") == contents(written[0])


def test_refuses_what_is_in_the_way(written, tmp_path):
    before, file = contents(written[0]), tmp_path / "file"
    file.touch()
    for place in (written[0], file):
        with pytest.raises(ValueError, match=f"--output={place}: exists and is not an empty directory; name another"):
            write_patients(place, 5, 0)
    assert contents(written[0]) == before


def test_an_empty_directory_is_filled(tmp_path):
    assert write_patients(tmp_path, 12, 0).startswith("12 patients, ")
    assert (tmp_path / "truth.parquet").exists()
