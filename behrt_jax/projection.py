"""A projection of frozen embeddings in which patients of one group lie together: supervised contrastive learning."""

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


def contrastive_loss(projected: jax.Array, labels: jax.Array, temperature: float = TEMPERATURE) -> jax.Array:
    """Returns the supervised contrastive loss (Khosla et al. 2020, L_out) in nats.

    For each row, minus the mean log-probability of the others of its group under a softmax of cosines over all others.

    Args:
      projected: (N, P) unit vectors.
      labels: (N,) int groups; a row without another of its group does not count.
      temperature: of the softmax.
    """
    others = 1 - jnp.eye(len(labels))
    scores = jnp.where(others > 0, projected @ projected.T / temperature, -1e30)
    log_chances = jnp.where(others > 0, jax.nn.log_softmax(scores, axis=1), 0.0)
    alike = (labels[:, None] == labels[None, :]) * others
    number = alike.sum(axis=1)
    losses = -(alike * log_chances).sum(axis=1) / jnp.maximum(number, 1)
    return (losses * (number > 0)).sum() / jnp.maximum((number > 0).sum(), 1)


def project(weights: list[dict[str, Any]], embeddings: jax.Array) -> jax.Array:
    """Maps (N, D) scaled embeddings to (N, P) unit vectors: dense layers with GELU between."""
    for layer in weights[:-1]:
        embeddings = jax.nn.gelu(embeddings @ layer["kernel"] + layer["bias"][None])
    found = embeddings @ weights[-1]["kernel"] + weights[-1]["bias"][None]
    return found / jnp.maximum(jnp.linalg.norm(found, axis=1, keepdims=True), 1e-6)


def fit_projection(
    embeddings: np.ndarray, labels: np.ndarray, steps: int, dropout: float, weight_decay: float, seed: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
    """Fits a projection to (N, D) embeddings and their (N,) groups with AdamW; a function of the seed.

    Args:
      embeddings: of train.
      labels: of train.
      steps: each on `BATCH` rows, drawn anew.
      dropout: share of the inputs set to 0 in training, other ones in each row and step.
      weight_decay: of AdamW.
      seed: of the first weights, the rows drawn and the dropout.

    Returns:
      A function from (M, D) embeddings to (M, P) float32 unit vectors.
    """
    mean, scale = embeddings.mean(axis=0), 1 / (embeddings.std(axis=0) + 1e-3)
    inputs, groups = jnp.asarray((embeddings - mean) * scale, jnp.float32), jnp.asarray(labels)
    widths, key = (embeddings.shape[1], *WIDTHS), jax.random.key(seed)
    weights = [
        {
            "kernel": jax.random.normal(jax.random.fold_in(key, place), shape) * (2 / sum(shape)) ** 0.5,
            "bias": jnp.zeros(shape[1]),
        }
        for place, shape in enumerate(zip(widths[:-1], widths[1:], strict=True))
    ]
    optimizer = optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps), weight_decay=weight_decay)

    def loss(weights, key):
        draw, drop = jax.random.split(key)
        rows = jax.random.permutation(draw, len(labels))[:BATCH]
        kept = jax.random.bernoulli(drop, 1 - dropout, (len(rows), widths[0]))
        return contrastive_loss(project(weights, inputs[rows] * kept / (1 - dropout)), groups[rows])

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
