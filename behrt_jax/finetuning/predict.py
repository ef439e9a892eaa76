"""Predictions of a fine-tuned model: calibrated probabilities, or risk scores and cumulative incidence."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import polars as pl

from behrt_jax.finetuning import labeled_histories
from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.labels.labels import Labels
from behrt_jax.metrics import calibration
from behrt_jax.metrics import classification as classification_metrics
from behrt_jax.objectives import classification, survival
from behrt_jax.objectives.classification import ClassificationConfig
from behrt_jax.objectives.survival import Baseline, SurvivalConfig
from behrt_jax.training.recipe import FinetuningRecipe
from behrt_jax.training.workdir import FITTED_FILE


class ClassPredictions(NamedTuple):
    """Predicted classes of M labelled histories: (M,) probabilities of a binary outcome, otherwise (M, K)."""

    probabilities: np.ndarray


class SurvivalPredictions(NamedTuple):
    """Predicted time to an event, or to the first of C causes, for M labelled histories.

    Attributes:
      scores: (M, C) for each cause, higher is earlier.
      risks: a function from (T,) days to the (M, C, T) cumulative incidence of each cause.
    """

    scores: np.ndarray
    risks: Callable[[np.ndarray], np.ndarray]


Predictions = ClassPredictions | SurvivalPredictions


def score(recipe: FinetuningRecipe, model, params, found: LabeledHistories) -> np.ndarray:
    """Computes the (M, K) float32 logits of labelled histories."""
    return labeled_histories.read_each(recipe, found, model.num_labels, functools.partial(_score, model, params))


@functools.partial(jax.jit, static_argnames="model")  # here, to compile once for all runs of a model
def _score(model, params, columns):
    return classification.score_patients(model, params, columns)


def fit_afterwards(recipe: FinetuningRecipe, logits: dict[str, np.ndarray], labels: dict[str, Labels]) -> dict:
    """Fits calibration and thresholds on tuning, or the Cox baseline hazard on train; returns JSON types."""
    outcome, method = recipe.outcome, recipe.evaluation.calibration
    if isinstance(outcome, SurvivalConfig):
        if outcome.loss != "cox":
            return {}
        baseline = survival.breslow(logits["train"], labels["train"].days, labels["train"].events)
        return {"baseline": {name: values.tolist() for name, values in baseline._asdict().items()}}
    probabilities, targets = classification.probabilities(logits["tuning"], outcome.kind), targets_of(labels["tuning"])
    fitted = {}
    if method != "none":
        calibrator, fitted["calibration"] = calibration.fit(probabilities, targets, method)
        probabilities = calibrator(probabilities)
    if outcome.kind != "multi_class":
        fitted["threshold"] = classification_metrics.best_threshold(probabilities, targets).tolist()
    return fitted


def targets_of(labels: Labels) -> np.ndarray:
    """Converts labels to the targets of metrics: (M,) bool, (M, K) bool, or (M,) classes."""
    if labels.kind == "multiclass":
        return labels.values[:, 0].astype(int)
    return labels.values[:, 0] > 0 if labels.kind == "binary" else labels.values > 0


def predict(outcome: ClassificationConfig | SurvivalConfig, logits: np.ndarray, fitted: dict) -> Predictions:
    """Converts logits to predictions, with the parameters of `fit_afterwards`."""
    if isinstance(outcome, SurvivalConfig):
        baseline = Baseline(*map(np.asarray, fitted["baseline"].values())) if "baseline" in fitted else None
        scores = survival.risk_scores(logits, outcome)
        return SurvivalPredictions(scores, lambda days: survival.risks(logits, outcome, days, baseline))
    probabilities = classification.probabilities(logits, outcome.kind)
    if "calibration" in fitted:
        probabilities = calibration.from_dict(fitted["calibration"])(probabilities)
    return ClassPredictions(probabilities)


def read_fitted(folder: Path) -> dict:
    """Reads the parameters of `fit_afterwards` from a workdir.

    Raises:
      ValueError: the file is missing, as fine-tuning was not completed.
    """
    file = folder / FITTED_FILE
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); run experiments.finetune to its end first") from error


def write(
    file: Path,
    labels: Labels,
    said: Predictions,
    names: tuple[str, ...],
    fitted: dict,
    horizons: tuple[float, ...] = (),
) -> None:
    """Writes predictions as Parquet; binary ones in the schema of meds-evaluation.

    Args:
      file: to write.
      labels: the labels predicted, with outcomes where they are known.
      said: the predictions.
      names: of outcomes, classes or causes.
      fitted: parameters of `fit_afterwards`, with the threshold for a binary outcome.
      horizons: of times to an event, the days by which risks are written.
    """
    has_outcomes = labels.kind != "times"
    columns = {"subject_id": labels.subject_ids, "prediction_time": labels.prediction_times}
    if isinstance(said, SurvivalPredictions):
        if has_outcomes:
            columns |= {"days": labels.days, "event": labels.events}
        risks_by_cause = np.moveaxis(said.risks(np.asarray(horizons)), 1, 0)
        for place, (name, risks) in enumerate(zip(names, risks_by_cause, strict=True)):
            columns[f"score/{name}"] = said.scores[:, place]
            columns |= {f"risk/{name}@{days:g}": risks[:, number] for number, days in enumerate(horizons)}
    elif said.probabilities.ndim == 1:
        if has_outcomes:
            columns["boolean_value"] = labels.values[:, 0] > 0
        columns["predicted_boolean_value"] = said.probabilities >= fitted["threshold"]
        columns["predicted_boolean_probability"] = said.probabilities.astype(np.float32)
    else:
        for place, name in enumerate(names):
            columns[f"probability/{name}"] = said.probabilities[:, place]
            if has_outcomes:
                is_class = labels.kind == "multiclass"
                columns[f"value/{name}"] = labels.values[:, 0] == place if is_class else labels.values[:, place] > 0
    pl.DataFrame(columns).write_parquet(file)
