"""Time to one event or to the first of several: three losses under right censoring, and the risks that follow.

Labels are `days` above 0 from the prediction time to the event or to the end of what is known, and `events`: 0 where
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
CHUNK = 256  # patients whose steps of a baseline are held at once


@dataclasses.dataclass(frozen=True)
class SurvivalConfig:
    """The section `survival` of a recipe.

    Attributes:
      loss: `discrete` (the hazard of each bin of time, Gensheimer and Narasimhan 2019), `cox` (partial likelihood with
        Efron's ties; its risk sets are batches, which are not to be accumulated in parts), or `piecewise` (constant
        rates in bins, as MOTOR).
      num_bins: bins of time to fit where `edges` are not given.
      edges: the last day of each bin, ascending; from quantiles of train's events (`fit_edges`) if empty.
      num_causes: C, events of which the first ends the wait (competing risks).
    """

    loss: str
    num_bins: int
    edges: tuple[float, ...]
    num_causes: int

    def __post_init__(self):
        self._expect(self.loss in LOSSES, "loss", f"one of {', '.join(LOSSES)}")
        for key in ("num_bins", "num_causes"):
            self._expect(getattr(self, key) >= 1, key, "1 or more")
        rises = list((0.0, *self.edges)) == sorted({0.0, *self.edges})
        self._expect(rises, "edges", "days above 0 in ascending order")

    def _expect(self, holds: bool, key: str, expected: str) -> None:
        if not holds:
            raise ValueError(f"survival.{key}: found {getattr(self, key)!r}; expected {expected}")

    @property
    def num_logits(self) -> int:
        """K, what a head gives for each patient."""
        return self.num_causes * (1 if self.loss == "cox" else len(self.edges))


class Baseline(NamedTuple):
    """The hazard of a patient whose Cox scores are 0.

    Attributes:
      days: (T,) float64, when events came, ascending.
      hazards: (T, C) float64, how much the cumulative hazard of each cause rises then.
    """

    days: np.ndarray
    hazards: np.ndarray


def fit_edges(days: np.ndarray, events: np.ndarray, num_bins: int) -> tuple[float, ...]:
    """Returns the last day of each bin, so that each holds about as many events; the last ends with the last event.

    Args:
      days: (N,) of the train split.
      events: (N,).
      num_bins: there are fewer where many events share a day.

    Raises:
      ValueError: days are not above 0, or there is no event.
    """
    days = check_times(days, np.minimum(events, 1), 1)  # of any cause
    shares = np.arange(1, num_bins + 1) / num_bins
    return tuple(np.unique(np.quantile(days[events > 0], shares, method="inverted_cdf")).tolist())


def check_times(days: np.ndarray, events: np.ndarray, num_causes: int) -> np.ndarray:
    """Returns the (N,) days of a split to train on as float32; see the module for what is expected of them.

    Raises:
      ValueError: days are NaN, infinite or not above 0, or causes are without an event or beyond C.
    """
    days, wrong = np.asarray(days, np.float32), ~(np.asarray(days) > 0) | ~np.isfinite(days)
    if wrong.any():
        found = f"found {wrong.sum()} of {len(days)} that are not finite or not above 0"
        raise ValueError(f"days: {found}; expected an event or censoring time after each prediction time")
    counts = np.bincount(events, minlength=num_causes + 1)
    if len(counts) > num_causes + 1 or not counts[1:].all():
        raise ValueError(
            f"events: found counts {counts.tolist()} of censored and of each cause in {len(days)} labels; expected "
            f"each of survival.num_causes={num_causes} to come at least once and no other"
        )
    return days


def discrete_losses(logits: jax.Array, days: jax.Array, events: jax.Array, edges: tuple[float, ...]) -> jax.Array:
    """Returns the negative log-likelihood of the hazards of bins (nats).

    In a bin, a patient at risk has one of the causes or survives it: a softmax against 0. Whoever is censored has
    survived whole bins and a share s of the last, which counts as 1 - s h: within a bin events are as likely on one day
    as on another, in the loss as in the curves (`risks`). To count only whole bins would take everyone who is censored
    out of those at risk and make every hazard too high. An event after the last edge is censored there.

    Args:
      logits: (..., C, bins).
      days: (...).
      events: (...) int.
      edges: the last day of each bin.

    Returns:
      (...) losses, which leave out the constant log width of the event's bin.
    """
    elapsed, last = elapsed_shares(days, edges)
    any_cause = jax.nn.logsumexp(logits, axis=-2)
    log_rest = jnp.log(jnp.maximum(1 - elapsed, jnp.finfo(elapsed.dtype).tiny))
    lived = jax.nn.softplus(any_cause) - jax.nn.softplus(any_cause + log_rest)
    ends = last & (events > 0)[..., None]
    at_end = jnp.where(_is_cause(events, logits.shape[-2])[..., None] & ends[..., None, :], logits, 0.0)
    return jnp.where(ends, jax.nn.softplus(any_cause), lived).sum(axis=-1) - at_end.sum(axis=(-2, -1))


def elapsed_shares(days: jax.Array, edges: tuple[float, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns (..., bins) shares of each bin that pass by (...) days, and (..., bins) bool, in which bin they end."""
    spent, last = exposures(days, edges)
    widths = jnp.diff(jnp.asarray([0.0, *edges]))
    return spent[..., :-1] / jax.lax.broadcast_to_rank(widths, spent.ndim), last[..., :-1]


def _is_cause(events: jax.Array, num_causes: int) -> jax.Array:
    return jax.nn.one_hot(events - 1, num_causes, dtype=bool)  # none where censored


def piecewise_losses(log_rates: jax.Array, days: jax.Array, events: jax.Array, edges: tuple[float, ...]) -> jax.Array:
    """Returns the negative log-likelihood of constant rates in bins, of which the last is open (nats).

    Args:
      log_rates: (B, P, C, bins) log of the rate a day of each cause.
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
    """Returns the negative log partial likelihood (Cox 1972) of each event with ties as Efron (1977) has them (nats).

    Of m events on one day, the one counted as number k, from 0, finds k / m of their hazards gone from the risk set.

    Args:
      scores: (N,) log hazard ratios.
      days: (N,).
      happened: (N,) bool; other causes are censored.
      labelled: (N,) bool, who is in the risk sets at all.

    Returns:
      (N,); 0 for those without the event.
    """
    happened = happened & labelled
    at_risk = (days[None, :] >= days[:, None]) & labelled[None, :]
    tied = (days[None, :] == days[:, None]) & happened[None, :]

    def log_sum(members):
        return jax.nn.logsumexp(jnp.where(members, scores[None, :], NEGATIVE), axis=-1)

    of_risk_set, of_ties = log_sum(at_risk), log_sum(tied)
    share = jnp.tril(tied, -1).sum(axis=-1) / jnp.maximum(tied.sum(axis=-1), 1)
    denominators = of_risk_set + jnp.log1p(-share * jnp.exp(jnp.minimum(of_ties - of_risk_set, 0.0)))
    return jnp.where(happened, denominators - scores, 0.0)


def make_objective(model, config: SurvivalConfig) -> Objective:
    """Returns the objective of the time to an event, whose loss is `survival/loss`.

    It is a mean over labelled patients, or for `cox` over events, each among all labelled patients of the batch.

    Args:
      model: a `BEHRTForSequenceClassification` with `config.num_logits` labels; batches hold `days`, `events` and
        `weights` of its patients beside the columns.
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
    """Returns the (B, P) losses of (B, P, K) logits by `config.loss`; 0 where not labelled, whatever stands there."""
    days, events = jnp.where(labelled, days, 1.0), jnp.where(labelled, events, 0)
    logits = logits.reshape(*days.shape, config.num_causes, -1)
    if config.loss == "cox":
        flat = (days.ravel(), events.ravel(), labelled.ravel(), logits.reshape(-1, config.num_causes))
        days, events, known, scores = flat
        each = (cox_losses(scores[:, c], days, events == c + 1, known) for c in range(config.num_causes))
        return sum(each, start=jnp.zeros_like(days)).reshape(labelled.shape)
    losses = discrete_losses if config.loss == "discrete" else piecewise_losses
    return jnp.where(labelled, losses(logits, days, events, config.edges), 0.0)


def spent_in_bins(days: np.ndarray, config: SurvivalConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N, bins) days, or for `discrete` shares, that N spend in bins, and (N, bins) bool, where they end."""
    times, is_piecewise = jnp.asarray(days), config.loss == "piecewise"
    spent, last = exposures(times, config.edges[:-1]) if is_piecewise else elapsed_shares(times, config.edges)
    return np.asarray(spent, np.float64), np.asarray(last)


def initial_bias(days: np.ndarray, events: np.ndarray, config: SurvivalConfig) -> np.ndarray:
    """Returns the bias with which a head begins at the base rates of train, as MOTOR does.

    Args:
      days: (N,) of the train split.
      events: (N,).
      config: the section `survival`, with its edges.

    Returns:
      (K,) float32: for each cause and bin the log rate a day, or the log odds against surviving the bin; a bin without
      an event counts half a one. Zeros for `cox`, whose baseline is fitted afterwards.

    Raises:
      ValueError: see `check_times`; or nobody of train is at risk in a bin.
    """
    days = check_times(days, events, config.num_causes)
    if config.loss == "cox":
        return np.zeros(config.num_causes, np.float32)
    spent, last = spent_in_bins(days, config)
    counts = np.stack([(last & (events == cause)[:, None]).sum(axis=0) for cause in range(1, config.num_causes + 1)])
    if not spent.any(axis=0).all():
        found = f"found {config.edges}, where {len(days)} labels of train reach to day {days.max():g}"
        raise ValueError(f"survival.edges: {found}; expected somebody at risk in every bin: leave later edges out")
    exposure = spent.sum(axis=0)
    if config.loss == "discrete":
        exposure = np.where(last & (events > 0)[:, None], 0.0, spent).sum(axis=0)  # of survivors alone, for the odds
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
    places = [np.searchsorted(times, days[events == cause + 1]) for cause in range(logits.shape[1])]
    counts = np.stack([np.bincount(place, minlength=len(times)) for place in places], axis=1)
    return Baseline(np.asarray(times, np.float64), counts / at_risk)


def risks(logits: np.ndarray, config: SurvivalConfig, horizons, baseline: Baseline | None = None) -> np.ndarray:
    """Returns how likely each cause is to come first and by each horizon: the cumulative incidence.

    For one cause that is 1 - S(t). For several, what other causes take away is counted, so that their sum is 1 - S(t)
    too. After the last edge of `discrete`, and after the last event of the baseline of `cox`, nothing more happens;
    the last rate of `piecewise` goes on.

    Args:
      logits: (N, K).
      config: the section `survival`, with its edges.
      horizons: (H,) days.
      baseline: of `cox`, as `breslow` estimates it.

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
        lost = np.logaddexp(0.0, np.logaddexp.reduce(logits, axis=1, keepdims=True))  # -log of surviving each bin
        return np.exp(logits - np.cumsum(lost, axis=-1)) @ np.asarray(elapsed, np.float64).T
    if config.loss == "piecewise":
        spent, _ = exposures(jnp.asarray(horizons), config.edges[:-1])
        rates = np.exp(np.minimum(logits, LARGEST_LOG_RATE))
        return _first_events(rates[:, :, None] * np.asarray(spent, np.float64)).sum(axis=-1)
    if baseline is None:
        raise ValueError("baseline: found None; cox has no S(t) without what `breslow` estimates on train")
    reached = np.searchsorted(baseline.days, horizons, side="right")
    found = []
    for some in np.array_split(logits, len(logits) // CHUNK + 1):
        steps = _first_events(np.exp(some) * baseline.hazards.T)
        found.append(np.pad(np.cumsum(steps, axis=-1), ((0, 0), (0, 0), (1, 0)))[..., reached])
    return np.concatenate(found)


def log_hazard_by(logits: jax.Array, config: SurvivalConfig, day: float) -> jax.Array:
    """Returns the log of the cumulative hazard of any cause by a day, up to a constant for `cox`.

    It rises with the risk by that day, 1 - exp(-exp(.)), and is what the effects of codes are added up in.

    Args:
      logits: (B, K).
      config: the section `survival`, with its edges.
      day: above 0.

    Returns:
      (B,) float32, which can be differentiated.
    """
    logits, until = logits.reshape(len(logits), config.num_causes, -1), jnp.asarray([day], jnp.float32)
    if config.loss == "cox":
        return jax.nn.logsumexp(logits[..., 0], axis=1)
    if config.loss == "piecewise":
        spent, _ = exposures(until, config.edges[:-1])
        return jax.nn.logsumexp(jnp.minimum(logits, LARGEST_LOG_RATE), axis=(1, 2), b=spent[None])
    elapsed, _ = elapsed_shares(until, config.edges)
    lost = jnp.cumsum(jax.nn.softplus(jax.nn.logsumexp(logits, axis=1, keepdims=True)), axis=-1)
    risk = (jnp.exp(logits - lost) * elapsed[None]).sum(axis=(1, 2))
    return jnp.log(-jnp.log1p(-risk))


def _first_events(hazards: np.ndarray) -> np.ndarray:
    """Maps rises of (N, C, ..., steps) cumulative hazards to how likely each cause comes first and in each step.

    Hazards rise evenly in a step, so that causes share what is lost in it by their hazards.
    """
    of_any = hazards.sum(axis=1, keepdims=True)
    before = np.exp(of_any - np.cumsum(of_any, axis=-1))
    return before * -np.expm1(-of_any) * hazards / np.maximum(of_any, np.finfo(np.float64).tiny)


def survival_curve(logits: np.ndarray, config: SurvivalConfig, days, baseline: Baseline | None = None) -> np.ndarray:
    """Returns S(t), how likely none of the causes has come by each of (T,) days: (N, T) float64; see `risks`."""
    return 1.0 - risks(logits, config, days, baseline).sum(axis=1)


def risk_scores(logits: np.ndarray, config: SurvivalConfig) -> np.ndarray:
    """Returns (N, C) scores that rank patients by risk, for the C-index.

    For `cox` the log hazard ratio. Else the cumulative incidence averaged over the edges, which are quantiles of the
    event times: over when pairs of patients are compared. One late horizon would tell those at high risk little apart.
    """
    return logits if config.loss == "cox" else risks(logits, config, config.edges).mean(axis=-1)
