"""Survival objectives with competing risks: three losses under right censoring, and the predicted risks.

Labels are `days` above 0 from the prediction time to the event or to the end of follow-up, and `events`: 0 if
censored, else the cause from 1 to C. Logits of a patient are (C, bins) flattened, or (C,) for `cox`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.objectives.base import Objective
from behrt_jax.objectives.classification import NEGATIVE, score_patients
from behrt_jax.objectives.time_to_event import LARGEST_LOG_RATE, event_losses, exposures

LOSSES = ("discrete", "cox", "piecewise")
CHUNK = 256  # patients per chunk of the steps of a baseline hazard, to bound memory


@dataclasses.dataclass(frozen=True)
class SurvivalConfig:
    """The section `survival` of a recipe.

    Attributes:
      loss: `discrete` (a hazard per time bin, Gensheimer and Narasimhan 2019), `cox` (partial likelihood with Efron's
        ties; risk sets are batches, so gradients must not be accumulated over parts), or `piecewise` (constant rates in
        bins, as in MOTOR).
      num_bins: number of time bins to fit if `edges` are not given.
      edges: the last day of each bin, ascending; if empty, quantiles of the event times of train (`fit_edges`).
      num_causes: C, number of competing events.
    """

    loss: str
    num_bins: int
    edges: tuple[float, ...]
    num_causes: int

    def __post_init__(self):
        self._expect(self.loss in LOSSES, "loss", f"one of {', '.join(LOSSES)}")
        for key in ("num_bins", "num_causes"):
            self._expect(getattr(self, key) >= 1, key, "1 or more")
        is_ascending = list((0.0, *self.edges)) == sorted({0.0, *self.edges})
        self._expect(is_ascending, "edges", "days above 0 in ascending order")

    def _expect(self, holds: bool, key: str, expected: str) -> None:
        if not holds:
            raise ValueError(f"survival.{key}: found {getattr(self, key)!r}; expected {expected}")

    @property
    def num_logits(self) -> int:
        """K, the number of logits per patient."""
        return self.num_causes * (1 if self.loss == "cox" else len(self.edges))


class Baseline(NamedTuple):
    """The baseline hazard of a Cox model: that of a patient with scores of 0.

    Attributes:
      days: (T,) float64, the event times, ascending.
      hazards: (T, C) float64, the increase of the cumulative hazard of each cause at these times.
    """

    days: np.ndarray
    hazards: np.ndarray


def fit_edges(days: np.ndarray, events: np.ndarray, num_bins: int) -> tuple[float, ...]:
    """Returns the last day of each bin, with about equally many events in each; the last edge is the last event.

    Args:
      days: (N,) of the train split.
      events: (N,).
      num_bins: number of bins; the result has fewer if many events share a day.

    Raises:
      ValueError: days are not above 0, or there are no events.
    """
    days = check_times(days, np.minimum(events, 1), 1)  # of any cause
    shares = np.arange(1, num_bins + 1) / num_bins
    return tuple(np.unique(np.quantile(days[events > 0], shares, method="inverted_cdf")).tolist())


def check_times(days: np.ndarray, events: np.ndarray, num_causes: int) -> np.ndarray:
    """Checks the labels of a split to train on (see the module) and returns the (N,) days as float32.

    Raises:
      ValueError: days are NaN, infinite or not above 0; a cause has no events; or a cause is above C.
    """
    days, is_invalid = np.asarray(days, np.float32), ~(np.asarray(days) > 0) | ~np.isfinite(days)
    if is_invalid.any():
        problem = f"found {is_invalid.sum()} of {len(days)} that are not finite or not above 0"
        raise ValueError(f"days: {problem}; expected an event or censoring time after each prediction time")
    counts = np.bincount(events, minlength=num_causes + 1)
    if len(counts) > num_causes + 1 or not counts[1:].all():
        raise ValueError(
            f"events: found counts {counts.tolist()} of censored and of each cause in {len(days)} labels; expected "
            f"each of survival.num_causes={num_causes} to come at least once and no other"
        )
    return days


def discrete_losses(logits: jax.Array, days: jax.Array, events: jax.Array, edges: tuple[float, ...]) -> jax.Array:
    """Computes the negative log-likelihood of discrete-time hazards (nats).

    In each bin, a patient at risk has an event of one cause or survives: a softmax over the causes and a logit of 0. A
    censored patient survives whole bins and a share s of the last, with probability 1 - s h: events are uniform within
    a bin, in the loss as in the curves (`risks`). Counting only whole bins would remove censored patients from the
    risk set and bias every hazard upwards. An event after the last edge is censored there.

    Args:
      logits: (..., C, bins).
      days: (...).
      events: (...) int.
      edges: the last day of each bin.

    Returns:
      (...) losses, without the constant log width of the event's bin.
    """
    elapsed, last = elapsed_shares(days, edges)
    any_cause = jax.nn.logsumexp(logits, axis=-2)
    log_remaining = jnp.log(jnp.maximum(1 - elapsed, jnp.finfo(elapsed.dtype).tiny))
    losses_if_censored = jax.nn.softplus(any_cause) - jax.nn.softplus(any_cause + log_remaining)
    is_event_bin = last & (events > 0)[..., None]
    event_logits = jnp.where(_is_cause(events, logits.shape[-2])[..., None] & is_event_bin[..., None, :], logits, 0.0)
    return jnp.where(is_event_bin, jax.nn.softplus(any_cause), losses_if_censored).sum(axis=-1) - event_logits.sum(
        axis=(-2, -1)
    )


def elapsed_shares(days: jax.Array, edges: tuple[float, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns (..., bins) shares of each bin elapsed by (...) days, and (..., bins) bool, the bin they fall in."""
    exposure, last = exposures(days, edges)
    widths = jnp.diff(jnp.asarray([0.0, *edges]))
    return exposure[..., :-1] / jax.lax.broadcast_to_rank(widths, exposure.ndim), last[..., :-1]


def _is_cause(events: jax.Array, num_causes: int) -> jax.Array:
    return jax.nn.one_hot(events - 1, num_causes, dtype=bool)  # none where censored


def piecewise_losses(log_rates: jax.Array, days: jax.Array, events: jax.Array, edges: tuple[float, ...]) -> jax.Array:
    """Computes the negative log-likelihood of constant rates in bins, the last of them open (nats).

    Args:
      log_rates: (B, P, C, bins) log rate per day of each cause.
      days: (B, P).
      events: (B, P) int.
      edges: the last day of each bin.

    Returns:
      (B, P) float32.
    """
    happened = _is_cause(events, log_rates.shape[2])
    days = jnp.broadcast_to(days[..., None], happened.shape)
    return event_losses(log_rates.swapaxes(2, 3), days, happened, edges[:-1]).sum(axis=-1)


def cox_losses(scores: jax.Array, days: jax.Array, happened: jax.Array, labelled: jax.Array) -> jax.Array:
    """Computes the negative log partial likelihood (Cox 1972) of each event with Efron's (1977) ties (nats).

    For event k (from 0) of m events on one day, a share k / m of their hazards is removed from the risk set.

    Args:
      scores: (N,) log hazard ratios.
      days: (N,).
      happened: (N,) bool; other causes are censored.
      labelled: (N,) bool, whether a patient is in any risk set.

    Returns:
      (N,); 0 for patients without the event.
    """
    happened = happened & labelled
    at_risk = (days[None, :] >= days[:, None]) & labelled[None, :]
    tied = (days[None, :] == days[:, None]) & happened[None, :]

    def log_sum(members):
        return jax.nn.logsumexp(jnp.where(members, scores[None, :], NEGATIVE), axis=-1)

    log_risk_set, log_ties = log_sum(at_risk), log_sum(tied)
    share = jnp.tril(tied, -1).sum(axis=-1) / jnp.maximum(tied.sum(axis=-1), 1)
    denominators = log_risk_set + jnp.log1p(-share * jnp.exp(jnp.minimum(log_ties - log_risk_set, 0.0)))
    return jnp.where(happened, denominators - scores, 0.0)


def make_objective(model, config: SurvivalConfig) -> Objective:
    """Returns the survival objective, with the loss `survival/loss`.

    The loss is a mean over labelled patients, or for `cox` over events, with the labelled patients of the batch as
    risk set.

    Args:
      model: a `BEHRTForSequenceClassification` with `config.num_logits` labels; batches must also hold `days`,
        `events` and `weights` of their patients.
      config: the section `survival`, with its edges.
    """

    def count(batch):
        counted = batch["weights"] > 0
        if config.loss == "cox":
            counted &= batch["events"] > 0
        return {"survival/loss": counted.sum().astype(jnp.float32)}

    def measure(params, batch, dropout_key):
        logits = score_patients(model, params, batch, dropout_key)
        losses = survival_losses(logits, batch["days"], batch["events"], batch["weights"] > 0, config)
        return {"survival/loss": (losses.sum(), *count(batch).values())}

    return Objective(lambda batch, key: batch, measure, count, {"survival/loss": 1.0})


def survival_losses(logits, days, events, labelled, config: SurvivalConfig) -> jax.Array:
    """Computes the (B, P) losses of (B, P, K) logits by `config.loss`; 0 for unlabelled patients."""
    days, events = jnp.where(labelled, days, 1.0), jnp.where(labelled, events, 0)
    logits = logits.reshape(*days.shape, config.num_causes, -1)
    if config.loss == "cox":
        flat = (days.ravel(), events.ravel(), labelled.ravel(), logits.reshape(-1, config.num_causes))
        days, events, known, scores = flat
        cause_losses = (cox_losses(scores[:, c], days, events == c + 1, known) for c in range(config.num_causes))
        return sum(cause_losses, start=jnp.zeros_like(days)).reshape(labelled.shape)
    loss_function = discrete_losses if config.loss == "discrete" else piecewise_losses
    return jnp.where(labelled, loss_function(logits, days, events, config.edges), 0.0)


def spent_in_bins(days: np.ndarray, config: SurvivalConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N, bins) days (shares for `discrete`) spent in each bin, and (N, bins) bool, the bin of the end."""
    times, is_piecewise = jnp.asarray(days), config.loss == "piecewise"
    exposure, last = exposures(times, config.edges[:-1]) if is_piecewise else elapsed_shares(times, config.edges)
    return np.asarray(exposure, np.float64), np.asarray(last)


def initial_bias(days: np.ndarray, events: np.ndarray, config: SurvivalConfig) -> np.ndarray:
    """Returns the bias that initialises a head at the base rates of train, as in MOTOR.

    Args:
      days: (N,) of the train split.
      events: (N,).
      config: the section `survival`, with its edges.

    Returns:
      (K,) float32: for each cause and bin the log rate per day, or for `discrete` the log odds of an event against
      survival; a bin without events counts as half an event. Zeros for `cox`, whose baseline is fitted afterwards.

    Raises:
      ValueError: see `check_times`; or no train patient is at risk in a bin.
    """
    days = check_times(days, events, config.num_causes)
    if config.loss == "cox":
        return np.zeros(config.num_causes, np.float32)
    row_exposure, last = spent_in_bins(days, config)
    counts = np.stack([(last & (events == cause)[:, None]).sum(axis=0) for cause in range(1, config.num_causes + 1)])
    if not row_exposure.any(axis=0).all():
        problem = f"found {config.edges}, where {len(days)} labels of train reach to day {days.max():g}"
        raise ValueError(f"survival.edges: {problem}; expected somebody at risk in every bin: leave later edges out")
    exposure = row_exposure.sum(axis=0)
    if config.loss == "discrete":
        exposure = np.where(last & (events > 0)[:, None], 0.0, row_exposure).sum(axis=0)  # survivors only, for the odds
    return (np.log(np.maximum(counts, 0.5)) - np.log(np.maximum(exposure, 0.5))).astype(np.float32).ravel()


def breslow(logits: np.ndarray, days: np.ndarray, events: np.ndarray) -> Baseline:
    """Estimates the baseline hazards of a Cox model on train (Breslow 1972).

    Args:
      logits: (N, C) log hazard ratios of the train split.
      days: (N,).
      events: (N,).
    """
    order = np.argsort(days)
    times = np.unique(days[events > 0])
    at_risk = np.cumsum(np.exp(np.asarray(logits, np.float64))[order][::-1], axis=0)[::-1]
    at_risk = at_risk[np.searchsorted(days[order], times)]
    time_indices = [np.searchsorted(times, days[events == cause + 1]) for cause in range(logits.shape[1])]
    counts = np.stack([np.bincount(indices, minlength=len(times)) for indices in time_indices], axis=1)
    return Baseline(np.asarray(times, np.float64), counts / at_risk)


def risks(logits: np.ndarray, config: SurvivalConfig, horizons, baseline: Baseline | None = None) -> np.ndarray:
    """Computes the cumulative incidence: the probability that each cause comes first, by each horizon.

    For one cause it is 1 - S(t). Causes compete, so the sum over several causes is 1 - S(t) too. No events occur after
    the last edge of `discrete` or after the last event of the baseline of `cox`; the last rate of `piecewise`
    continues.

    Args:
      logits: (N, K).
      config: the section `survival`, with its edges.
      horizons: (H,) days.
      baseline: for `cox`, the estimate of `breslow`.

    Returns:
      (N, C, H) float64.

    Raises:
      ValueError: a Cox model without a baseline.
    """
    horizons = np.asarray(horizons, np.float64)
    logits = np.asarray(logits, np.float64)
    logits = logits.reshape(len(logits), config.num_causes, config.num_logits // config.num_causes)
    if config.loss == "discrete":
        elapsed, _ = elapsed_shares(jnp.asarray(horizons), config.edges)
        hazards = np.logaddexp(0.0, np.logaddexp.reduce(logits, axis=1, keepdims=True))  # -log of surviving each bin
        return np.exp(logits - np.cumsum(hazards, axis=-1)) @ np.asarray(elapsed, np.float64).T
    if config.loss == "piecewise":
        exposure, _ = exposures(jnp.asarray(horizons), config.edges[:-1])
        rates = np.exp(np.minimum(logits, LARGEST_LOG_RATE))
        return _first_events(rates[:, :, None] * np.asarray(exposure, np.float64)).sum(axis=-1)
    if baseline is None:
        raise ValueError("baseline: found None; cox has no S(t) without what `breslow` estimates on train")
    indices = np.searchsorted(baseline.days, horizons, side="right")
    incidence = []
    for chunk in np.array_split(logits, len(logits) // CHUNK + 1):
        probabilities = _first_events(np.exp(chunk) * baseline.hazards.T)
        incidence.append(np.pad(np.cumsum(probabilities, axis=-1), ((0, 0), (0, 0), (1, 0)))[..., indices])
    return np.concatenate(incidence)


def log_hazard_by(logits: jax.Array, config: SurvivalConfig, day: float) -> jax.Array:
    """Computes the log cumulative hazard of any cause by a day, up to a constant for `cox`.

    It increases with the risk by that day, 1 - exp(-exp(.)), and is the scale on which effects of codes add up.

    Args:
      logits: (B, K).
      config: the section `survival`, with its edges.
      day: above 0.

    Returns:
      (B,) float32, differentiable.
    """
    logits, horizon = logits.reshape(len(logits), config.num_causes, -1), jnp.asarray([day], jnp.float32)
    if config.loss == "cox":
        return jax.nn.logsumexp(logits[..., 0], axis=1)
    if config.loss == "piecewise":
        exposure, _ = exposures(horizon, config.edges[:-1])
        return jax.nn.logsumexp(jnp.minimum(logits, LARGEST_LOG_RATE), axis=(1, 2), b=exposure[None])
    elapsed, _ = elapsed_shares(horizon, config.edges)
    cumulative_hazard = jnp.cumsum(jax.nn.softplus(jax.nn.logsumexp(logits, axis=1, keepdims=True)), axis=-1)
    risk = (jnp.exp(logits - cumulative_hazard) * elapsed[None]).sum(axis=(1, 2))
    return jnp.log(-jnp.log1p(-risk))


def _first_events(hazards: np.ndarray) -> np.ndarray:
    """Maps (N, C, ..., steps) increments of cumulative hazards to probabilities of a first event by cause and step.

    Hazards are constant within a step, so causes share the loss of survival in proportion to their hazards.
    """
    any_cause = hazards.sum(axis=1, keepdims=True)
    survival = np.exp(any_cause - np.cumsum(any_cause, axis=-1))
    return survival * -np.expm1(-any_cause) * hazards / np.maximum(any_cause, np.finfo(np.float64).tiny)


def risk_scores(logits: np.ndarray, config: SurvivalConfig) -> np.ndarray:
    """Returns (N, C) scores that rank patients by risk, for the C-index.

    For `cox`, the score is the log hazard ratio. Otherwise it is the cumulative incidence averaged over the edges,
    which are quantiles of the event times, at which the C-index compares pairs of patients. A single late horizon
    would hardly separate patients at high risk.
    """
    return logits if config.loss == "cox" else risks(logits, config, config.edges).mean(axis=-1)
