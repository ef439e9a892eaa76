"""A projection of frozen embeddings in which patients with the same diseases lie together: supervised contrastive."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

WIDTHS = (256, 32)
TEMPERATURE = 0.1
BATCH = 256
LEARNING_RATE = 1e-3


def contrastive_loss(projected: jax.Array, alike: jax.Array, temperature: float = TEMPERATURE) -> jax.Array:
    """Returns the supervised contrastive loss (Khosla et al. 2020, L_out) in nats.

    For each row, minus the mean log-probability of those that are like it under a softmax of cosines over all others.

    Args:
      projected: (N, P) unit vectors.
      alike: (N, N) how much two rows are alike, 0 to 1: weights of that mean, 1 and 0 where groups exclude each other;
        the diagonal is not read, and a row that is like no other does not count.
      temperature: of the softmax.
    """
    others = 1 - jnp.eye(len(alike))
    scores = jnp.where(others > 0, projected @ projected.T / temperature, -1e30)
    log_chances = jnp.where(others > 0, jax.nn.log_softmax(scores, axis=1), 0.0)
    alike = alike * others
    number = alike.sum(axis=1)
    losses = -(alike * log_chances).sum(axis=1) / jnp.maximum(number, 1e-6)
    return (losses * (number > 0)).sum() / jnp.maximum((number > 0).sum(), 1)


def likeness(has: jax.Array) -> jax.Array:
    """Returns the diseases that two patients share over those that either has, (N, N); 1 where both have none."""
    has = has.astype(jnp.float32)
    both, number = has @ has.T, has.sum(axis=1)
    either = number[:, None] + number[None, :] - both
    return jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0)


def project(weights: list[dict[str, Any]], embeddings: jax.Array) -> jax.Array:
    """Maps (N, D) scaled embeddings to (N, P) unit vectors: dense layers with GELU between."""
    for layer in weights[:-1]:
        embeddings = jax.nn.gelu(embeddings @ layer["kernel"] + layer["bias"][None])
    found = embeddings @ weights[-1]["kernel"] + weights[-1]["bias"][None]
    return found / jnp.maximum(jnp.linalg.norm(found, axis=1, keepdims=True), 1e-6)


def fit_projection(
    embeddings: np.ndarray, has: np.ndarray, steps: int = 300, dropout: float = 0.3, decay: float = 0.1, seed: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
    """Fits a projection to (N, D) embeddings and their (N, G) bool diseases with AdamW; a function of the seed.

    Args:
      embeddings: of train.
      has: of train.
      steps: each on `BATCH` rows, drawn anew.
      dropout: share of the inputs set to 0 in training, other ones in each row and step.
      decay: of the weights.
      seed: of the first weights, the rows drawn and the dropout.

    Returns:
      A function from (M, D) embeddings to (M, P) float32 unit vectors.
    """
    mean, scale = embeddings.mean(axis=0), 1 / (embeddings.std(axis=0) + 1e-3)
    inputs, diseases = jnp.asarray((embeddings - mean) * scale, jnp.float32), jnp.asarray(has)
    widths, key = (embeddings.shape[1], *WIDTHS), jax.random.key(seed)
    weights = [
        {
            "kernel": jax.random.normal(jax.random.fold_in(key, place), shape) * (2 / sum(shape)) ** 0.5,
            "bias": jnp.zeros(shape[1]),
        }
        for place, shape in enumerate(zip(widths[:-1], widths[1:], strict=True))
    ]
    optimizer = optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps), weight_decay=decay)

    def loss(weights, key):
        draw, drop = jax.random.split(key)
        rows = jax.random.permutation(draw, len(has))[:BATCH]
        kept = jax.random.bernoulli(drop, 1 - dropout, (len(rows), widths[0]))
        return contrastive_loss(project(weights, inputs[rows] * kept / (1 - dropout)), likeness(diseases[rows]))

    def step(number, carry):
        weights, moments = carry
        updates, moments = optimizer.update(
            jax.grad(loss)(weights, jax.random.fold_in(key, len(widths) + number)), moments, weights
        )
        return optax.apply_updates(weights, updates), moments

    run = jax.jit(lambda carry: jax.lax.fori_loop(0, steps, step, carry))
    fitted = run((weights, optimizer.init(weights)))[0]
    apply = functools.partial(jax.jit(project), fitted)
    return lambda others: np.asarray(apply(jnp.asarray((others - mean) * scale, jnp.float32)))
