"""The classification objective: binary, multi-class or multi-label outcomes of patients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.objectives.base import Objective, apply_model

CHOICES = {"kind": ("binary", "multi_class", "multi_label"), "class_weights": ("none", "balanced")}
NEGATIVE = -1e30


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
    """The section `classification` of a recipe.

    Attributes:
      kind: `binary`, `multi_class` (one of K), or `multi_label` (any of K).
      class_weights: `none`, or `balanced`: all classes have the same total weight, however rare.
      focal_gamma: focusing parameter of the focal loss (Lin et al. 2017); 0 gives cross-entropy.
    """

    kind: str
    class_weights: str
    focal_gamma: float

    def __post_init__(self):
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                problem = f"classification.{key}: found {getattr(self, key)!r}"
                raise ValueError(f"{problem}; expected one of {', '.join(choices)}")
        if self.focal_gamma < 0:
            raise ValueError(f"classification.focal_gamma: found {self.focal_gamma}; expected 0 or more")


def balanced_weights(targets: np.ndarray, num_classes: int = 2) -> np.ndarray:
    """Computes class weights inversely proportional to class frequencies, as scikit-learn's "balanced".

    Args:
      targets: (N,) classes from 0, or (N, K) of 0, 1 and NaN where unknown.
      num_classes: number of classes of (N,) targets.

    Returns:
      (num_classes,) float32, or (K, 2) for the absence and the presence of each label.

    Raises:
      ValueError: a class has no patients.
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
    """Computes the focal loss (Lin et al. 2017) of each outcome in nats; gamma 0 gives the cross-entropy.

    All kinds share one formula: the probability of a target is the sigmoid of its margin. The margin is the logit with
    the sign of the target, or for `multi_class` the logit of the class minus the log-sum-exp of all other logits.

    Args:
      logits: (..., K); K = 1 for `binary`.
      targets: (...) 0 or 1 for `binary`, the class for `multi_class`; (..., K) of 0 and 1 for `multi_label`.
      kind: one of `CHOICES["kind"]`.
      class_weights: (2,), (K,) and (K, 2) for the three kinds, as from `balanced_weights`; alpha in the paper.
      gamma: 0 or more.

    Returns:
      (...), or (..., K) for `multi_label`.
    """
    classes = targets.astype(jnp.int32)
    if kind == "multi_class":
        is_class = jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)
        others = jax.nn.logsumexp(jnp.where(is_class, NEGATIVE, logits), axis=-1)
        margins = jnp.where(is_class, logits, 0.0).sum(axis=-1) - others
    else:
        margins = (logits[..., 0] if kind == "binary" else logits) * (2 * classes - 1)
    losses = jax.nn.softplus(-margins) * jnp.exp(-gamma * jax.nn.softplus(margins))
    if class_weights is None:
        return losses
    table = jnp.asarray(class_weights)
    return losses * (table[jnp.arange(logits.shape[-1]), classes] if kind == "multi_label" else table[classes])


def make_objective(model, config: ClassificationConfig, class_weights: np.ndarray | None = None) -> Objective:
    """Returns the objective for patient outcomes, with the loss `classification/loss`.

    The loss is a mean over labelled patients, for `multi_label` over known labels (unknown targets are NaN). Class
    weights change the sum but not the count, so that a class has the same weight in every batch.

    Args:
      model: a `BEHRTForSequenceClassification`; batches must also hold `targets` and `weights` of their patients.
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
    """Computes the (B, P, K) logits of a `BEHRTForSequenceClassification`; a key enables dropout."""
    arguments = {"num_patients": batch["weights"].shape[1], "covariates": batch.get("covariates")}
    return apply_model(model, params, batch, dropout_key, **arguments)


def probabilities(logits: np.ndarray, kind: str) -> np.ndarray:
    """Maps (..., K) logits to probabilities: (...) for a `binary` outcome, else (..., K)."""
    from scipy.special import expit, softmax  # here, as pre-training needs neither, and their import takes long

    if kind == "multi_class":
        return softmax(logits, axis=-1)
    return expit(logits[..., 0] if kind == "binary" else logits)


def initial_bias(targets: np.ndarray, kind: str, num_classes: int = 2) -> np.ndarray:
    """Returns the (K,) float32 bias that initialises a head at the base rates of train.

    A class without patients counts as half a patient. Balanced classes need no bias; it starts at 0.

    Args:
      targets: (N,), or (N, K) for `multi_label`, with NaN where unknown.
      kind: one of `CHOICES["kind"]`.
      num_classes: K of `multi_class`.
    """
    classes = range(num_classes if kind == "multi_class" else 2)
    log_counts = np.log([np.maximum((targets == label).sum(axis=0), 0.5) for label in classes])
    return np.atleast_1d(log_counts if kind == "multi_class" else log_counts[1] - log_counts[0]).astype(np.float32)
