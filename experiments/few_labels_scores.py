"""The metric of a run of few labels on all held-out labels: AUROC, or Harrell's C."""

import numpy as np
from ml_collections import ConfigDict
from scipy.special import expit

from behrt_jax import classification_metrics, survival_metrics
from behrt_jax.data.labels import Labels
from behrt_jax.metrics import Estimate
from behrt_jax.objectives import survival
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.survival_metrics import Followed
from experiments import predictions
from experiments.labelled import Labelled


def measure(config: ConfigDict, model, params, found: Labelled) -> Estimate:
    """Scores labelled histories with a model; no calibration by a temperature would move these metrics."""
    logits = predictions.score(config, model, params, found)
    if found.labels.kind == "survival":
        return rank(survival.risk_scores(logits, SurvivalConfig(**config.survival))[:, 0], found.labels)
    return rank(logits[:, 0], found.labels)


def rank(scores: np.ndarray, labels: Labels) -> Estimate:
    """Says how well (M,) scores, log odds or log risks, order the outcomes of M labels."""
    if labels.kind == "survival":
        followed = Followed(labels.days, labels.events > 0)
        return survival_metrics.measure(scores, followed, labels.subject_ids, followed, horizons=())["survival/c_index"]
    said = expit(scores.astype(np.float64))
    return classification_metrics.measure(said, labels.values[:, 0] > 0, labels.subject_ids)["classification/auroc"]
