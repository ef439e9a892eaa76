"""Masked-code modelling: samples the codes to mask and scores the model's predictions for them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.models.fused import CUTOFFS, code_losses
from behrt_jax.models.heads import QUANTILES
from behrt_jax.objectives.base import Objective, apply_model
from behrt_jax.objectives.config import ObjectiveConfig

MASK_ID = 3
FIRST_CODE_ID = 5
INTERVAL = (0.1, 0.9)  # quantiles of values whose coverage is evaluated


class Masked(NamedTuple):
    """A batch with some codes masked.

    Attributes:
      inputs: (B, L) int32, `codes` with the masked ones replaced.
      positions: (B, K) int32, the masked indices in the row.
      labels: (B, K) int32, the original codes.
      weights: (B, K) float32, 1 for masked codes and 0 for unused slots.
    """

    inputs: jax.Array
    positions: jax.Array
    labels: jax.Array
    weights: jax.Array


class Replacement(NamedTuple):
    """How masked codes are replaced: by `[MASK]`, by a random code, or else not at all.

    Attributes:
      masked: share replaced by `[MASK]`.
      random: share replaced by a random code.
    """

    masked: float
    random: float


TRAINING = Replacement(masked=0.8, random=0.1)
EVALUATION = Replacement(masked=1.0, random=0.0)


def mask_codes(
    key: jax.Array,
    codes: jax.Array,
    maskable: jax.Array,
    rate: float,
    vocab_size: int,
    replacement: Replacement = TRAINING,
) -> Masked:
    """Masks a share of the codes of each row (Devlin et al. 2019).

    In each row, `rate` of the maskable codes are masked, rounded up or down at random so that the mean is exact. K is
    fixed at `rate` of the row length, which no row can exceed.

    Args:
      key: a PRNG key, used only for this batch.
      codes: (B, L) int32.
      maskable: (B, L) bool; False for special and static tokens and for padding.
      rate: share of the maskable codes to mask, 0 < rate <= 1.
      vocab_size: V.
      replacement: 80% `[MASK]`, 10% random, 10% unchanged in training; only `[MASK]` in evaluation, so that scores
        cover only codes that the model cannot see.

    Returns:
      The batch with K = ceil(rate * L).
    """
    rows, length = codes.shape
    choose_key, round_key, action_key, random_key = jax.random.split(key, 4)
    priorities = jax.random.uniform(choose_key, codes.shape)
    num_slots = math.ceil(rate * length)
    _, positions = jax.lax.top_k(jnp.where(maskable, priorities, -1.0), num_slots)
    num_masked = jnp.floor(rate * maskable.sum(axis=1) + jax.random.uniform(round_key, (rows,)))[:, None]
    is_masked = jnp.arange(num_slots)[None, :] < num_masked
    is_masked &= jnp.take_along_axis(maskable, positions, axis=1)  # rounding can ask for one code too many
    labels = jnp.take_along_axis(codes, positions, axis=1)
    action = jax.random.uniform(action_key, positions.shape)
    random_codes = jax.random.randint(random_key, positions.shape, FIRST_CODE_ID, vocab_size)
    is_random = action < replacement.masked + replacement.random
    substitutes = jnp.where(action < replacement.masked, MASK_ID, jnp.where(is_random, random_codes, labels))
    new_codes = jnp.where(is_masked, substitutes, labels).astype(codes.dtype)
    inputs = jax.vmap(lambda row, place, value: row.at[place].set(value))(codes, positions, new_codes)
    return Masked(inputs, positions, labels, is_masked.astype(jnp.float32))


def masked_outcomes(logits: jax.Array, masked: Masked) -> dict[str, jax.Array]:
    """Scores logits against the masked codes at each position.

    Args:
      logits: (B, K, V).
      masked: from `mask_codes`.

    Returns:
      `loss` (nats), `accuracy`, `top5_accuracy` and `top20_accuracy` (0 or 1), each (B, K) float32; ties
      count as errors.
    """
    logits = logits.astype(jnp.float32)
    label_logits = jnp.take_along_axis(logits, masked.labels[:, :, None], axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - label_logits[..., 0]
    rank = (jax.lax.stop_gradient(logits) >= jax.lax.stop_gradient(label_logits)).sum(axis=-1)
    return {"loss": loss, **{name: (rank <= k).astype(jnp.float32) for name, k in CUTOFFS.items()}}


def make_objective(model, config: ObjectiveConfig, has_value=None, replacement: Replacement = TRAINING) -> Objective:
    """Returns the masked-code objective, with the loss `mlm/loss` and, weighted, `value/loss`; see `joint`."""
    weights = {"mlm/loss": 1.0, **({"value/loss": config.value_weight} if config.value_weight else {})}

    def prepare(batch, key):
        maskable = batch["maskable"]
        if not config.mask_values:
            maskable &= ~jnp.asarray(has_value)[batch["codes"]]
        # The first half of the key seeded the masking of spans, now removed; the second keeps old runs as they were.
        mask_key = jax.random.split(key)[1]
        return batch, mask_codes(
            mask_key, batch["codes"], maskable, config.mask_rate, model.config.vocab_size, replacement
        )

    def measure(params, prepared, dropout_key):
        batch, masked = prepared
        if config.value_weight:
            arguments = {"method": "query_codes_and_values", "labels": masked.labels}
            codes, quantiles = _apply(model, params, batch, masked, dropout_key, **arguments)
            values = {"value/loss": value_loss(quantiles, *masked_values(batch, masked))}
        else:
            codes, values = _apply(model, params, batch, masked, dropout_key, method="query_codes"), {}
        labels, is_masked = masked.labels.reshape(-1), masked.weights.reshape(-1)
        queries = codes.queries.reshape(-1, codes.queries.shape[-1])
        sums = code_losses(queries, codes.table, codes.bias, labels, is_masked)
        return {f"mlm/{name}": (total, is_masked.sum()) for name, total in sums.items()} | values

    def count(prepared):
        batch, masked = prepared
        counts = {"mlm/loss": masked.weights.sum()}
        return counts | ({"value/loss": masked_values(batch, masked)[1].sum()} if config.value_weight else {})

    return Objective(prepare, measure, count, weights)


def masked_values(batch: dict[str, jax.Array], masked: Masked) -> tuple[jax.Array, jax.Array]:
    """Returns the (B, K) values of masked codes, and float32 weights: 1 for masked codes with a value, else 0."""
    values = jnp.take_along_axis(batch["values"], masked.positions, axis=1)
    return jnp.nan_to_num(values), masked.weights * ~jnp.isnan(values)


def hide(batch: dict[str, jax.Array], masked: Masked) -> dict[str, jax.Array]:
    """Returns the batch as a model may read it: with codes masked, and without the values of any masked code."""
    columns = {**batch, "codes": masked.inputs}
    if "values" in batch:
        values = jnp.take_along_axis(batch["values"], masked.positions, axis=1)
        values = jnp.where(masked.weights > 0, jnp.nan, values)
        columns["values"] = jax.vmap(lambda row, place, value: row.at[place].set(value))(
            batch["values"], masked.positions, values
        )
    return columns


def value_loss(quantiles: jax.Array, values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the quantile loss (Koenker and Bassett 1978), which grows only linearly with an outlier.

    Args:
      quantiles: (B, K, Q) predicted values at `heads.QUANTILES`.
      values: (B, K).
      weights: (B, K), 0 to leave a value out.

    Returns:
      The weighted sum of the mean over the quantiles, and the sum of the weights.
    """
    return (value_outcomes(quantiles, values)["quantile_loss"] * weights).sum(), weights.sum()


def value_outcomes(quantiles: jax.Array, values: jax.Array) -> dict[str, jax.Array]:
    """Scores (..., Q) quantiles at `heads.QUANTILES` against (...) values.

    Returns:
      `quantile_loss`, the mean over the quantiles, and `coverage`, 1 if the value lies between the 10% and the 90%
      quantile, else 0; each (...) float32, NaN where a value is NaN.
    """
    levels = jax.lax.broadcast_to_rank(jnp.asarray(QUANTILES), quantiles.ndim)
    errors = values[..., None] - quantiles
    losses = jnp.maximum(levels * errors, (levels - 1.0) * errors).mean(axis=-1)
    low, high = (quantiles[..., QUANTILES.index(level)] for level in INTERVAL)
    coverage = jnp.where(jnp.isnan(values), jnp.nan, ((low <= values) & (values <= high)).astype(jnp.float32))
    return {"quantile_loss": losses, "coverage": coverage}


def score_values(model, params, batch: dict[str, jax.Array], masked: Masked) -> dict[str, jax.Array]:
    """Computes the `value_outcomes` of a model at each masked code, without dropout; NaN where it has no value."""
    arguments = {"method": "query_codes_and_values", "labels": masked.labels}
    _, quantiles = _apply(model, params, batch, masked, **arguments)
    return value_outcomes(quantiles, jnp.take_along_axis(batch["values"], masked.positions, axis=1))


def score_masked(
    model, params, batch: dict[str, jax.Array], masked: Masked, candidates: np.ndarray | None = None
) -> dict[str, jax.Array]:
    """Computes `masked_outcomes` of a model, without dropout; `confidence` is the probability of the likeliest code.

    With `candidates`, (V,) bool, all other codes have probability 0: it is known that the masked code is one of them.
    """
    logits = _apply(model, params, batch, masked)
    if candidates is not None:
        logits = jnp.where(candidates, logits, -jnp.inf)
    confidence = jax.nn.softmax(logits.astype(jnp.float32)).max(axis=-1)
    return {**masked_outcomes(logits, masked), "confidence": confidence}


def _apply(model, params, batch: dict[str, jax.Array], masked: Masked, dropout_key=None, **arguments):
    return apply_model(model, params, hide(batch, masked), dropout_key, masked_positions=masked.positions, **arguments)
