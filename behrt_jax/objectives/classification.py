"""Outcomes of patients: one, one of several classes, or several that do not exclude each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from behrt_jax.models.inputs import model_arguments
from behrt_jax.objectives.base import Objective

CHOICES = {"kind": ("binary", "multi_class", "multi_label"), "class_weights": ("none", "balanced")}
NEGATIVE = -1e30


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
    """The section `classification` of a recipe.

    Attributes:
      kind: `binary`, `multi_class` (one of K), or `multi_label` (K that do not exclude each other).
      class_weights: `none`, or `balanced`: each class counts as much as another, however rare.
      focal_gamma: how much less patients count who are told well already (Lin et al. 2017); 0 for cross-entropy.
    """

    kind: str
    class_weights: str
    focal_gamma: float

    def __post_init__(self):
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                found = f"classification.{key}: found {getattr(self, key)!r}"
                raise ValueError(f"{found}; expected one of {', '.join(choices)}")
        if self.focal_gamma < 0:
            raise ValueError(f"classification.focal_gamma: found {self.focal_gamma}; expected 0 or more")


def balanced_weights(targets: np.ndarray, num_classes: int = 2) -> np.ndarray:
    """Returns weights in inverse ratio to how often classes come, as scikit-learn's "balanced".

    Args:
      targets: (N,) classes from 0, or (N, K) of 0, 1 and NaN where not known.
      num_classes: of (N,) targets.

    Returns:
      (num_classes,) float32, or (K, 2) for the absence and the presence of each label.

    Raises:
      ValueError: a class has no patient.
    """
    if targets.ndim == 2:
        return np.stack([balanced_weights(column[~np.isnan(column)]) for column in targets.T.astype(np.float32)])
    counts = np.bincount(targets.astype(int), minlength=num_classes)
    if not counts.all():
        raise ValueError(
            f"targets: found counts {counts.tolist()} of the classes in {len(targets)} labels; expected each at least "
            "once to balance them: use classification.class_weights='none' or labels of every class"
        )
    return (len(targets) / (num_classes * counts)).astype(np.float32)


def classification_losses(
    logits: jax.Array, targets: jax.Array, kind: str, class_weights: np.ndarray | None = None, gamma: float = 0.0
) -> jax.Array:
    """Returns the focal loss (Lin et al. 2017) of each outcome in nats; with gamma 0, the cross-entropy.

    All kinds are one: a target's probability is the sigmoid of its margin, which is how far its logit lies above 0, or
    above those of all other classes together.

    Args:
      logits: (..., K); K = 1 for `binary`.
      targets: (...) 0 or 1 for `binary`, the class for `multi_class`; (..., K) of 0 and 1 for `multi_label`.
      kind: of `CHOICES["kind"]`.
      class_weights: (2,), (K,) and (K, 2) for the three kinds, as of `balanced_weights`; the alpha of the paper.
      gamma: 0 or more.

    Returns:
      (...), or (..., K) for `multi_label`.
    """
    classes = targets.astype(jnp.int32)
    if kind == "multi_class":
        own = jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)
        others = jax.nn.logsumexp(jnp.where(own, NEGATIVE, logits), axis=-1)
        margins = jnp.where(own, logits, 0.0).sum(axis=-1) - others
    else:
        margins = (logits[..., 0] if kind == "binary" else logits) * (2 * classes - 1)
    losses = jax.nn.softplus(-margins) * jnp.exp(-gamma * jax.nn.softplus(margins))
    if class_weights is None:
        return losses
    table = jnp.asarray(class_weights)
    return losses * (table[jnp.arange(logits.shape[-1]), classes] if kind == "multi_label" else table[classes])


def make_objective(model, config: ClassificationConfig, class_weights: np.ndarray | None = None) -> Objective:
    """Returns the objective of patients' outcomes, whose loss is `classification/loss`.

    It is a mean over labelled patients, and over known labels for `multi_label`, whose unknown targets are NaN. Class
    weights raise the sum and not the count, so that a class weighs the same in every batch.

    Args:
      model: a `BEHRTForSequenceClassification`; batches also hold `targets` and `weights` of its patients.
      config: the section `classification`.
      class_weights: see `classification_losses`.
    """

    def known(batch):
        targets = batch["targets"].astype(jnp.float32)
        labelled = (batch["weights"] > 0).reshape(batch["weights"].shape + (1,) * (targets.ndim - 2))
        return labelled & ~jnp.isnan(targets)

    def count(batch):
        return {"classification/loss": known(batch).sum().astype(jnp.float32)}

    def measure(params, batch, dropout_key):
        logits = score_patients(model, params, batch, dropout_key)
        targets = jnp.where(known(batch), batch["targets"], 0)
        losses = classification_losses(logits, targets, config.kind, class_weights, config.focal_gamma)
        return {"classification/loss": (jnp.where(known(batch), losses, 0.0).sum(), *count(batch).values())}

    return Objective(lambda batch, key: batch, measure, count, {"classification/loss": 1.0})


def score_patients(model, params, batch: dict[str, jax.Array], dropout_key: jax.Array | None = None) -> jax.Array:
    """Returns a `BEHRTForSequenceClassification`'s (B, P, K) logits; dropout is on where a key is given."""
    columns, named = model_arguments(batch)
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    arguments = {**named, "num_patients": batch["weights"].shape[1], "deterministic": dropout_key is None}
    if "covariates" in batch:
        arguments["covariates"] = batch["covariates"]
    return model.apply(params, *columns, **arguments, rngs=rngs)


def probabilities(logits: np.ndarray, kind: str) -> np.ndarray:
    """Maps (..., K) logits to probabilities: (...) of a `binary` outcome, else (..., K)."""
    if kind == "multi_class":
        return scipy.special.softmax(logits, axis=-1)
    return scipy.special.expit(logits[..., 0] if kind == "binary" else logits)


def initial_bias(targets: np.ndarray, kind: str, num_classes: int = 2) -> np.ndarray:
    """Returns the (K,) float32 bias with which a head begins at the base rates of train.

    A class without a patient counts as half a one. Balanced classes need none: their bias begins at 0.

    Args:
      targets: (N,), or (N, K) for `multi_label`, with NaN where not known.
      kind: of `CHOICES["kind"]`.
      num_classes: K of `multi_class`.
    """
    classes = range(num_classes if kind == "multi_class" else 2)
    counts = np.log([np.maximum((targets == number).sum(axis=0), 0.5) for number in classes])
    return np.atleast_1d(counts if kind == "multi_class" else counts[1] - counts[0]).astype(np.float32)
