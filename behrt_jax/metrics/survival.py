"""Metrics of time to event, with bootstrap intervals over patients.

Each resample is measured exactly, with censoring weights from train: a patient sampled twice gives its rows twice the
weight, and pairs of rows of one patient count in proportion. Undefined metrics are omitted: no events, or a horizon
beyond follow-up or beyond the predicted curves. Under competing risks, `measure` takes the events of one cause and
counts others as censoring: its metrics concern the hazard of that cause, and its curves must too. To assess a predicted
cumulative incidence, compare it with `cumulative_incidence`, as `calibration_table` does. The calibration errors and
D-calibration of resamples are higher than those of the data, as noise adds to distances, so an interval need not
contain its value.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import chdtrc

from behrt_jax.metrics.bootstrap import Estimate, divide
from behrt_jax.metrics.classification import (
    auroc,
    equal_mass_bins,
    estimates,
    fit_slope,
    parts,
    patient_weights,
    replicate,
)

PREFIX = "survival/"
HORIZONS = (30.0, 90.0, 365.0, 1825.0)  # days
NUM_BINS = 10
GRID = 50  # times of the integrated Brier score
CHUNK = 256  # events compared with all rows at once
TINY = 1e-12


class Followed(NamedTuple):
    """Follow-up of N rows: its length, and whether it ended with the event.

    Attributes:
      days: (N,) from the prediction time to the event or censoring, 0 or more.
      events: (N,) bool, whether the event occurred; one cause where there are several.
    """

    days: np.ndarray
    events: np.ndarray


class Curves(NamedTuple):
    """Predicted survival curves, 1 at day 0, with constant hazards between their times.

    Attributes:
      times: (T,) days, increasing, above 0.
      survival: (N, T) probabilities, decreasing.
    """

    times: np.ndarray
    survival: np.ndarray

    def cumulative_hazard(self, days: np.ndarray) -> np.ndarray:
        """Returns cumulative hazards of the rows at (1, T') or (N, T') days, (N, T'); constant after the last time."""
        hazard = -np.log(np.clip(self.survival, TINY, 1))
        hazard, times = np.pad(hazard, ((0, 0), (1, 0))), np.append(0.0, self.times)
        days = np.clip(np.broadcast_to(days, (len(hazard), days.shape[1])), 0, times[-1])
        index = np.clip(np.searchsorted(times, days, side="left"), 1, len(self.times))
        share = (days - times[index - 1]) / (times[index] - times[index - 1])
        rows = np.arange(len(hazard))[:, None]
        return hazard[rows, index - 1] * (1 - share) + hazard[rows, index] * share


def measure(
    scores: np.ndarray,
    followed: Followed,
    patients: np.ndarray,
    train: Followed,
    curves: Curves | None = None,
    groups: dict[str, np.ndarray] | None = None,
    horizons: Sequence[float] = HORIZONS,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Measures predictions of the time to an event.

    From the scores: `c_index` (Harrell et al. 1996), `c_index@H` for events before H days only, `uno_c@H` (Uno et al.
    2011), and `auc@H`, cumulative cases against dynamic controls (Uno et al. 2007), which uses the risk at H days if
    there are curves. From the curves: `integrated_brier` (Graf et al. 1999) and `calibration_slope` up to the
    longest horizon, `observed_expected` events up to it, `calibration_error@H` in equal-mass bins of risk (observed
    risks by Kaplan-Meier), `d_calibration`, the statistic of Haider et al. (2020) on deciles, and `d_calibration_p`.

    The slope comes from a Poisson regression of events on the log of the cumulative hazard at the longest horizon, with
    the cumulative hazard over follow-up as exposure (Crowson et al. 2016): 1 is ideal, below 1 the risks are too
    extreme. The p-value is that of the statistic over its design effect (Rao & Scott 1981), as rows of a patient are
    not independent; it has no interval.

    Args:
      scores: (N,) higher is earlier.
      followed: follow-up of the rows.
      patients: (N,) int, the patient of each row.
      train: follow-up of rows of train, for the censoring weights.
      curves: predicted survival of the rows.
      groups: bool masks of rows by name, (N,) or (N, 1); see `multilabel.group_cells`.
      horizons: in days; those beyond follow-up or the curves are omitted.
      seed: of the resamples; two models measured with the same seed are paired.

    Returns:
      Estimates by name, as `survival/c_index@365` and `survival/c_index/sex=F`; n counts rows.

    Raises:
      ValueError: the inputs do not fit together.
    """
    scores = np.asarray(scores, np.float64)
    followed, train = check(followed, "rows"), check(train, "rows of train")
    _check_predictions(scores, curves, len(followed.days))
    owners, weights = patient_weights(patients, len(scores), seed)
    horizons, importance = usable_horizons(followed, train, curves, horizons), inverse_censoring(train, followed.days)
    results = {}
    for part, rows in parts(groups, len(scores)).items():
        subset = Followed(*(column[rows] for column in followed))
        if part and not subset.events.any():
            continue
        part_curves = curves and curves._replace(survival=np.asarray(curves.survival, np.float64)[rows])
        values = _concordances(scores[rows], subset, owners[rows], weights, importance[rows], horizons)
        functions = [_aucs(scores[rows], subset, importance[rows], part_curves, horizons)]
        if part_curves and horizons:
            functions.append(_calibration(subset, train, importance[rows], part_curves, horizons))
        for function in functions:
            values |= replicate(function, owners[rows], weights)
        if part_curves:
            values |= _d_calibration(subset, part_curves, owners[rows], weights)
        results |= estimates(values, PREFIX, part, owners[rows])
    return results


def measure_causes(
    scores: np.ndarray, days: np.ndarray, causes: np.ndarray, patients: np.ndarray, names: Sequence[str], seed: int = 0
) -> dict[str, Estimate]:
    """Measures Harrell's C of each of several competing events, with the others as censoring (cause-specific).

    Args:
      scores: (N, K) one column per cause; higher is earlier.
      days: (N,) of follow-up.
      causes: (N,) int, 0 for censored, 1 to K for the first event.
      patients: (N,) int, the patient of each row.
      names: of the K causes.
      seed: of the resamples.

    Returns:
      Estimates as `survival/c_index/cause=NAME`; causes that never occur are omitted.

    Raises:
      ValueError: a cause is not one of 0 to K, or the inputs do not fit together.
    """
    num_invalid = int((~np.isin(causes, np.arange(len(names) + 1))).sum())
    if num_invalid or np.shape(scores) != (len(days), len(names)):
        raise ValueError(
            f"{num_invalid:,} causes are none of 0 to {len(names)}, or scores {np.shape(scores)} do not fit them"
        )
    owners, weights = patient_weights(patients, len(days), seed)
    results = {}
    for index, name in enumerate(names):
        followed = check(Followed(days, np.asarray(causes) == index + 1), "rows")
        values = _concordances(np.asarray(scores)[:, index], followed, owners, weights)
        results |= estimates(values, PREFIX, f"/cause={name}", owners)
    return results


def concordance(events: np.ndarray, days: np.ndarray, scores: np.ndarray) -> float:
    """Computes Harrell's C of (N,) scores, higher for an earlier event; a tie counts half.

    It is the share of comparable pairs where the row with the earlier event has the higher score: 0 to 1, NaN without a
    comparable pair. `days` are (N,) to the event or the end of follow-up, `events` (N,) bool.
    """
    rows, ones = np.arange(len(days)), np.ones((1, len(days)))
    return float(_concordances(np.asarray(scores), check(Followed(days, events), "rows"), rows, ones)["c_index"][0])


def usable_horizons(
    followed: Followed, train: Followed, curves: Curves | None, horizons: Sequence[float]
) -> list[float]:
    """Returns the horizons, ascending, within follow-up and the curves, and where train still has uncensored rows."""
    last = min(train.days.max(), np.inf if curves is None else curves.times[-1])
    candidates = [float(days) for days in sorted(horizons) if days <= last and days < followed.days.max()]
    return [days for days in candidates if inverse_censoring(train, np.array([days]))[0] > 0]


def inverse_censoring(train: Followed, days: np.ndarray | Sequence[float]) -> np.ndarray:
    """Returns inverse probabilities of being uncensored at each time, by Kaplan-Meier on train; 0 if that is 0."""
    order = np.lexsort((~train.events, train.days))  # on the same day, events come before censoring
    at_risk = np.arange(len(order), 0, -1)
    uncensored = np.cumprod(np.append(1.0, 1 - ~train.events[order] / at_risk))
    chance = uncensored[np.searchsorted(train.days[order], days, side="right")]
    return np.where(chance > 0, 1 / np.maximum(chance, TINY), 0.0)


def cumulative_incidence(
    days: np.ndarray, causes: np.ndarray, weights: np.ndarray, times: np.ndarray, cause: int = 1
) -> np.ndarray:
    """Computes the cumulative incidence of one of several competing events (Aalen & Johansen 1978).

    Events of other causes end the time at risk but are not censoring. With a single cause it is 1 minus the survival of
    Kaplan & Meier (1958).

    Args:
      days: (N,) of follow-up.
      causes: (N,) int, 0 for censored, otherwise the first event; or (N,) bool for a single cause.
      weights: (R, N) counts of the rows.
      times: (T,) days at which to evaluate it.
      cause: the event.

    Returns:
      (R, T) float64; NaN where all weights are 0.
    """
    causes = np.asarray(causes).astype(int)
    order = np.lexsort((causes == 0, days))  # on the same day, events come before censoring
    days, causes, sorted_weights = days[order], causes[order], weights[:, order].astype(np.float64)
    at_risk = np.cumsum(sorted_weights[:, ::-1], axis=1)[:, ::-1]
    hazard = np.where(at_risk > 0, sorted_weights / np.maximum(at_risk, TINY), 0.0)
    survival = np.cumprod(1 - hazard * (causes > 0), axis=1)
    previous_survival = np.pad(survival[:, :-1], ((0, 0), (1, 0)), constant_values=1.0)
    incidence = np.pad(np.cumsum(previous_survival * hazard * (causes == cause), axis=1), ((0, 0), (1, 0)))
    return np.where(
        weights.any(axis=1, keepdims=True), incidence[:, np.searchsorted(days, times, side="right")], np.nan
    )


def calibration_table(
    risk: np.ndarray, days, causes, weights, horizon: float, cause: int = 1, num_bins: int = NUM_BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compares (N,) risks of an event by a horizon (days) with its cumulative incidence, in bins of equal mass.

    There are `num_bins` or fewer, as ties share a bin; for the other arguments see `cumulative_incidence`.

    Returns:
      The mean risk, the observed incidence and the weight of each non-empty bin, each (R, bins).
    """
    bins = equal_mass_bins(risk, num_bins)
    masks = [bins == index for index in np.unique(bins)]
    mass = np.stack([weights[:, rows].sum(axis=1) for rows in masks], axis=1)
    predicted = divide(np.stack([weights[:, rows] @ risk[rows] for rows in masks], axis=1), mass)
    times = np.array([horizon])
    observed = [cumulative_incidence(days[rows], causes[rows], weights[:, rows], times, cause) for rows in masks]
    return predicted, np.concatenate(observed, axis=1), mass


def d_calibration_shares(followed: Followed, curves: Curves) -> np.ndarray:
    """Returns the share of each row in each decile of its predicted survival at its time, (N, 10).

    The event of a censored row may still occur at any lower survival, so it is spread over the deciles up to there.
    """
    survival = np.exp(-curves.cumulative_hazard(followed.days[:, None]))
    is_event = followed.events & (followed.days <= curves.times[-1])
    edges = np.arange(NUM_BINS) / NUM_BINS
    spread = np.clip(survival - edges, 0, 1 / NUM_BINS) / survival
    decile = np.minimum((survival * NUM_BINS).astype(int), NUM_BINS - 1)
    return np.where(is_event[:, None], np.arange(NUM_BINS) == decile, spread)


def _concordances(
    scores, followed, owners, weights, importance: Any = None, horizons: Sequence[float] = ()
) -> dict[str, np.ndarray]:
    """Computes C indices: for each event, counts the rows that outlive it and those of them with a lower score.

    With horizons, `importance` is (N,), from `inverse_censoring`.
    """
    order = np.argsort(owners, kind="stable")
    scores, days, events = scores[order], followed.days[order], followed.events[order]
    unique_owners, starts, owners = np.unique(owners[order], return_index=True, return_inverse=True)
    weights = weights[:, unique_owners].astype(np.float32)
    kinds = {"c_index": np.ones(len(days)), **{f"c_index@{horizon:g}": days < horizon for horizon in horizons}}
    kinds |= {f"uno_c@{horizon:g}": (days < horizon) * importance[order] ** 2 for horizon in horizons}
    event_weights = np.stack([*kinds.values()], axis=1).astype(np.float64)
    concordant, comparable = np.zeros((2, len(weights), len(kinds)))
    event_rows = np.flatnonzero(events)
    for chunk in np.split(event_rows, np.arange(CHUNK, len(event_rows), CHUNK)):
        outlive = (days > days[chunk, None]) | ((days == days[chunk, None]) & ~events)
        lower = (scores < scores[chunk, None]) + np.float32(0.5) * (scores == scores[chunk, None])
        for total, pairs in ((concordant, outlive * lower), (comparable, outlive.astype(np.float32))):
            by_patient = np.add.reduceat(pairs, starts, axis=1)
            counts = (weights @ by_patient.T).astype(np.float64) * weights[:, owners[chunk]]
            total += counts @ event_weights[chunk]
    return dict(zip(kinds, divide(concordant, comparable).T, strict=True))


def _aucs(scores, followed, importance, curves, horizons):
    """Returns a function from (R, N) weights to the time-dependent AUCs."""
    risks = scores[:, None] if curves is None else curves.cumulative_hazard(np.array([horizons]))

    def found(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = {}
        for horizon, risk in zip(horizons, np.broadcast_to(risks, (len(scores), len(horizons))).T, strict=True):
            cases = followed.events & (followed.days <= horizon)
            rows = cases | (followed.days > horizon)
            row_weights = weights[:, rows] * np.where(cases, importance, 1.0)[rows]
            values[f"auc@{horizon:g}"] = auroc(risk[rows], cases[rows], row_weights)
        return values

    return found


def _calibration(followed, train, importance, curves, horizons):
    """Returns a function from (R, N) weights to the metrics of curves up to the longest horizon."""
    end = horizons[-1]
    brier = _integrated_brier(followed, train, importance, curves, end)
    is_event = followed.events & (followed.days <= end)
    expected = curves.cumulative_hazard(np.minimum(followed.days, end)[:, None])[:, 0]
    end_hazard = np.maximum(curves.cumulative_hazard(np.array([[end]]))[:, 0], TINY)
    risks = 1 - np.exp(-curves.cumulative_hazard(np.array([horizons])))

    def poisson(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = np.exp(line) * (expected / end_hazard)
        return mean, mean

    def found(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = {
            "integrated_brier": divide(weights @ brier, weights.sum(axis=1)),
            "calibration_slope": fit_slope(np.log(end_hazard), is_event, weights, poisson),
            "observed_expected": divide(weights @ is_event, weights @ expected),
        }
        for horizon, risk in zip(horizons, risks.T, strict=True):
            predicted, observed, mass = calibration_table(risk, followed.days, followed.events, weights, horizon)
            distance = np.where(mass > 0, np.abs(predicted - observed) * mass, 0)
            values[f"calibration_error@{horizon:g}"] = divide(distance.sum(axis=1), mass.sum(axis=1))
        return values

    return found


def _integrated_brier(followed, train, importance, curves, end) -> np.ndarray:
    """Returns the contribution of each row to the integrated Brier score, (N,): the mean over times up to the end."""
    grid = np.linspace(end / GRID, end, GRID)
    survival, days = np.exp(-curves.cumulative_hazard(grid[None])), followed.days[:, None]
    dead = followed.events[:, None] & (days <= grid)
    errors = survival**2 * dead * importance[:, None] + (1 - survival) ** 2 * (days > grid) * inverse_censoring(
        train, grid
    )
    return np.trapezoid(errors, grid, axis=1) / (grid[-1] - grid[0])


def _d_calibration(followed, curves, owners, weights) -> dict[str, np.ndarray]:
    """Computes D-calibration: the statistic of each resample, and the p-value of the statistic of the data."""
    rows = d_calibration_shares(followed, curves)

    def found(given: np.ndarray) -> dict[str, np.ndarray]:
        return {"shares": divide(given @ rows, given.sum(axis=1, keepdims=True)), "size": given.sum(axis=1)}

    shares, size = replicate(found, owners, weights).values()
    statistic = size * NUM_BINS * ((shares - 1 / NUM_BINS) ** 2).sum(axis=1)
    design_effect = size[0] * NUM_BINS * np.nanvar(shares[1:], axis=0).sum() / (NUM_BINS - 1)
    p_value = chdtrc(NUM_BINS - 1, divide(statistic[0], design_effect))
    return {"d_calibration": statistic, "d_calibration_p": np.full_like(statistic, p_value)}


def check(followed: Followed, what: str) -> Followed:
    """Returns days as float64 and events as bool.

    Raises:
      ValueError: days are negative or not finite, events are not 0 or 1, or their shapes do not fit.
    """
    days, events = np.asarray(followed.days, np.float64), np.asarray(followed.events)
    if not len(days) or days.shape != events.shape or days.ndim != 1:
        raise ValueError(f"{what}: days {days.shape} and events {events.shape} are not one of each for 1 row or more")
    num_invalid = int((~((days >= 0) & np.isfinite(days))).sum())
    if num_invalid:
        raise ValueError(f"{what}: {num_invalid:,} of {len(days):,} days are negative or not finite")
    num_invalid = int((~np.isin(events, (0, 1))).sum())
    if num_invalid:
        raise ValueError(
            f"{what}: {num_invalid:,} of {len(days):,} events are neither 0 nor 1; of causes, take one a time"
        )
    return Followed(days, events.astype(bool))


def _check_predictions(scores: np.ndarray, curves: Curves | None, num_rows: int) -> None:
    num_invalid = int((~np.isfinite(scores)).sum())
    if scores.shape != (num_rows,) or num_invalid:
        raise ValueError(
            f"scores {scores.shape} do not fit {num_rows:,} rows, or {num_invalid:,} of them are not finite"
        )
    if curves is None:
        return
    times, survival = np.asarray(curves.times), np.asarray(curves.survival)
    if survival.shape != (num_rows, len(times)):
        raise ValueError(f"curves {survival.shape} do not fit {num_rows:,} rows at {len(times)} times")
    if not len(times) or not (np.diff(times, prepend=0) > 0).all():
        raise ValueError("the times of curves must rise from above day 0")
    is_curve = (survival >= 0).all(axis=1) & (np.diff(survival, prepend=1.0, axis=1) <= 1e-6).all(axis=1)
    if not is_curve.all():
        raise ValueError(f"{(~is_curve).sum():,} of {num_rows:,} curves rise, hold NaN or leave 0 to 1")
