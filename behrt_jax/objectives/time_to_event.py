"""Time-to-event pre-training: piecewise-constant rates of many codes from each visit (MOTOR, Steinberg et al. 2024)."""

import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.objectives.base import Objective, apply_model

LARGEST_LOG_RATE = 5.0  # a code every ten minutes; keeps the exponential finite


def exposures(days: jax.Array, edges: tuple[float, ...]) -> tuple[jax.Array, jax.Array]:
    """Splits times into bins.

    Args:
      days: (...) times to the event or to the end of follow-up.
      edges: ascending inner edges; the last bin is open.

    Returns:
      (..., bins) days spent in each bin, and (..., bins) bool, the bin in which the time ends.
    """
    low = jnp.asarray([0.0, *edges])
    high = jnp.asarray([*edges, jnp.inf])
    shape = (1,) * days.ndim + (-1,)
    low, high = low.reshape(shape), high.reshape(shape)
    ends = days[..., None]
    return jnp.clip(ends, low, high) - low, (ends > low) & (ends <= high)


def event_losses(log_rates: jax.Array, days: jax.Array, happened: jax.Array, edges: tuple[float, ...]) -> jax.Array:
    """Computes the negative log-likelihood of piecewise-constant rates under right censoring (nats).

    Args:
      log_rates: (B, K, bins, T) log rates per day.
      days: (B, K, T) above 0, to the event or to the end of the patient's follow-up.
      happened: (B, K, T) bool.
      edges: ascending inner edges of the bins.

    Returns:
      (B, K, T) float32.
    """
    log_rates = jnp.minimum(log_rates.astype(jnp.float32), LARGEST_LOG_RATE).swapaxes(2, 3)
    exposure, last = exposures(days, edges)
    end_log_rates = jnp.where(last, log_rates, 0.0).sum(axis=-1)
    return (jnp.exp(log_rates) * exposure).sum(axis=-1) - jnp.where(happened, end_log_rates, 0.0)


def score_events(model, params, batch, targets: np.ndarray, dropout_key: jax.Array | None = None) -> jax.Array:
    """Computes (B, K, bins, T) log rates of target codes after the batch's `event_ends` with a `BEHRTForPretraining`.

    A key enables dropout.
    """
    arguments = {"visit_ends": batch["event_ends"], "method": "predict_events"}
    return apply_model(model, params, batch, dropout_key, **arguments)[..., targets]


def make_objective(model, edges: tuple[float, ...], is_target: np.ndarray) -> Objective:
    """Returns the time-to-event objective, with the loss `time_to_event/loss`, a mean over visits and codes.

    Batches must hold the columns of `data.event_targets.EventTimes.add`. See `joint.make_objective`.
    """
    targets = np.flatnonzero(is_target)

    def measure(params, batch, dropout_key):
        log_rates = score_events(model, params, batch, targets, dropout_key)
        losses = event_losses(log_rates, batch["event_days"], batch["event_happened"], edges)
        return {"time_to_event/loss": ((losses.mean(axis=-1) * batch["event_weights"]).sum(), *count(batch).values())}

    def count(batch):
        return {"time_to_event/loss": batch["event_weights"].sum()}

    return Objective(lambda batch, key: batch, measure, count, {"time_to_event/loss": 1.0})
