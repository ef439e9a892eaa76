"""The pre-LN Transformer encoder; patients who share a row never attend to each other."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.dropout import Dropout

NEGATIVE = -1e30
STEEPEST = 4.0
ROTARY_BASE = 100.0
ROTARY_STEPS_PER_YEAR = 12.0  # with rotary ages, a month rotates as far as one position does


def attention_bias(
    patient_ids: jax.Array,
    visit_ids: jax.Array,
    slopes: tuple[float, ...],
    causal: bool = False,
    time_ranks: jax.Array | None = None,
) -> jax.Array:
    """Returns the bias of attention scores: masks other patients, padding and the future, and penalises distance.

    Args:
      patient_ids: (B, L) ints; 0 is padding, equal numbers are one patient.
      visit_ids: (B, L) int visit numbers.
      slopes: for each head, the decrease of a score per visit between query and key; if all are 0, heads share a bias.
      causal: whether a token attends only to tokens recorded no later than itself.
      time_ranks: (B, L) ints, the order of recording times within a patient; `visit_ids` if not given.

    Returns:
      (B, H, L, L) float32, or (B, 1, L, L) if all slopes are 0: minus slope times visit distance within a patient
      (ALiBi, Press et al. 2022, on visits), and a large negative number where attention is masked.
    """
    same_patient = patient_ids[:, :, None] == patient_ids[:, None, :]
    allowed = same_patient & (patient_ids[:, None, :] != 0)
    if causal:
        order = visit_ids if time_ranks is None else time_ranks
        allowed &= order[:, None, :] <= order[:, :, None]
    allowed = allowed[:, None]
    if not any(slopes):
        return jnp.where(allowed, 0.0, NEGATIVE)
    distance = jnp.abs(visit_ids[:, :, None] - visit_ids[:, None, :]).astype(jnp.float32)
    return jnp.where(allowed, -jnp.asarray(slopes)[None, :, None, None] * distance[:, None], NEGATIVE)


def visit_slopes(num_heads: int) -> tuple[float, ...]:
    """Returns one slope per head, from steep (little beyond the own visit) geometrically to 0 (all visits alike).

    >>> visit_slopes(4)
    (4.0, 1.0, 0.25, 0.0)
    """
    return (*(STEEPEST * 4.0 ** (-4 * head / num_heads) for head in range(num_heads - 1)), 0.0)


def rotation(places: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and sines of the rotary encoding (Su et al. 2021) of (B, L) places: (B, 1, L, size // 2) each."""
    frequencies = ROTARY_BASE ** (-jnp.arange(size // 2) / (size // 2))
    angles = places[:, None, :, None] * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cosines_and_sines: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates (B, H, L, size) queries or keys, pairing the first half of their width with the second."""
    cosines, sines = cosines_and_sines
    first, second = jnp.split(x, 2, axis=-1)
    output = jnp.concatenate([first * cosines - second * sines, first * sines + second * cosines], axis=-1)
    return output.astype(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) within patients; sows its weights (B, H, L, L).

    Attributes:
      config: architecture.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, rotary: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        """Maps (B, L, D) to (B, L, D), with `bias` from `attention_bias` and `rotary` from `rotation`."""
        rows, length, width = x.shape
        heads, dtype = self.config.num_heads, compute_dtype(self.config)
        qkv = nn.Dense(3 * width, dtype=dtype, name="qkv")(x).reshape(rows, length, 3, heads, width // heads)
        query, key, value = (qkv[:, :, index].transpose(0, 2, 1, 3) for index in range(3))
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        scores = jnp.matmul(query * (width // heads) ** -0.5, key.transpose(0, 1, 3, 2))
        weights = nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) + bias, axis=-1)
        self.sow("intermediates", "weights", weights)  # costs nothing unless the caller asks for `intermediates`
        context = jnp.matmul(weights.astype(value.dtype), value).transpose(0, 2, 1, 3).reshape(rows, length, width)
        return nn.Dense(width, dtype=dtype, name="output")(context)


class FeedForward(nn.Module):
    """Two dense layers with a GELU in between.

    Attributes:
      config: architecture.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, L, D) to (B, L, D)."""
        dtype = compute_dtype(self.config)
        hidden = nn.gelu(nn.Dense(self.config.feedforward_dim, dtype=dtype, name="input")(x))
        return nn.Dense(self.config.hidden_dim, dtype=dtype, name="output")(hidden)


class EncoderBlock(nn.Module):
    """Attention and feed-forward layers, each on normalised input with a residual (pre-LN, Xiong et al. 2020).

    Attributes:
      config: architecture.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, rotary, deterministic: bool) -> jax.Array:
        """Maps (B, L, D) to (B, L, D)."""
        dropout = Dropout(self.config.dropout)
        attention = SelfAttention(self.config, name="attention")(nn.LayerNorm(name="attention_norm")(x), bias, rotary)
        x = x + dropout(attention, deterministic)
        feedforward = FeedForward(self.config, name="feedforward")(nn.LayerNorm(name="feedforward_norm")(x))
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
    ) -> jax.Array:
        """Maps (B, L, D) to (B, L, D) with attention within equal, non-zero `patient_ids` (B, L)."""
        config, heads = self.config, self.config.num_heads
        slopes = visit_slopes(heads) if config.visit_bias else (0.0,) * heads
        bias = attention_bias(patient_ids, visit_ids, slopes, causal, time_ranks)
        rotary = None
        if config.rotary != "none":
            years = jnp.clip(jnp.nan_to_num(years), -1e4, 1e4)  # a NaN here would spread to all patients of the row
            places = positions if config.rotary == "positions" else years * ROTARY_STEPS_PER_YEAR
            rotary = rotation(places, config.hidden_dim // heads)
        for layer in range(config.num_layers):
            x = EncoderBlock(config, name=f"block_{layer}")(x, bias, rotary, deterministic)
        return nn.LayerNorm(name="norm")(x)


class HierarchicalEncoder(nn.Module):
    """A Transformer over visit vectors pooled from codes; each token adds its own vector to its visit's state.

    A visit's vector is the mean of its tokens, as in the visit-level models of Choi et al. (2016) and Li et al. (2022).
    The tokens of a visit must be contiguous. In a causal model, each recording time within a visit has a separate
    vector, so that no vector includes later records.

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
    ) -> jax.Array:
        """Maps (B, L, D) to (B, L, D); visits attend to those of equal, non-zero `patient_ids` (B, L)."""
        del positions  # the visit number is the position of a visit
        starts, slots = visit_slots(patient_ids, visit_ids, time_ranks if causal else None)
        indices = jnp.arange(patient_ids.shape[1])[None, None, :]
        members = (slots[:, :, None] == indices) & (patient_ids != 0)[:, :, None]  # (B, L, visits)
        weights = members / jnp.maximum(members.sum(axis=1, keepdims=True), 1)
        visits = jnp.einsum("blv,bld->bvd", weights.astype(x.dtype), x)
        # A visit is at the index of its first token, with that token's patient, number and age; the rest is padding.
        owners = jnp.where(starts, patient_ids, 0)
        encoder = Encoder(self.config, name="visits")
        states = encoder(visits, owners, visit_ids, visit_ids, years, deterministic, causal, time_ranks)
        context = jnp.take_along_axis(states, slots[:, :, None], axis=1)
        return nn.LayerNorm(name="norm")(x + context)


def visit_slots(
    patient_ids: jax.Array, visit_ids: jax.Array, time_ranks: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns whether each token starts a visit, (B, L) bool, and the index of the first token of its visit, (B, L).

    Padding starts no visit; its index is meaningless. With `time_ranks`, each recording time starts a new visit.
    """
    changes = (jnp.diff(patient_ids, axis=1) != 0) | (jnp.diff(visit_ids, axis=1) != 0)
    if time_ranks is not None:
        changes |= jnp.diff(time_ranks, axis=1) != 0
    starts = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True) & (patient_ids != 0)
    indices = jnp.where(starts, jnp.arange(starts.shape[1])[None, :], 0)
    return starts, jax.lax.cummax(indices, axis=1)


def compute_dtype(config: BEHRTConfig):
    """Returns the dtype of matrix products; for float32 None (the dtype of the inputs), so that float64 works too."""
    return jnp.bfloat16 if config.dtype == "bfloat16" else None
