"""Skip-gram of codes: codes that share visits get similar embeddings, as in Med2Vec (Choi et al. 2016)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from behrt_jax.data.dataset import Patients
from behrt_jax.data.vocabulary import NUM_SPECIAL
from behrt_jax.data.windows import VisitIndex

NUM_STEPS = 2000
BATCH_SIZE = 2048  # pairs per update
SHARED_NEGATIVES = 256  # negatives drawn per update, shared by all its pairs
NEGATIVE_WEIGHT = 5.0  # the shared negatives count as this many per pair
LEARNING_RATE = 0.01
SMOOTHING = 0.75  # negatives are drawn by counts to this power (Mikolov et al. 2013)
SALT = 7919


class Contexts(NamedTuple):
    """Codes of visits, with the range of codes in the same visit.

    Attributes:
      codes: (T,) ids, visit by visit.
      first: (T,) index of the first code in the same visit.
      last: (T,) index after the last code in the same visit.
    """

    codes: np.ndarray
    first: np.ndarray
    last: np.ndarray


def find_contexts(patients: Patients, index: VisitIndex) -> Contexts:
    """Finds the range of codes in the same visit, for each code."""
    codes = patients.codes[patients.visits >= 0]
    kept = codes >= NUM_SPECIAL
    codes, visits = codes[kept], index.token_visits[kept]
    starts = np.searchsorted(visits, np.arange(len(index.owners) + 1))
    return Contexts(codes, starts[visits], starts[visits + 1])


def draw_pairs(contexts: Contexts, chances: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws pairs of codes from the same visit, (2, size) ids.

    Args:
      contexts: T codes.
      chances: (T,) cumulative sampling probabilities, ending in 1.
      size: number of pairs.
      rng: random generator.
    """
    centers = _draw(chances, size, rng)
    first, others = contexts.first[centers], contexts.last[centers] - contexts.first[centers] - 1
    partners = first + np.floor(rng.random(size) * others).astype(np.int64)
    return contexts.codes[np.stack([centers, partners + (partners >= centers)])]


def _running(weights: np.ndarray) -> np.ndarray:
    return np.cumsum(weights) / weights.sum()


def _draw(chances: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    # Rounding may leave the last sum below 1; draws beyond it are clipped to the last code that can be drawn.
    return np.searchsorted(chances, np.minimum(rng.random(size), np.nextafter(chances[-1], 0)), side="right")


def train(
    patients: Patients,
    index: VisitIndex,
    vocab_size: int,
    dim: int,
    seed: int,
    num_steps: int = NUM_STEPS,
    progress: Callable[[int], object] = lambda step: None,
) -> np.ndarray:
    """Trains a skip-gram with negative sampling on codes of the same visit; deterministic given patients and seed.

    Codes are drawn in proportion to the square root of their counts, so that rare codes are seen too (Mikolov et al.
    2013 drop frequent words for the same reason). Run time does not grow with the number of patients.

    Args:
      patients: the patients to train on: the train split.
      index: their visits.
      vocab_size: V.
      dim: D.
      seed: determines the initial tables and the draws.
      num_steps: number of updates.
      progress: called with the number of each update.

    Returns:
      (V, D) float32; NaN in the rows of tokens that share no visit with another code.
    """
    contexts = find_contexts(patients, index)
    counts = np.bincount(contexts.codes, minlength=vocab_size).astype(np.float64)
    has_partner = contexts.last - contexts.first > 1
    rows = np.full((vocab_size, dim), np.nan, np.float32)
    if not has_partner.any():
        return rows
    chances, negative = _running(has_partner / np.sqrt(counts[contexts.codes])), _running(counts**SMOOTHING)
    rng = np.random.default_rng([SALT, seed])
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))
    tables = {name: (0.1 * rng.standard_normal((vocab_size, dim))).astype(np.float32) for name in ("codes", "around")}
    state = tables, jax.jit(optimizer.init)(tables)
    update = _make_update(optimizer)
    for step in range(num_steps):
        pairs = draw_pairs(contexts, chances, BATCH_SIZE, rng)
        state = update(*state, pairs, _draw(negative, SHARED_NEGATIVES, rng))
        progress(step + 1)
    ids = np.unique(contexts.codes[has_partner])
    rows[ids] = jax.device_get(state[0]["codes"])[ids]
    return rows


def _make_update(optimizer: optax.GradientTransformation):
    def loss(tables, pairs, negatives):
        codes = tables["codes"][pairs[0]]
        positive_logits = (codes * tables["around"][pairs[1]]).sum(axis=-1)
        negative_logits = codes @ tables["around"][negatives].T
        return jax.nn.softplus(-positive_logits).mean() + NEGATIVE_WEIGHT * jax.nn.softplus(negative_logits).mean()

    @jax.jit
    def update(tables, moments, pairs, negatives):
        grads = jax.grad(loss)(tables, jnp.asarray(pairs), jnp.asarray(negatives))
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(tables, updates), moments

    return update
