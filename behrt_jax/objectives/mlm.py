"""Masked-code modelling: which codes are hidden, and how well they are told from the rest."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

MASK_ID = 3
FIRST_CODE_ID = 5


class Masked(NamedTuple):
    """A batch with some codes hidden.

    Attributes:
      inputs: (B, L) int32, `codes` with the chosen ones replaced.
      positions: (B, K) int32, the chosen places in the row.
      labels: (B, K) int32, the codes that were there.
      weights: (B, K) float32, 1 for chosen places and 0 for the unused rest of K.
    """

    inputs: jax.Array
    positions: jax.Array
    labels: jax.Array
    weights: jax.Array


class Replacement(NamedTuple):
    """What stands in the place of a hidden code: `[MASK]`, a random code, or else the code itself.

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
    """Hides a share of the codes of each row (Devlin et al. 2019).

    Each row hides `rate` of its maskable codes, rounded up or down at random so that the mean is exact. K, the room for
    them, is fixed at `rate` of the row length, which no row can exceed: nothing overflows.

    Args:
      key: a key used for this batch alone.
      codes: (B, L) int32.
      maskable: (B, L) bool; False for special and static tokens and for padding.
      rate: share of the maskable codes to hide, 0 < rate <= 1.
      vocab_size: V.
      replacement: 80% `[MASK]`, 10% random, 10% kept in training; in evaluation `[MASK]` alone, so that a score counts
        only codes that the model cannot see.

    Returns:
      The batch with K = ceil(rate * L).
    """
    rows, length = codes.shape
    choose_key, round_key, action_key, random_key = jax.random.split(key, 4)
    room = math.ceil(rate * length)
    order = jnp.where(maskable, jax.random.uniform(choose_key, codes.shape), -1.0)
    _, positions = jax.lax.top_k(order, room)
    wanted = rate * maskable.sum(axis=1) + jax.random.uniform(round_key, (rows,))
    chosen = jnp.arange(room)[None, :] < jnp.floor(wanted)[:, None]
    chosen &= jnp.take_along_axis(maskable, positions, axis=1)  # rounding can want one more than there is
    labels = jnp.take_along_axis(codes, positions, axis=1)
    action = jax.random.uniform(action_key, positions.shape)
    random_codes = jax.random.randint(random_key, positions.shape, FIRST_CODE_ID, vocab_size)
    is_random = action < replacement.masked + replacement.random
    replaced = jnp.where(action < replacement.masked, MASK_ID, jnp.where(is_random, random_codes, labels))
    new = jnp.where(chosen, replaced, labels).astype(codes.dtype)
    inputs = jax.vmap(lambda row, place, value: row.at[place].set(value))(codes, positions, new)
    return Masked(inputs, positions, labels, chosen.astype(jnp.float32))


def masked_outcomes(logits: jax.Array, masked: Masked) -> dict[str, jax.Array]:
    """Compares logits with the hidden codes, position by position.

    Args:
      logits: (B, K, V).
      masked: as `mask_codes` gave it.

    Returns:
      `loss` (nats), `accuracy` and `top5_accuracy` (0 or 1), each (B, K) float32; a tie counts against the model.
    """
    logits = logits.astype(jnp.float32)
    of_label = jnp.take_along_axis(logits, masked.labels[:, :, None], axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - of_label[..., 0]
    rank = (jax.lax.stop_gradient(logits) >= jax.lax.stop_gradient(of_label)).sum(axis=-1)
    return {"loss": loss, "accuracy": (rank <= 1).astype(jnp.float32), "top5_accuracy": (rank <= 5).astype(jnp.float32)}


def mlm_objective(
    model, params, batch: dict[str, jax.Array], keys: dict[str, jax.Array], train: bool, *, mask_rate: float
):
    """Scores a model on the hidden codes of a batch.

    Args:
      model: a `BEHRTForMLM`.
      params: its variables.
      batch: the columns of packed rows.
      keys: `masking` and, when training, `dropout`.
      train: whether dropout is on.
      mask_rate: share of codes to hide.

    Returns:
      The summed loss, the number of hidden codes and metrics as pairs (sum, count).
    """
    masked = mask_codes(keys["masking"], batch["codes"], batch["maskable"], mask_rate, model.config.vocab_size)
    outcomes = score_masked(model, params, batch, masked, keys["dropout"] if train else None)
    count = masked.weights.sum()
    metrics = {f"mlm/{name}": ((values * masked.weights).sum(), count) for name, values in outcomes.items()}
    return metrics["mlm/loss"][0], count, metrics


def score_masked(model, params, batch: dict[str, jax.Array], masked: Masked, dropout_key: jax.Array | None = None):
    """Returns `masked_outcomes` of a model; dropout is on where a key is given."""
    columns = (batch[name] for name in ("ages", "visit_ids", "patient_ids"))
    named = {name: batch[name] for name in ("positions", "time_deltas", "dates")}
    is_training = dropout_key is not None
    rngs = {"dropout": dropout_key} if is_training else None
    scored = {"masked_positions": masked.positions, "deterministic": not is_training}
    logits = model.apply(params, masked.inputs, *columns, **named, **scored, rngs=rngs)
    return masked_outcomes(logits, masked)


def check_rate(rate: float) -> None:
    """Raises a ValueError for a mask rate outside (0, 1]."""
    if not 0 < rate <= 1:
        raise ValueError(f"objective.mask_rate: found {rate}; expected more than 0 and at most 1")
