"""Skip-gram of codes: what shares visits gets like embeddings, an objective of Med2Vec (Choi et al. 2016)."""

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
BATCH_SIZE = 2048  # pairs an update
SHARED_NEGATIVES = 256  # codes drawn an update that none of its pairs is expected to hold
NEGATIVE_WEIGHT = 5.0  # they count as so many a pair
LEARNING_RATE = 0.01
SMOOTHING = 0.75  # power of a code's count by which it is drawn as a negative (Mikolov et al. 2013)
SALT = 7919


class Contexts(NamedTuple):
    """Codes of visits and what is in the visit of each.

    Attributes:
      codes: (T,) ids, visit by visit.
      first: (T,) index of the first code in the same visit.
      last: (T,) index after the last.
    """

    codes: np.ndarray
    first: np.ndarray
    last: np.ndarray


def find_contexts(patients: Patients, index: VisitIndex) -> Contexts:
    """Finds the codes in the visit of each code."""
    codes = patients.codes[patients.visits >= 0]
    kept = codes >= NUM_SPECIAL
    codes, visits = codes[kept], index.token_visits[kept]
    starts = np.searchsorted(visits, np.arange(len(index.owners) + 1))
    return Contexts(codes, starts[visits], starts[visits + 1])


def draw_pairs(contexts: Contexts, chances: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws (2, size) ids of codes and of another code of the visit of each.

    Args:
      contexts: T codes.
      chances: (T,) running sum of how often each is drawn, which ends in 1.
      size: how many.
      rng: draws.
    """
    at = _draw(chances, size, rng)
    first, others = contexts.first[at], contexts.last[at] - contexts.first[at] - 1
    around = first + np.floor(rng.random(size) * others).astype(np.int64)
    return contexts.codes[np.stack([at, around + (around >= at)])]


def _running(weights: np.ndarray) -> np.ndarray:
    return np.cumsum(weights) / weights.sum()


def _draw(chances: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    # Rounding may leave the last sum below 1; what then draws beyond it gets the last that can be drawn.
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
    """Trains skip-gram with negative sampling on codes of the same visit; a function of patients and seed.

    Codes are drawn by the square root of their counts, so that rare ones are seen too (Mikolov et al. 2013 drop
    frequent words to the same end). The time does not grow with the number of patients.

    Args:
      patients: those to train on: the train split.
      index: their visits.
      vocab_size: V.
      dim: D.
      seed: decides where it begins and what is drawn.
      num_steps: updates.
      progress: called with the number of each update.

    Returns:
      (V, D) float32; NaN in the rows of tokens that share no visit with another.
    """
    contexts = find_contexts(patients, index)
    counts = np.bincount(contexts.codes, minlength=vocab_size).astype(np.float64)
    able = contexts.last - contexts.first > 1
    rows = np.full((vocab_size, dim), np.nan, np.float32)
    if not able.any():
        return rows
    chances, negative = _running(able / np.sqrt(counts[contexts.codes])), _running(counts**SMOOTHING)
    rng = np.random.default_rng([SALT, seed])
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))
    tables = {name: (0.1 * rng.standard_normal((vocab_size, dim))).astype(np.float32) for name in ("codes", "around")}
    state = tables, jax.jit(optimizer.init)(tables)
    update = _make_update(optimizer)
    for step in range(num_steps):
        pairs = draw_pairs(contexts, chances, BATCH_SIZE, rng)
        state = update(*state, pairs, _draw(negative, SHARED_NEGATIVES, rng))
        progress(step + 1)
    known = np.unique(contexts.codes[able])
    rows[known] = jax.device_get(state[0]["codes"])[known]
    return rows


def _make_update(optimizer: optax.GradientTransformation):
    def loss(tables, pairs, negatives):
        codes = tables["codes"][pairs[0]]
        together = (codes * tables["around"][pairs[1]]).sum(axis=-1)
        apart = codes @ tables["around"][negatives].T
        return jax.nn.softplus(-together).mean() + NEGATIVE_WEIGHT * jax.nn.softplus(apart).mean()

    @jax.jit
    def update(tables, moments, pairs, negatives):
        grads = jax.grad(loss)(tables, jnp.asarray(pairs), jnp.asarray(negatives))
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(tables, updates), moments

    return update
