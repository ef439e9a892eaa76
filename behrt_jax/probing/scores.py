"""The metric of few-label probing: AUROC or Harrell's C on all held-out labels, with bootstrap over patients."""

import numpy as np

from behrt_jax.labels.labels import Labels
from behrt_jax.metrics import classification, survival
from behrt_jax.metrics.bootstrap import Estimate
from behrt_jax.metrics.survival import Followed

METRICS = {"binary": "AUROC", "survival": "C-index"}


def check_kind(labels: Labels, flag: str) -> None:
    """Raises a ValueError unless labels are one binary label or times to one event."""
    if labels.kind not in METRICS or len(labels.names) > 1:
        kind = labels.kind if labels.kind not in METRICS else f"{len(labels.names)} causes of {labels.kind}"
        raise ValueError(f"{flag}: found {kind} labels; expected one binary label, or times to an event")


def rank(scores: np.ndarray, labels: Labels) -> Estimate:
    """Measures how well (M,) scores rank M labels; higher scores are for likelier or earlier outcomes."""
    if labels.kind == "survival":
        followed = Followed(labels.days, labels.events > 0)
        return survival.measure(scores, followed, labels.subject_ids, followed, horizons=())["survival/c_index"]
    owners, weights = classification.patient_weights(labels.subject_ids, len(labels), seed=0)
    positive = labels.values[:, 0] > 0

    def measure(weights):
        return {"auroc": classification.auroc(scores, positive, weights)}

    values = classification.replicate(measure, owners, weights)["auroc"]
    return Estimate(float(values[0]), values[1:], len(labels), int(owners.max()) + 1)
