"""Probes of frozen embeddings: known truth in made-up inputs, and the command on sixty bundled patients."""

import numpy as np
import polars as pl
import pytest

from behrt_jax.data.labels import Labels
from experiments import draws, probe


def labels_of(outcome: np.ndarray, days: np.ndarray | None = None) -> Labels:
    number = len(outcome)
    times = np.full(number, np.datetime64("2010-01-01", "us"))
    subjects = np.arange(number) // 2  # two labels a patient
    if days is None:
        values = outcome.astype(np.float32)[:, None]
        return Labels("binary", ("ill",), subjects, times, values, np.full(number, np.nan), np.zeros(number, np.int32))
    return Labels("survival", ("event",), subjects, times, np.zeros((number, 0)), days, outcome.astype(np.int32))


def splits_of(kind: str) -> dict[str, probe.Split]:
    found, rng = {}, np.random.default_rng(0)
    for name in ("train", "tuning", "held_out"):
        inputs = rng.normal(size=(600, 5))
        inputs[:, 4] = 1.0  # the same for everybody: nothing to scale by
        risk = 2 * inputs[:, 0] - inputs[:, 1]
        if kind == "binary":
            labels = labels_of(rng.random(600) < 1 / (1 + np.exp(-risk)))
        else:
            labels = labels_of(rng.random(600) < 0.7, 1 + rng.exponential(100 * np.exp(-risk)))
        found[name] = probe.Split({"embeddings": inputs, "counts": rng.normal(size=(600, 5))}, labels)
    return found


@pytest.mark.parametrize("kind", ["binary", "survival"])
def test_a_planted_signal_is_found_by_the_inputs_that_hold_it(kind):
    splits, everyone = splits_of(kind), np.arange(600)
    assert probe.fit_and_score(splits, "embeddings", everyone) > 0.8
    assert 0.4 < probe.fit_and_score(splits, "counts", everyone) < 0.6
    few = probe.fit_and_score(splits, "embeddings", draws.draw_rows(splits["train"].labels, 12, 0))
    assert 0.5 < few < probe.fit_and_score(splits, "embeddings", everyone) + 0.02


def test_draws_are_whole_patients_of_both_outcomes_and_a_function_of_the_seed():
    labels = labels_of(np.arange(600) % 10 == 0)
    rows = draws.draw_rows(labels, 30, 1)
    patients, counts = np.unique(labels.subject_ids[rows], return_counts=True)
    assert len(patients) == 30 and set(counts) == {2}
    assert 1 < labels.values[rows, 0].sum() < len(rows) - 1
    np.testing.assert_array_equal(rows, draws.draw_rows(labels, 30, 1))
    assert not np.array_equal(rows, draws.draw_rows(labels, 30, 2))
    assert len(draws.draw_rows(labels, 10**9, 1)) == 600
    with pytest.raises(ValueError, match="no 2 patients of train with two of each outcome"):
        draws.draw_rows(labels_of(np.arange(600) == 0), 2, 1)


@pytest.mark.parametrize("words", [["a"], ["1"], ["16", "-5"], [""]])
def test_sizes_are_numbers_of_patients_or_all(words):
    with pytest.raises(ValueError, match=f"--sizes: found {words[-1]}; expected"):
        probe.read_sizes(words)
    assert probe.read_sizes(["all", "16"])[0] == 16


def test_the_command_prints_a_line_for_each_size_and_model(workplace, joint):
    deaths, output = workplace.folder / "probe.parquet", workplace.folder / "scores.parquet"
    splits = pl.read_parquet(workplace.data / "metadata" / "subject_splits.parquet").sort("subject_id")
    rows = splits.select("subject_id", prediction_time=pl.datetime(2020, 1, 1)).with_row_index()
    rows.select("subject_id", "prediction_time", boolean_value=pl.col("index") % 2 == 0).write_parquet(deaths)
    given = [f"--workdir={joint}", f"--labels={deaths}", "--sizes=16,all", "--draws=2", f"--output={output}"]
    done = workplace.run(given, "experiments.probe")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("frozen BEHRT" in line for line in lines) == sum("counts of codes" in line for line in lines) == 2
    scores = pl.read_parquet(output)
    assert scores.height == 2 * 3 and scores["score"].is_between(0, 1).all()  # all is drawn once
