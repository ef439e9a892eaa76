"""Heads that map hidden states to logits, days and event rates."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from behrt_jax.models import fused
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.dropout import Dropout
from behrt_jax.models.layers import Dense, LayerNorm, ramps

AGE_KNOTS = tuple(range(0, 101, 10))  # years
GAP_DAYS = (0, 0.04, 0.25, 1, 2, 4, 7, 10, 14, 21, 28, 35, 60, 90, 120, 180, 270, 350, 365, 380, 540, 730, 1096, 1826)
QUANTILES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of values, as the head of values predicts them
LOG_RATE = math.log(1 / 36_525.0)  # once in a hundred years; pre-training replaces it with the rates of its data


class CodeHead(nn.Module):
    """A dense layer, GELU and layer normalisation, then scores against the code table (Devlin et al. 2019).

    Attributes:
      config: architecture.
    """

    config: BEHRTConfig

    @nn.compact
    def queries(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (..., embedding_dim) queries of (..., D) hidden states, and the (V,) bias of the codes."""
        transformed = fused.gelu(Dense(self.config.embedding_dim, name="transform")(hidden))
        normalized, affine = LayerNorm(name="norm")(transformed)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.config.vocab_size,))
        return affine.apply(normalized), bias

    def __call__(self, hidden: jax.Array, score_codes: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Maps (..., D) hidden states to (..., V) logits; `score_codes` maps (..., embedding_dim) to (..., V)."""
        queries, bias = self.queries(hidden)
        return score_codes(queries) + jax.lax.broadcast_to_rank(bias, queries.ndim)


class ClassificationHead(nn.Module):
    """A dense layer on the patient embedding (after dropout) and optional covariates.

    Attributes:
      config: architecture.
      num_labels: logits per patient.
    """

    config: BEHRTConfig
    num_labels: int

    @nn.compact
    def __call__(self, pooled: jax.Array, deterministic: bool, covariates: jax.Array | None = None) -> jax.Array:
        """Maps (..., D) patient embeddings, and (..., F) covariates, to (..., num_labels) logits."""
        pooled = Dropout(self.config.dropout)(pooled, deterministic)
        if covariates is not None:
            pooled = jnp.concatenate([pooled, covariates.astype(pooled.dtype)], axis=-1)
        return nn.Dense(self.num_labels, name="output")(pooled)


class GapLayer(nn.Module):
    """A residual MLP that conditions states on the number of days until the visit to predict.

    Attributes:
      config: architecture.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, states: jax.Array, gaps: jax.Array) -> jax.Array:
        """Maps (..., D) states and (...) days to (..., D); states are unchanged where days are NaN."""
        is_known, width = ~jnp.isnan(gaps)[..., None], self.config.hidden_dim
        days = ramps(gaps, GAP_DAYS).astype(states.dtype)
        inputs = jnp.concatenate([nn.LayerNorm(name="norm")(states), days], axis=-1)
        hidden = nn.gelu(nn.Dense(2 * width, name="input")(inputs))
        return states + jnp.where(is_known, nn.Dense(width, name="output")(hidden), 0.0)


class DaysHead(nn.Module):
    """A linear head for the expected log(1 + days) to the next visit; its bias starts at four weeks."""

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        """Maps (..., D) states to (...) float32."""
        bias_init = nn.initializers.constant(math.log1p(28.0))
        return nn.Dense(1, bias_init=bias_init, name="output")(states).astype(jnp.float32)[..., 0]


class ValueHead(nn.Module):
    """Quantiles of the value of a masked code, given the code; ascending, and those of a normal distribution at first.

    Attributes:
      config: architecture.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, states: jax.Array, codes: jax.Array) -> jax.Array:
        """Maps (..., D) states and (..., embedding_dim) code embeddings to (..., QUANTILES) float32."""
        inputs = jnp.concatenate([nn.LayerNorm(name="norm")(states), codes.astype(states.dtype)], axis=-1)
        hidden = nn.gelu(nn.Dense(self.config.hidden_dim, name="input")(inputs))
        start = jax.scipy.stats.norm.ppf(jnp.asarray(QUANTILES))
        bias = jnp.concatenate([start[:1], jnp.log(jnp.expm1(jnp.diff(start)))])  # inverse of the softplus below
        raw = nn.Dense(len(QUANTILES), bias_init=lambda *_: bias, name="output")(hidden).astype(jnp.float32)
        return jnp.cumsum(jnp.concatenate([raw[..., :1], nn.softplus(raw[..., 1:])], axis=-1), axis=-1)


class EventHead(nn.Module):
    """Piecewise-constant rates of every code (MOTOR, Steinberg et al. 2024), low-rank: one query per time bin.

    Adds a log rate of each code by age, linear between `AGE_KNOTS`, which the low-rank part cannot represent.

    Attributes:
      config: architecture.
      num_bins: number of time bins.
    """

    config: BEHRTConfig
    num_bins: int

    @nn.compact
    def __call__(self, states: jax.Array, ages: jax.Array, score_codes: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Maps (..., D) states and (...) ages (years, NaN if unknown) to (..., bins, V) float32 log rates per day."""
        width = self.config.embedding_dim
        queries = nn.gelu(nn.Dense(self.num_bins * width, name="transform")(states))
        queries = nn.LayerNorm(name="norm")(queries.reshape(*states.shape[:-1], self.num_bins, width))
        log_rates = self.param("log_rates", nn.initializers.constant(LOG_RATE), (self.config.vocab_size,))
        age_rates = self.param("age_rates", nn.initializers.zeros_init(), (len(AGE_KNOTS), self.config.vocab_size))
        scores = (score_codes(queries) * width**-0.5).astype(jnp.float32)
        rates = jnp.matmul(age_shares(ages), age_rates)[..., None, :] + jax.lax.broadcast_to_rank(
            log_rates, scores.ndim
        )
        return scores + rates


def age_shares(ages: jax.Array) -> jax.Array:
    """Returns (..., knots) float32 weights that interpolate (...) years between `AGE_KNOTS`; zeros for NaN."""
    knots = jax.lax.broadcast_to_rank(jnp.asarray(AGE_KNOTS, jnp.float32), ages.ndim + 1)
    distances = jnp.abs(jnp.clip(ages, AGE_KNOTS[0], AGE_KNOTS[-1])[..., None] - knots)
    return jnp.nan_to_num(jnp.maximum(1 - distances / (AGE_KNOTS[1] - AGE_KNOTS[0]), 0.0))
