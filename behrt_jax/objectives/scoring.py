"""Evaluation of models and baselines on identical masked codes and next visits."""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.metrics.bootstrap import PerTargetScores, concatenate, mean_metrics, merge_sums
from behrt_jax.models.inputs import device_columns
from behrt_jax.objectives import mlm, next_visit
from behrt_jax.objectives.base import Objective


class MaskedBatch(NamedTuple):
    """A packed batch and its masked codes.

    Attributes:
      batch: numpy columns of packed rows, with `patient_index`.
      masked: the masked codes, as numpy arrays.
    """

    batch: dict[str, np.ndarray]
    masked: mlm.Masked

    @property
    def targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and index in the row of each masked code, (n,) each."""
        rows, slots = np.nonzero(self.masked.weights)
        return rows, np.asarray(self.masked.positions)[rows, slots]

    @property
    def labels(self) -> np.ndarray:
        """(n,) the masked codes."""
        return np.asarray(self.masked.labels)[np.nonzero(self.masked.weights)]

    @property
    def patients(self) -> np.ndarray:
        """(n,) the patient of each masked code."""
        rows, positions = self.targets
        return self.batch["patient_index"][rows, self.batch["patient_ids"][rows, positions] - 1]


def mask_batches(
    batches: Iterable[dict], mask_rate: float, vocab_size: int, draws: int, seed: int = 0
) -> Iterator[MaskedBatch]:
    """Masks codes in evaluation batches, with several samples per batch.

    Args:
      batches: packed batches in a fixed order.
      mask_rate: share of the codes masked in each sample; always replaced by `[MASK]`.
      vocab_size: V.
      draws: number of mask samples per batch, which reduces the noise of the masks in the result.
      seed: determines the masks, with the batch number and the sample number.
    """
    for number, batch in enumerate(batches):
        for draw in range(draws):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), draw)
            masked = _mask(key, batch["codes"], batch["maskable"], mask_rate, vocab_size)
            yield MaskedBatch(batch, jax.device_get(masked))


@functools.partial(jax.jit, static_argnames=("mask_rate", "vocab_size"))  # at module level, so that it is compiled once
def _mask(key, codes, maskable, mask_rate, vocab_size):
    return mlm.mask_codes(key, codes, maskable, mask_rate, vocab_size, mlm.EVALUATION)


def make_score_step(model, candidates: np.ndarray | None = None):
    """Returns a jitted (params, columns, masked) -> `mlm.score_masked` of each masked code, (B, K) each."""
    return jax.jit(lambda params, columns, masked: mlm.score_masked(model, params, columns, masked, candidates))


def make_value_step(model):
    """Returns a jitted (params, columns, masked) -> `mlm.score_values` of each masked code, (B, K) each."""
    return jax.jit(lambda params, columns, masked: mlm.score_values(model, params, columns, masked))


def score(score_step, params, masked_batches: Iterable[MaskedBatch]) -> PerTargetScores:
    """Scores a model on masked codes.

    Returns:
      The result of `score_step` at each masked code, with its patient.
    """
    parts = []
    for masked_batch in masked_batches:
        scores = jax.device_get(score_step(params, device_columns(masked_batch.batch), masked_batch.masked))
        is_masked = masked_batch.masked.weights > 0
        parts.append(
            PerTargetScores(masked_batch.patients, {name: values[is_masked] for name, values in scores.items()})
        )
    return concatenate(parts)


def make_predict_step(model, codes: np.ndarray, causal: bool):
    """Returns a jitted (params, columns, ends, gaps) -> probabilities (B, K, T) of target codes and days (B, K)."""

    @jax.jit
    def predict_step(params, columns, ends, gaps):
        logits, log_days = next_visit.score_next_visits(model, params, columns, ends, causal, gaps=gaps)
        return jax.nn.sigmoid(logits.astype(jnp.float32)[..., codes]), jnp.expm1(log_days)

    return predict_step


def predict_next_visits(
    predict_step, params, batches: Iterable[tuple], size: tuple[int, int], time_known: bool = False
):
    """Predicts the codes and days of next visits.

    Args:
      predict_step: from `make_predict_step`.
      params: the variables of the model.
      batches: from `next_visit_targets.boundary_batches`.
      size: (N, T), numbers of examples and target codes.
      time_known: whether the model is given the start time of each visit.

    Returns:
      (N, T) float32 probabilities and (N,) float32 days.
    """
    probabilities, days = np.zeros(size, np.float32), np.zeros(size[0], np.float32)
    for batch, ends, examples, gaps in batches:
        known_gaps = gaps if time_known else np.full_like(gaps, np.nan)
        batch_probabilities, batch_days = jax.device_get(predict_step(params, device_columns(batch), ends, known_gaps))
        is_used = examples >= 0
        probabilities[examples[is_used]], days[examples[is_used]] = batch_probabilities[is_used], batch_days[is_used]
    return probabilities, days


def make_tuning_step(objective: Objective):
    """Returns a jitted (params, columns, key) -> metrics as pairs (sum, count), without dropout."""
    return jax.jit(lambda params, columns, key: objective.measure(params, objective.prepare(columns, key), None))


def score_objective(tuning_step, objective: Objective, params, batches: Iterable[dict], seed: int = 0):
    """Computes the mean metrics of an objective over batches, and the total `loss`.

    Args:
      tuning_step: from `make_tuning_step`.
      objective: the same objective.
      params: the variables of the model.
      batches: packed batches in a fixed order.
      seed: determines the sampled targets, with the batch number.
    """
    keys = (jax.random.fold_in(jax.random.key(seed), number) for number in itertools.count())
    sums = [tuning_step(params, device_columns(batch), key) for batch, key in zip(batches, keys, strict=False)]
    means = mean_metrics(merge_sums(jax.device_get(sums)))
    return {"loss": objective.total(means), **means}


def score_log_probabilities(log_probabilities: np.ndarray, masked_batch: MaskedBatch) -> PerTargetScores:
    """Scores a baseline's (n, V) log-probabilities with the same metrics as the model."""
    labels = jnp.asarray(masked_batch.labels)[None, :]
    masked = mlm.Masked(labels, labels, labels, jnp.ones(labels.shape))
    outcomes = jax.device_get(mlm.masked_outcomes(jnp.asarray(log_probabilities)[None], masked))
    return PerTargetScores(masked_batch.patients, {name: values[0] for name, values in outcomes.items()})
