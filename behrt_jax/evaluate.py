"""Evaluation of masked-code models: the same hidden codes for a model and for every baseline."""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.metrics import Outcomes, concatenate
from behrt_jax.objectives import mlm


class MaskedBatch(NamedTuple):
    """A packed batch and the codes that are hidden in it.

    Attributes:
      batch: numpy columns of packed rows, with `patient_index`.
      masked: what is hidden, as numpy arrays.
    """

    batch: dict[str, np.ndarray]
    masked: mlm.Masked

    @property
    def targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and places in the row of the hidden codes, each (n,)."""
        rows, slots = np.nonzero(self.masked.weights)
        return rows, np.asarray(self.masked.positions)[rows, slots]

    @property
    def labels(self) -> np.ndarray:
        """(n,) the hidden codes."""
        return np.asarray(self.masked.labels)[np.nonzero(self.masked.weights)]

    @property
    def patients(self) -> np.ndarray:
        """(n,) the patient of each hidden code."""
        rows, places = self.targets
        return self.batch["patient_index"][rows, self.batch["patient_ids"][rows, places] - 1]


def device_columns(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the columns that a model or an objective reads."""
    names = ("codes", "ages", "visit_ids", "positions", "time_deltas", "dates", "patient_ids", "maskable")
    return {name: batch[name] for name in names}


def mask_batches(
    batches: Iterable[dict], mask_rate: float, vocab_size: int, draws: int, seed: int = 0
) -> Iterator[MaskedBatch]:
    """Hides codes in evaluation batches, several times over.

    Args:
      batches: packed batches in a fixed order.
      mask_rate: share of the codes hidden in each draw; always replaced by `[MASK]`.
      vocab_size: V.
      draws: how often each batch is masked anew, to take the noise of the masks out of the result.
      seed: with the batch's number and the draw, decides the masks.
    """
    for number, batch in enumerate(batches):
        for draw in range(draws):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), draw)
            masked = _mask(key, batch["codes"], batch["maskable"], mask_rate, vocab_size)
            yield MaskedBatch(batch, jax.device_get(masked))


@functools.partial(jax.jit, static_argnames=("mask_rate", "vocab_size"))  # here, so that it is compiled once
def _mask(key, codes, maskable, mask_rate, vocab_size):
    return mlm.mask_codes(key, codes, maskable, mask_rate, vocab_size, mlm.EVALUATION)


def make_score_step(model):
    """Returns a jitted (params, columns, masked) -> outcomes a place, each (B, K)."""
    return jax.jit(lambda params, columns, masked: mlm.score_masked(model, params, columns, masked))


def score(score_step, params, masked_batches: Iterable[MaskedBatch]) -> Outcomes:
    """Scores a model on hidden codes.

    Returns:
      `loss` (nats), `accuracy` and `top5_accuracy` at each hidden code, with its patient.
    """
    parts = []
    for masked_batch in masked_batches:
        found = jax.device_get(score_step(params, device_columns(masked_batch.batch), masked_batch.masked))
        chosen = masked_batch.masked.weights > 0
        parts.append(Outcomes(masked_batch.patients, {name: values[chosen] for name, values in found.items()}))
    return concatenate(parts)


def score_log_probabilities(log_probabilities: np.ndarray, masked_batch: MaskedBatch) -> Outcomes:
    """Scores the predictions of a baseline, (n, V) log-probabilities, by the model's own measure."""
    labels = jnp.asarray(masked_batch.labels)[None, :]
    shaped = mlm.Masked(labels, labels, labels, jnp.ones(labels.shape))
    found = jax.device_get(mlm.masked_outcomes(jnp.asarray(log_probabilities)[None], shaped))
    return Outcomes(masked_batch.patients, {name: values[0] for name, values in found.items()})
