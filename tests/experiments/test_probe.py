"""Probes of frozen embeddings: who is drawn, and the command on sixty bundled patients."""

import numpy as np
import polars as pl
import pytest

from behrt_jax.finetuning import sampling
from behrt_jax.labels.labels import Labels
from behrt_jax.probing import probe


def labels_of(outcome: np.ndarray, days: np.ndarray | None = None) -> Labels:
    number = len(outcome)
    times = np.full(number, np.datetime64("2010-01-01", "us"))
    subjects = np.arange(number) // 2  # two labels a patient
    if days is None:
        values = outcome.astype(np.float32)[:, None]
        return Labels("binary", ("ill",), subjects, times, values, np.full(number, np.nan), np.zeros(number, np.int32))
    return Labels("survival", ("event",), subjects, times, np.zeros((number, 0)), days, outcome.astype(np.int32))


def test_draws_are_whole_patients_of_both_outcomes_and_a_function_of_the_seed():
    labels = labels_of(np.arange(600) % 10 == 0)
    rows = sampling.draw_rows(labels, 30, 1)
    patients, counts = np.unique(labels.subject_ids[rows], return_counts=True)
    assert len(patients) == 30 and set(counts) == {2}
    assert 1 < labels.values[rows, 0].sum() < len(rows) - 1
    np.testing.assert_array_equal(rows, sampling.draw_rows(labels, 30, 1))
    assert not np.array_equal(rows, sampling.draw_rows(labels, 30, 2))
    assert len(sampling.draw_rows(labels, 10**9, 1)) == 600
    with pytest.raises(ValueError, match="no 2 patients of train with two of each outcome"):
        sampling.draw_rows(labels_of(np.arange(600) == 0), 2, 1)


@pytest.mark.parametrize("words", [["a"], ["1"], ["16", "-5"], [""]])
def test_sizes_are_numbers_of_patients_or_all(words):
    with pytest.raises(ValueError, match=f"--sizes: found {words[-1]}; expected"):
        probe.read_sizes(words)
    assert probe.read_sizes(["all", "16"])[0] == 16


@pytest.fixture(scope="module")
def outcomes_file(workplace):
    """An outcome of every other patient, and subjects and times to predict."""
    splits = pl.read_parquet(workplace.data / "metadata" / "subject_splits.parquet").sort("subject_id")
    rows = splits.select("subject_id", prediction_time=pl.datetime(2020, 1, 1)).with_row_index()
    rows = rows.select("subject_id", "prediction_time", boolean_value=pl.col("index") % 2 == 0)
    rows.write_parquet(workplace.folder / "probe.parquet")
    rows.drop("boolean_value").write_parquet(workplace.folder / "probe-times.parquet")
    return workplace.folder / "probe.parquet"


def probe_of(workplace, joint, file, *more: str):
    given = [f"--workdir={joint}", f"--labels={file}", f"--features={workplace.folder / 'features'}", *more]
    return workplace.run(given, "experiments.probe")


@pytest.mark.slow
def test_the_command_prints_a_line_for_each_size_and_arm(workplace, joint, outcomes_file):
    done = probe_of(workplace, joint, outcomes_file, "--sizes=16,all", "--draws=2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("counts, age and sex" in line for line in lines) == sum("pre-trained" in line for line in lines) == 2
    assert sum("age alone, no label" in line for line in lines) == 1


@pytest.mark.slow
def test_the_command_predicts_times_that_have_no_label(workplace, joint, outcomes_file):
    wanted, output = workplace.folder / "probe-times.parquet", workplace.folder / "probed.parquet"
    done = probe_of(workplace, joint, outcomes_file, f"--predict={wanted}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    said = pl.read_parquet(output)
    assert set(said["subject_id"]) <= set(pl.read_parquet(wanted)["subject_id"]) and said.height > 30
    assert said["predicted_boolean_probability"].is_between(0, 1).all()
    done = probe_of(workplace, joint, outcomes_file, f"--predict={wanted}")
    assert done.returncode == 2 and "--predict and --output: found one without the other" in done.stderr
