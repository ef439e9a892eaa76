"""Pooling of token states to patient embeddings: first token, last token, mean, maximum, or attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from behrt_jax.models.encoder import take_places


def membership(patient_ids: jax.Array, num_patients: int) -> jax.Array:
    """Returns the (B, P, L) bool mask of each patient's tokens from (B, L) `patient_ids` (0 = padding, 1..P)."""
    return patient_ids[:, None, :] == jnp.arange(1, num_patients + 1)[None, :, None]


def first_places(members: jax.Array) -> jax.Array:
    """Returns the (B, P) index in the row of each patient's first token, its `[CLS]`; 0 for one without tokens."""
    return jnp.argmax(members, axis=-1)


def last_places(members: jax.Array) -> jax.Array:
    """Returns the (B, P) index in the row of each patient's last token; the last of the row for one without tokens."""
    return members.shape[-1] - 1 - jnp.argmax(members[..., ::-1], axis=-1)


def pool_first(hidden: jax.Array, members: jax.Array) -> jax.Array:
    """Returns the state of each patient's first token, its `[CLS]`: (B, P, D); zeros for a patient without tokens."""
    return zero_if_empty(take_places(hidden, first_places(members)), members)


def pool_last(hidden: jax.Array, members: jax.Array) -> jax.Array:
    """Returns the state of each patient's last token: (B, P, D); zeros for a patient without tokens."""
    return zero_if_empty(take_places(hidden, last_places(members)), members)


def pool_mean(hidden: jax.Array, members: jax.Array) -> jax.Array:
    """Returns the mean of each patient's states: (B, P, D); zeros for a patient without tokens."""
    weights = members / jnp.maximum(members.sum(axis=-1, keepdims=True), 1)
    return jnp.matmul(weights.astype(hidden.dtype), hidden)


def pool_max(hidden: jax.Array, members: jax.Array) -> jax.Array:
    """Returns the maximum of each patient's states per feature: (B, P, D); zeros for a patient without tokens."""
    lowest = jnp.finfo(hidden.dtype).min
    # Not `max`: its gradient compares values that XLA may have rounded twice, and is NaN if none equals the maximum.
    indices = jnp.where(members[..., None], hidden[:, None], lowest).argmax(axis=2)
    return zero_if_empty(jnp.take_along_axis(hidden, indices, axis=1), members)


POOLS = {"cls": pool_first, "last": pool_last, "mean": pool_mean, "max": pool_max}
SINGLE_TOKEN = {"cls": first_places, "last": last_places}


def zero_if_empty(pooled: jax.Array, members: jax.Array) -> jax.Array:
    """Returns (B, P, D) embeddings with zeros for patients without tokens."""
    return jnp.where(members.any(axis=-1)[:, :, None], pooled, 0.0)


class AttentionPooling(nn.Module):
    """Mean of a patient's states weighted by a softmax of learned scores (Bahdanau et al. 2015, one query vector)."""

    @nn.compact
    def __call__(self, hidden: jax.Array, members: jax.Array) -> jax.Array:
        """Maps (B, L, D) states and (B, P, L) members to (B, P, D); zeros for a patient without tokens."""
        scores = nn.Dense(1, use_bias=False, name="scores")(hidden)[:, None, :, 0]
        weights = nn.softmax(jnp.where(members, scores, -1e30), axis=-1)
        return zero_if_empty(jnp.matmul(weights, hidden), members)
