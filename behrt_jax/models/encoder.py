"""The pre-LN Transformer encoder, in which patients who share a row never see each other."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.dropout import Dropout

NEGATIVE = -1e30


def attention_pairs(patient_ids: jax.Array) -> jax.Array:
    """Returns which tokens may attend to which.

    Args:
      patient_ids: (B, L) ints; 0 is padding, equal numbers are one patient.

    Returns:
      (B, 1, L, L) bool: query and key belong to the same patient and are not padding.
    """
    same = patient_ids[:, :, None] == patient_ids[:, None, :]
    return (same & (patient_ids[:, None, :] != 0))[:, None]


def rotate(x, where, base=float(__import__("os").environ.get("BASE","1000"))):
    half = x.shape[-1] // 2
    freq = base ** (-jnp.arange(half) / half)
    ang = where[:, None, :, None] * freq
    c, s = jnp.cos(ang), jnp.sin(ang)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * c - b * s, a * s + b * c], -1)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) within patients.

    Attributes:
      config: sizes and choices.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array, where=None) -> jax.Array:
        """Maps (B, L, D) to (B, L, D); `allowed` is (B, 1, L, L) bool."""
        rows, length, width = x.shape
        heads = self.config.num_heads
        qkv = nn.Dense(3 * width, name="qkv")(x).reshape(rows, length, 3, heads, width // heads)
        query, key, value = (qkv[:, :, index].transpose(0, 2, 1, 3) for index in range(3))
        import os
        mode = os.environ.get("REL", "none")
        if mode in ("rope", "ropepos"):
            query, key = rotate(query, where), rotate(key, where)
        scores = jnp.matmul(query * (width // heads) ** -0.5, key.transpose(0, 1, 3, 2))
        if mode == "alibi":
            dist = jnp.abs(where[:, :, None] - where[:, None, :]).astype(jnp.float32)[:, None]
            slopes = jnp.array([4.0, 1.0, 0.25, 0.0])[:heads] if heads == 4 else 2.0 ** -jnp.arange(heads)
            scores = scores - dist * slopes[None, :, None, None]
        weights = nn.softmax(jnp.where(allowed, scores, NEGATIVE), axis=-1)
        mixed = jnp.matmul(weights, value).transpose(0, 2, 1, 3).reshape(rows, length, width)
        return nn.Dense(width, name="output")(mixed)


class FeedForward(nn.Module):
    """Two dense layers with GELU between.

    Attributes:
      config: sizes and choices.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, L, D) to (B, L, D)."""
        hidden = nn.gelu(nn.Dense(self.config.feedforward_dim, name="input")(x))
        return nn.Dense(self.config.hidden_dim, name="output")(hidden)


class EncoderBlock(nn.Module):
    """Attention and feed-forward, each on normalised input and added to the stream (pre-LN, Xiong et al. 2020).

    Attributes:
      config: sizes and choices.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array, deterministic: bool, where=None) -> jax.Array:
        """Maps (B, L, D) to (B, L, D)."""
        dropout = Dropout(self.config.dropout)
        attended = SelfAttention(self.config, name="attention")(nn.LayerNorm(name="attention_norm")(x), allowed, where)
        x = x + dropout(attended, deterministic)
        transformed = FeedForward(self.config, name="feedforward")(nn.LayerNorm(name="feedforward_norm")(x))
        return x + dropout(transformed, deterministic)


class Encoder(nn.Module):
    """A stack of blocks and a last normalisation.

    Attributes:
      config: sizes and choices.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, x: jax.Array, patient_ids: jax.Array, deterministic: bool = True, where=None) -> jax.Array:
        """Maps (B, L, D) to (B, L, D) with attention within equal, non-zero `patient_ids` (B, L)."""
        allowed = attention_pairs(patient_ids)
        for layer in range(self.config.num_layers):
            x = EncoderBlock(self.config, name=f"block_{layer}")(x, allowed, deterministic, where)
        return nn.LayerNorm(name="norm")(x)
