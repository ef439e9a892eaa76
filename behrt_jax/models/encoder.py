"""The pre-LN Transformer encoder; patients who share a row never attend to each other."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from behrt_jax.models import fused
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.dropout import Dropout
from behrt_jax.models.layers import Dense, LayerNorm

NEGATIVE = -1e30
STEEPEST = 4.0
ROTARY_BASE = 100.0
ROTARY_STEPS_PER_YEAR = 12.0  # with rotary ages, a month rotates as far as one position does


class Tokens(NamedTuple):
    """Where tokens stand, as attention needs it.

    Attributes:
      patient_ids: (B, L) ints; 0 is padding, equal numbers are one patient.
      visit_ids: (B, L) int visit numbers.
      times: (B, L) ints, the order of recording times within a patient.
      rotary: of the queries and keys of the tokens; None without a rotary encoding.
    """

    patient_ids: jax.Array
    visit_ids: jax.Array
    times: jax.Array
    rotary: fused.Rotary | None

    def at(self, places: jax.Array) -> "Tokens":
        """Returns the tokens at (B, K) indices of the row."""

        def take(values: jax.Array) -> jax.Array:
            return take_places(values[..., None], places)[..., 0]

        rotary = self.rotary and fused.Rotary(*(take_places(part[:, 0], places)[:, None] for part in self.rotary))
        return Tokens(take(self.patient_ids), take(self.visit_ids), take(self.times), rotary)


def take_places(hidden: jax.Array, places: jax.Array) -> jax.Array:
    """Gathers the (B, K, D) states at (B, K) indices of (B, L, D)."""
    return jnp.take_along_axis(hidden, places[:, :, None], axis=1)


def attention_bias(queries: Tokens, keys: Tokens, slopes: tuple[float, ...], causal: bool = False) -> jax.Array:
    """Returns the bias of attention scores: masks other patients, padding and the future, and penalises distance.

    Args:
      queries: the tokens that attend, Q a row.
      keys: all L tokens of the rows.
      slopes: for each head, the decrease of a score per visit between query and key; if all are 0, heads share a bias.
      causal: whether a token attends only to tokens recorded no later than itself.

    Returns:
      (B, H, Q, L) float32, or (B, 1, Q, L) if all slopes are 0: minus slope times visit distance within a patient
      (ALiBi, Press et al. 2022, on visits), and a large negative number where attention is masked.
    """

    def pairs(of_queries: jax.Array, of_keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        return of_queries[:, :, None], of_keys[:, None, :]

    query_ids, key_ids = pairs(queries.patient_ids, keys.patient_ids)
    allowed = (query_ids == key_ids) & (key_ids != 0)
    if causal:
        query_times, key_times = pairs(queries.times, keys.times)
        allowed &= key_times <= query_times
    allowed = allowed[:, None]
    if not any(slopes):
        return jnp.where(allowed, 0.0, NEGATIVE)
    query_visits, key_visits = pairs(queries.visit_ids, keys.visit_ids)
    distance = jnp.abs(query_visits - key_visits).astype(jnp.float32)
    return jnp.where(allowed, -jnp.asarray(slopes)[None, :, None, None] * distance[:, None], NEGATIVE)


def visit_slopes(num_heads: int) -> tuple[float, ...]:
    """Returns one slope per head, from steep (little beyond the own visit) geometrically to 0 (all visits alike).

    >>> visit_slopes(4)
    (4.0, 1.0, 0.25, 0.0)
    """
    return (*(STEEPEST * 4.0 ** (-4 * head / num_heads) for head in range(num_heads - 1)), 0.0)


def make_rotary(places: jax.Array, size: int) -> fused.Rotary:
    """Returns the rotary encoding of (B, L) places for heads of width `size`."""
    frequencies = ROTARY_BASE ** (-jnp.arange(size // 2) / (size // 2))
    angles = places[:, None, :, None] * frequencies[None, None, None, :]
    cosines, sines = jnp.cos(angles), jnp.sin(angles)
    return fused.Rotary(jnp.concatenate([cosines, cosines], -1), jnp.concatenate([-sines, sines], -1))


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) within patients; sows its weights (B, H, Q, L).

    Attributes:
      config: architecture.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, x: jax.Array, affine: fused.Affine, queries: Tokens, keys: Tokens, bias: jax.Array, places):
        """Maps (B, L, D) to (B, Q, D).

        Args:
          x: (B, L, D), normalised.
          affine: the scale and shift of the normalisation.
          queries: the tokens at `places`.
          keys: all tokens.
          bias: from `attention_bias` of the two.
          places: (B, Q) int indices of the tokens that attend; None for all.
        """
        width, dtype, heads = x.shape[-1], compute_dtype(self.config), self.config.num_heads
        kernel, shift = Dense(3 * width, dtype, name="qkv").weights(width, affine)
        x = x.astype(kernel.dtype)
        asking = x if places is None else take_places(x, places)
        inputs = (
            fused.dense(asking, kernel[:, :width], shift[:width]),
            fused.dense(x, kernel[:, width:], shift[width:]),
            bias,
            queries.rotary,
            keys.rotary,
        )
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "weights", fused.attention_weights(*inputs, heads))
        return Dense(width, dtype, name="output")(fused.attend(*inputs, heads))


class FeedForward(nn.Module):
    """Two dense layers with a GELU in between.

    Attributes:
      config: architecture.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, x: jax.Array, affine: fused.Affine) -> jax.Array:
        """Maps (B, L, D) to (B, L, D); `affine` is applied to x first."""
        dtype = compute_dtype(self.config)
        hidden = fused.gelu(Dense(self.config.feedforward_dim, dtype, name="input")(x, affine))
        return Dense(self.config.hidden_dim, dtype, name="output")(hidden)


class EncoderBlock(nn.Module):
    """Attention and feed-forward layers, each on normalised input with a residual (pre-LN, Xiong et al. 2020).

    Attributes:
      config: architecture.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, x, queries: Tokens, keys: Tokens, bias, places, deterministic: bool) -> jax.Array:
        """Maps (B, L, D) to the (B, Q, D) states at `places`; arguments as in `SelfAttention`."""
        dropout = Dropout(self.config.dropout)
        normalized, affine = LayerNorm(name="attention_norm")(x)
        attention = SelfAttention(self.config, name="attention")(normalized, affine, queries, keys, bias, places)
        x = (x if places is None else take_places(x, places)) + dropout(attention, deterministic)
        feedforward = FeedForward(self.config, name="feedforward")(*LayerNorm(name="feedforward_norm")(x))
        return x + dropout(feedforward, deterministic)


class Encoder(nn.Module):
    """A stack of Transformer blocks and a final layer normalisation.

    Attributes:
      config: architecture.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(
        self,
        x,
        patient_ids,
        visit_ids,
        positions,
        years,
        deterministic: bool = True,
        causal: bool = False,
        time_ranks=None,
        places=None,
    ) -> jax.Array:
        """Maps (B, L, D) to (B, L, D) with attention within equal, non-zero `patient_ids` (B, L).

        With `places` (B, K), returns the (B, K, D) states at these indices; the last block computes no others.
        """
        config, heads = self.config, self.config.num_heads
        slopes = visit_slopes(heads) if config.visit_bias else (0.0,) * heads
        tokens = Tokens(patient_ids, visit_ids, visit_ids if time_ranks is None else time_ranks, None)
        if config.rotary != "none":
            years = jnp.clip(jnp.nan_to_num(years), -1e4, 1e4)  # a NaN here would spread to all patients of the row
            angles = positions if config.rotary == "positions" else years * ROTARY_STEPS_PER_YEAR
            tokens = tokens._replace(rotary=make_rotary(angles, config.hidden_dim // heads))
        bias = attention_bias(tokens, tokens, slopes, causal)
        for layer in range(config.num_layers - 1):
            x = EncoderBlock(config, name=f"block_{layer}")(x, tokens, tokens, bias, None, deterministic)
        queries = tokens if places is None else tokens.at(places)
        bias = bias if places is None else attention_bias(queries, tokens, slopes, causal)
        last = EncoderBlock(config, name=f"block_{config.num_layers - 1}")
        normalized, affine = LayerNorm(name="norm")(last(x, queries, tokens, bias, places, deterministic))
        return affine.apply(normalized)


def visit_slots(patient_ids: jax.Array, visit_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns whether each token starts a visit, (B, L) bool, and the index of the first token of its visit, (B, L).

    Padding starts no visit; its index is meaningless.
    """
    changes = (jnp.diff(patient_ids, axis=1) != 0) | (jnp.diff(visit_ids, axis=1) != 0)
    starts = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True) & (patient_ids != 0)
    indices = jnp.where(starts, jnp.arange(starts.shape[1])[None, :], 0)
    return starts, jax.lax.cummax(indices, axis=1)


def compute_dtype(config: BEHRTConfig):
    """Returns the dtype of matrix products; for float32 None (the dtype of the inputs), so that float64 works too."""
    return jnp.bfloat16 if config.dtype == "bfloat16" else None
