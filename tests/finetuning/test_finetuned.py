"""Which runs may be compared: those of the same labels."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from behrt_jax.finetuning import finetuned, predict
from behrt_jax.labels.labels import Labels

TIMES = np.full(3, np.datetime64("2010-01-01", "us"))
LABELS = Labels("survival", ("event",), np.arange(3), TIMES, np.zeros((3, 0)), np.ones(3), np.zeros(3, np.int32))


def run_of(labels: Labels) -> finetuned.FinetunedModel:
    recipe = SimpleNamespace(labels="labels.parquet", outcome=None)
    return finetuned.FinetunedModel(recipe, None, (), None, None, {"held_out": SimpleNamespace(labels=labels)})  # pyright: ignore


@pytest.mark.parametrize("column", ["subject_ids", "prediction_times", "days", "events", "names"])
def test_runs_of_other_labels_are_not_compared(monkeypatch, column):
    changed = ("death",) if column == "names" else getattr(LABELS, column) + 1
    other = run_of(dataclasses.replace(LABELS, **{column: changed}))
    monkeypatch.setattr(finetuned, "load", lambda folder, splits: other)
    with pytest.raises(ValueError, match="--compare_to=there: is of other labels; expected a run of labels.parquet"):
        finetuned.score_other(Path("there"), run_of(LABELS))


def test_runs_of_the_same_labels_are(monkeypatch):
    monkeypatch.setattr(finetuned, "load", lambda folder, splits: run_of(LABELS))
    monkeypatch.setattr(predict, "read_fitted", lambda folder: {"threshold": 0.5})
    monkeypatch.setattr(predict, "score", lambda *run: "logits")
    monkeypatch.setattr(predict, "predict", lambda outcome, logits, fitted: logits)
    assert finetuned.score_other(Path("there"), run_of(LABELS)) == ("logits", {"threshold": 0.5})
