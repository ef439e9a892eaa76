"""Loads fine-tuned runs for evaluation, and scores a second run on the same labels."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from behrt_jax.finetuning import data, head_features, predict, setup
from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.finetuning.predict import Predictions
from behrt_jax.labels.labels import Labels
from behrt_jax.training import workdir
from behrt_jax.training.recipe import Facts, FinetuningRecipe


class FinetunedModel(NamedTuple):
    """A loaded fine-tuned run, with its labelled histories by split and the tokens of its vocabulary."""

    recipe: FinetuningRecipe
    facts: Facts
    tokens: tuple[str, ...]
    model: Any
    params: Any
    splits: dict[str, LabeledHistories]


def load(folder: Path, splits: dict[str, LabeledHistories] | None) -> FinetunedModel:
    """Loads a fine-tuned run, and its labelled histories if none are given.

    Raises:
      ValueError: the workdir cannot be loaded, or its data is not the data that the model was trained with.
    """
    recipe, facts, vocabulary, model, params = workdir.load_finetuning(folder, str(folder))
    if splits is None:
        prepared, splits = data.read_splits(recipe, vocabulary if recipe.pretrained else None)
        if prepared.vocabulary.fingerprint != vocabulary.fingerprint:
            raise ValueError(f"{recipe.data.path}: gives another vocabulary than {folder} has; restore its data")
        workdir.check_digests(folder, recipe, setup.digest_inputs(splits))
        regression = head_features.load(folder, recipe.head)
        splits = head_features.select(recipe.head, splits, vocabulary.tokens, regression)
    return FinetunedModel(recipe, facts, vocabulary.tokens, model, params, splits)


def load_other(folder: Path, source: str, mine: Labels) -> tuple[FinetunedModel, dict]:
    """Loads a second run to compare with, and the parameters fitted after its training.

    Args:
      folder: workdir of the second run.
      source: the key `labels` of the first run.
      mine: held-out labels of the first run.

    Raises:
      ValueError: the second run has other labels, or its fine-tuning was not completed.
    """
    other = load(folder, None)
    other_labels = other.splits["held_out"].labels
    columns = ("subject_ids", "prediction_times", "values", "days", "events")
    is_same = all(
        np.array_equal(getattr(mine, name), getattr(other_labels, name), equal_nan=name == "days") for name in columns
    )
    if not is_same or other_labels.names != mine.names:
        raise ValueError(f"--compare_to={folder}: is of other labels; expected a run of {source}")
    return other, predict.read_fitted(folder)


def score_other(folder: Path, own: FinetunedModel) -> tuple[Predictions, dict]:
    """Computes the held-out predictions of a second run; returns them and its fitted parameters; see `load_other`."""
    other, fitted = load_other(folder, own.recipe.labels, own.splits["held_out"].labels)
    logits = predict.score(other.recipe, other.model, other.params, other.splits["held_out"])
    return predict.predict(other.recipe.outcome, logits, fitted), fitted
