import subprocess
import sys
from pathlib import Path

import meds
import numpy as np
import polars as pl
import pytest

from behrt_jax.labels.labels import read_labels
from behrt_jax.labels.tasks import count_outcomes
from experiments.labels import label
from tests.data.handmade import SUBJECTS, MedsFolder, assert_clear

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "configs" / "tasks"


def run(**arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.labels", *(f"--{name}={value}" for name, value in arguments.items())]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def stays(tmp_path_factory) -> Path:
    """Four stays of three patients in two shards: one ends in death, one in its first day."""
    folder = MedsFolder(tmp_path_factory.mktemp("stays"))
    admission, home = "HOSPITAL_ADMISSION//URGENT", "HOSPITAL_DISCHARGE//HOME"
    one = [(SUBJECTS[0], 10, admission), (SUBJECTS[0], 13, home), (SUBJECTS[0], 30, admission), (SUBJECTS[0], 39, home)]
    two = [(SUBJECTS[1], 10, admission), (SUBJECTS[1], 15, "HOSPITAL_DISCHARGE//DIED"), (SUBJECTS[1], 15, "MEDS_DEATH")]
    folder.shard("train/0", one)
    folder.shard("held_out/0", [*two, (SUBJECTS[2], 10, admission), (SUBJECTS[2], 10.5, home)])
    return folder.root


@pytest.mark.slow
def test_labels_of_an_aces_task(stays, tmp_path):
    output = tmp_path / "inner" / "mortality.parquet"
    done = run(task=TASKS / "mimic_mortality.yaml", data=stays, output=output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        "3 patients",
        "4 index dates of 3 patients",
        "  dropped: 1 that fit no windows",
        "  fit no windows (one may fail several):",
        "    1 in first_day: not None <= leaving <= 0",
        "3 rows of 2 patients",
        "  1 positive (33.3%), of 1 patients",
        f"wrote {output}",
    ]
    assert "2/2" in done.stderr  # progress
    assert [path.name for path in output.parent.iterdir()] == [output.name]  # no scratch is left
    meds.LabelSchema.validate(pl.read_parquet(output).to_arrow())
    labels = read_labels([output])
    assert labels.names == ("mortality",) and labels.values[:, 0].tolist() == [0, 0, 1]
    assert np.unique(labels.subject_ids).tolist() == list(SUBJECTS[:2])


def test_labels_of_time_to_event(stays, tmp_path, capsys):
    (task := tmp_path / "task.yaml").write_text(
        "description: death from admission on\n"
        "time_to_event: {index: {codes: HOSPITAL_ADMISSION//*}, require: {min_visits: 0},\n"
        "  events: {death: MEDS_DEATH, never: NOWHERE//*}, follow_up: {last_event: true}}\n"
    )
    label(str(task), str(stays), tmp_path / "death.parquet")
    assert capsys.readouterr().out.splitlines() == [
        f"{task}: death from admission on",
        "3 patients",
        "4 index dates of 3 patients",
        "  no event in the data is 'NOWHERE//*'",
        "4 rows of 3 patients",
        "  1 events: death (25.0%), of 1 patients",
        "  3 censored (75.0%), of 2 patients",
        "  median days to the event or the end of follow-up: 7",
        f"wrote {tmp_path / 'death.parquet'}",
    ]
    labels = read_labels([tmp_path / "death.parquet"])
    assert labels.names == ("death",) and labels.events.tolist() == [0, 0, 1, 0]
    assert labels.days.tolist() == [29, 9, 5, 0.5]


def test_no_labels_are_no_file(stays, tmp_path, capsys):
    task, output = TASKS / "readmission.yaml", tmp_path / "out.parquet"
    with pytest.raises(ValueError) as error:
        label(str(task), str(stays), output)
    assert_clear(error, f"{task}: no labels come of {stays}", "check that the task's codes are those of the data")
    assert "no event in the data is 'admission'" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_no_files(stays, tmp_path):
    for output in (tmp_path / "x.csv", tmp_path):
        with pytest.raises(ValueError, match="expected a file that ends in .parquet"):
            label(str(TASKS / "death.yaml"), str(stays), output)
    assert not list(tmp_path.iterdir())


def test_outcomes_of_one_cause():
    start = pl.datetime(2000, 1, 1)
    labels = pl.select(subject_id=pl.Series([1, 1, 2]), event=pl.Series([True, False, True])).with_columns(
        prediction_time=start, event_time=start + pl.duration(days=pl.Series([10, 20, 30]))
    )
    assert count_outcomes(labels) == [
        "  2 events (66.7%), of 2 patients",
        "  1 censored (33.3%), of 1 patients",
        "  median days to the event or the end of follow-up: 20",
    ]
