"""The pre-LN Transformer encoder, in which patients who share a row never see each other."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.dropout import Dropout

NEGATIVE = -1e30
STEEPEST = 4.0
ROTARY_BASE = 100.0


def attention_bias(patient_ids: jax.Array, visit_ids: jax.Array, slopes: tuple[float, ...]) -> jax.Array:
    """Returns what is added to attention scores: who may see whom, and how much nearer visits count.

    Args:
      patient_ids: (B, L) ints; 0 is padding, equal numbers are one patient.
      visit_ids: (B, L) int visit numbers.
      slopes: of each head, how much a score falls with each visit between query and key; all 0 for one bias.

    Returns:
      (B, H, L, L) float32, or (B, 1, L, L) where all slopes are 0: minus slope times visit distance within a patient
      (ALiBi, Press et al. 2022, on visits), and a large negative number between patients and for padding.
    """
    same = patient_ids[:, :, None] == patient_ids[:, None, :]
    allowed = (same & (patient_ids[:, None, :] != 0))[:, None]
    if not any(slopes):
        return jnp.where(allowed, 0.0, NEGATIVE)
    distance = jnp.abs(visit_ids[:, :, None] - visit_ids[:, None, :]).astype(jnp.float32)
    return jnp.where(allowed, -jnp.asarray(slopes)[None, :, None, None] * distance[:, None], NEGATIVE)


def visit_slopes(num_heads: int) -> tuple[float, ...]:
    """Returns slopes from steep, which sees little but its own visit, in even ratios to 0, which sees all alike.

    >>> visit_slopes(4)
    (4.0, 1.0, 0.25, 0.0)
    """
    return (*(STEEPEST * 4.0 ** (-4 * head / num_heads) for head in range(num_heads - 1)), 0.0)


def rotation(positions: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and sines of the rotary encoding of positions (Su et al. 2021), (B, 1, L, size // 2) each."""
    frequencies = ROTARY_BASE ** (-jnp.arange(size // 2) / (size // 2))
    angles = positions[:, None, :, None] * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cosines_and_sines: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates (B, H, L, size) queries or keys, the first half of their width against the second."""
    cosines, sines = cosines_and_sines
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosines - second * sines, first * sines + second * cosines], axis=-1)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) within patients.

    Attributes:
      config: sizes and choices.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, rotary: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        """Maps (B, L, D) to (B, L, D); `bias` and `rotary` are what `attention_bias` and `rotation` gave."""
        rows, length, width = x.shape
        heads = self.config.num_heads
        qkv = nn.Dense(3 * width, name="qkv")(x).reshape(rows, length, 3, heads, width // heads)
        query, key, value = (qkv[:, :, index].transpose(0, 2, 1, 3) for index in range(3))
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        scores = jnp.matmul(query * (width // heads) ** -0.5, key.transpose(0, 1, 3, 2))
        weights = nn.softmax(scores + bias, axis=-1)
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
    def __call__(self, x: jax.Array, bias: jax.Array, rotary, deterministic: bool) -> jax.Array:
        """Maps (B, L, D) to (B, L, D)."""
        dropout = Dropout(self.config.dropout)
        attended = SelfAttention(self.config, name="attention")(nn.LayerNorm(name="attention_norm")(x), bias, rotary)
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
    def __call__(self, x, patient_ids, visit_ids, positions, deterministic: bool = True) -> jax.Array:
        """Maps (B, L, D) to (B, L, D) with attention within equal, non-zero `patient_ids` (B, L)."""
        heads = self.config.num_heads
        bias = attention_bias(patient_ids, visit_ids, visit_slopes(heads) if self.config.visit_bias else (0.0,) * heads)
        rotary = rotation(positions, self.config.hidden_dim // heads) if self.config.rotary else None
        for layer in range(self.config.num_layers):
            x = EncoderBlock(self.config, name=f"block_{layer}")(x, bias, rotary, deterministic)
        return nn.LayerNorm(name="norm")(x)
