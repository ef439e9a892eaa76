"""The regression on codes whose log risk replaces age and sex as a head input, with `history.regression`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.labels.labels import Labels
from behrt_jax.regression import code_regression
from behrt_jax.regression.code_regression import CodeRegression, Target
from behrt_jax.training.recipe import HistoryConfig
from behrt_jax.training.workdir import REGRESSION_FILE


def fit(
    config: HistoryConfig, splits: dict[str, LabeledHistories], tokens: tuple[str, ...], say: Callable[[str], None]
) -> CodeRegression | None:
    """Fits the regression of a recipe, if any: one log risk for each cause, label or class; one for a binary label."""
    if not config.regression:
        return None
    say("fitting a regression on codes, and once more without each fold of train")
    parts = [splits[name] for name in ("train", "tuning")]
    train, tuning = ((part.histories, part.labels.prediction_times) for part in parts)
    targets = list(zip(*(targets_of(part.labels) for part in parts), strict=True))
    return code_regression.fit(train, tuning, targets, tokens, say)


def targets_of(labels: Labels) -> list[Target]:
    """Converts labels to one `Target` for each outcome."""
    everyone = np.ones(len(labels), bool)
    if labels.kind == "survival":
        causes = range(1, 1 + len(labels.names))
        return [Target(everyone, labels.events == cause, labels.days) for cause in causes]
    if labels.kind == "multiclass":
        return [Target(everyone, each) for each in labels.outcomes().T]
    return [Target(~np.isnan(each), each > 0) for each in labels.values.T]


def load(folder: Path, config: HistoryConfig) -> CodeRegression | None:
    """Loads the regression of a fine-tuned workdir; None if its recipe has none."""
    return code_regression.load(folder / REGRESSION_FILE) if config.regression else None


def add(
    splits: dict[str, LabeledHistories], regression: CodeRegression | None, tokens: tuple[str, ...]
) -> dict[str, LabeledHistories]:
    """Replaces the covariates of labelled histories by the log risks of a regression fitted to `train`.

    Age and sex are among its features: as separate covariates, they would be fitted to few labels a second time.
    """
    if regression is None:
        return splits
    new_splits = {}
    for name, part in splits.items():
        inputs = (part.histories, part.labels.prediction_times, tokens)
        new_splits[name] = part._replace(covariates=regression.log_risks(*inputs, is_train=name == "train"))
    return new_splits
