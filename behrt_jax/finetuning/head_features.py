"""The covariates that the head reads beside the embedding: age and sex, or log risks of a regression on codes."""

import logging
from pathlib import Path

import numpy as np

from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.labels.labels import Labels
from behrt_jax.regression import code_regression
from behrt_jax.regression.code_regression import CodeRegression, Target
from behrt_jax.training.recipe import HeadConfig
from behrt_jax.training.workdir import REGRESSION_FILE

logger = logging.getLogger(__name__)


def fit(config: HeadConfig, splits: dict[str, LabeledHistories], tokens: tuple[str, ...]) -> CodeRegression | None:
    """Fits the regression of a recipe, if any: one log risk for each cause, label or class; one for a binary label."""
    if "regression" not in config.features:
        return None
    logger.info("fitting a regression on codes, and once more without each fold of train")
    parts = [splits[name] for name in ("train", "tuning")]
    train, tuning = ((part.histories, part.labels.prediction_times) for part in parts)
    targets = list(zip(*(targets_of(part.labels) for part in parts), strict=True))
    return code_regression.fit(train, tuning, targets, tokens)


def targets_of(labels: Labels) -> list[Target]:
    """Converts labels to one `Target` for each outcome."""
    everyone = np.ones(len(labels), bool)
    if labels.kind == "survival":
        causes = range(1, 1 + len(labels.names))
        return [Target(everyone, labels.events == cause, labels.days) for cause in causes]
    if labels.kind == "multiclass":
        return [Target(everyone, each) for each in labels.outcomes().T]
    return [Target(~np.isnan(each), each > 0) for each in labels.values.T]


def load(folder: Path, config: HeadConfig) -> CodeRegression | None:
    """Loads the regression of a fine-tuned workdir; None if its recipe has none."""
    return code_regression.load(folder / REGRESSION_FILE) if "regression" in config.features else None


def select(
    config: HeadConfig,
    splits: dict[str, LabeledHistories],
    tokens: tuple[str, ...],
    regression: CodeRegression | None = None,
) -> dict[str, LabeledHistories]:
    """Selects the covariates of labelled histories: age and sex, log risks of a regression fitted to `train`, or none.

    Age and sex are among the features of the regression: as separate covariates, they would be fitted to few labels a
    second time.
    """
    if "age_sex" in config.features:
        return splits
    if regression is None:
        return {name: part._replace(covariates=part.covariates[:, :0]) for name, part in splits.items()}
    new_splits = {}
    for name, part in splits.items():
        inputs = (part.histories, part.labels.prediction_times, tokens)
        new_splits[name] = part._replace(covariates=regression.log_risks(*inputs, is_train=name == "train"))
    return new_splits
