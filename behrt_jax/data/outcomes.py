"""Survival outcomes with a known hazard, drawn on top of any population: what a perfect model would reach."""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from scipy.optimize import brentq

MIN_SHARE = 0.05  # of rows in which a feature must differ from its commonest value to have a coefficient
TAIL = 0.01  # share of rows at either end whose values are clipped
CLIP = 3.0  # standard deviations


class TrueOutcomes(NamedTuple):
    """Times to an event of N rows, and the truth behind them.

    Attributes:
      days: (N,) float64, to the event or to censoring.
      events: (N,) bool, whether the event came first.
      log_hazard: (N,) true log relative hazard, of mean 0.
      columns: (M,) int, the features that matter.
      pairs: (I, 2) int, which two of these columns interact.
      terms: (N, M + I) the standardised columns, then the products of pairs, of mean 0; `log_hazard` is a sum of them.
      coefficients: (M + I,) of the terms.
      standards: (4, M) of the columns: the lowest and highest value, beyond which they are clipped, mean, deviation.
      centres: (M + I,) what is taken off the terms.
      scale: days at which the cumulative hazard of `log_hazard` 0 is 1.
      shape: of the Weibull baseline.
    """

    days: np.ndarray
    events: np.ndarray
    log_hazard: np.ndarray
    columns: np.ndarray
    pairs: np.ndarray
    terms: np.ndarray
    coefficients: np.ndarray
    standards: np.ndarray
    centres: np.ndarray
    scale: float
    shape: float

    def survival(self, times: np.ndarray) -> np.ndarray:
        """Returns the true survival of each row at (T,) days, (N, T)."""
        return np.exp(-np.exp(self.log_hazard)[:, None] * (np.asarray(times) / self.scale) ** self.shape)


def simulate_outcomes(
    features: np.ndarray | scipy.sparse.sparray,
    seed: int,
    num_columns: int = 10,
    num_interactions: int = 3,
    spread: float = 1.0,
    scale: float = 1825.0,
    shape: float = 1.0,
    censored: float = 0.3,
) -> TrueOutcomes:
    """Draws times to an event under proportional hazards, a function of the arguments.

    A few features, chosen among those that vary, are clipped to their percentiles 1 to 99, standardised and cut off at
    3 deviations; they and the products of a few pairs of them have normal coefficients. Times are Weibull (Bender et
    al. 2005); censoring is exponential and independent of all else. For competing events draw twice, with two seeds
    and `censored=0`, and keep the earlier.

    Args:
      features: (N, F) numbers before the prediction time, as counts of codes, age, sex; one row a patient, as rows
        draw outcomes of their own.
      seed: of all that is drawn.
      num_columns: how many features matter.
      num_interactions: how many pairs of them do.
      spread: standard deviation of the log hazard; 0 is an event that nothing foretells.
      scale: days at which the baseline cumulative hazard is 1.
      shape: of the Weibull baseline; 1 is a constant hazard, above 1 a rising one.
      censored: expected share of rows that are censored, 0 or more and below 1.

    Returns:
      The outcomes and the truth behind them.

    Raises:
      ValueError: a size or share out of its range, features not finite, or too few that vary.
    """
    _check(features, num_columns, num_interactions, spread, scale, shape, censored)
    rng = np.random.default_rng([seed, 0])
    table = scipy.sparse.csc_array(features)
    candidates = _varying(table)
    if len(candidates) < num_columns:
        raise ValueError(
            f"num_columns is {num_columns}, but {len(candidates)} of {table.shape[1]} features differ "
            f"in {MIN_SHARE:.0%} of {table.shape[0]:,} rows or more; lower it, or give more features"
        )
    columns = np.sort(rng.choice(candidates, num_columns, replace=False))
    every = np.stack(np.triu_indices(num_columns, 1), axis=1)
    pairs = every[rng.choice(len(every), num_interactions, replace=False)] if num_interactions else every[:0]
    chosen = table[:, columns].toarray()
    standards = _fit_standards(chosen)
    terms = make_terms(chosen, standards, pairs)
    centres = terms.mean(axis=0)
    terms -= centres
    coefficients = rng.normal(size=terms.shape[1])
    coefficients *= spread / (terms @ coefficients).std()
    log_hazard = terms @ coefficients
    rng = np.random.default_rng([seed, 1])
    until_event = scale * (rng.exponential(size=len(terms)) / np.exp(log_hazard)) ** (1 / shape)
    until_censored = rng.exponential(size=len(terms)) / _censoring_rate(until_event, censored)
    events = until_event <= until_censored
    days = np.minimum(until_event, until_censored)
    truth = (log_hazard, columns, pairs, terms, coefficients, standards, centres, scale, shape)
    return TrueOutcomes(days, events, *truth)


def make_terms(columns: np.ndarray, standards: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Returns the terms of (N, M) columns, (N, M + I), before `centres` are taken off; see `TrueOutcomes`."""
    low, high, mean, deviation = standards
    terms = np.clip((np.clip(columns, low, high) - mean) / deviation, -CLIP, CLIP)
    return np.concatenate([terms, terms[:, pairs[:, 0]] * terms[:, pairs[:, 1]]], axis=1)


def _varying(table: scipy.sparse.csc_array) -> np.ndarray:
    """Returns the features that differ from their commonest value in enough rows."""
    num_rows, varying = table.shape[0], []
    for place, (start, end) in enumerate(zip(table.indptr[:-1], table.indptr[1:], strict=True)):
        zeros = np.zeros(num_rows - (end - start))
        counts = np.unique(np.append(table.data[start:end], zeros), return_counts=True)[1]
        if num_rows - counts.max() >= max(MIN_SHARE * num_rows, 1):
            varying.append(place)
    return np.array(varying, int)


def _fit_standards(columns: np.ndarray) -> np.ndarray:
    """Finds what scales columns to deviation 1 around their mean, without the far ends that some counts have."""
    low, high = np.quantile(columns, [TAIL, 1 - TAIL], axis=0)
    columns = np.clip(columns, low, high)
    return np.stack([low, high, columns.mean(axis=0), columns.std(axis=0)])


def _censoring_rate(until_event: np.ndarray, share: float) -> float:
    """Returns the rate a day at which an expected share of rows is censored before its event; tiny for a share of 0."""
    tiny = 1e-12 / until_event.max()
    if share == 0:
        return tiny
    unit = 1 / until_event.mean()
    while -np.expm1(-unit * until_event).mean() < share:
        unit *= 2
    return brentq(lambda rate: -np.expm1(-rate * until_event).mean() - share, tiny, unit)


def _check(features, num_columns, num_interactions, spread, scale, shape, censored) -> None:
    values = features.data if scipy.sparse.issparse(features) else features
    wrong = int((~np.isfinite(values)).sum())
    if features.ndim != 2 or wrong:
        raise ValueError(f"features {features.shape} are not a table, or {wrong:,} of them are not finite")
    most = num_columns * (num_columns - 1) // 2
    ranges = {
        "num_columns": (num_columns, num_columns >= 1, "1 or more"),
        "num_interactions": (num_interactions, 0 <= num_interactions <= most, f"0 to {most}, the pairs of columns"),
        "spread": (spread, spread >= 0, "0 or more"),
        "scale": (scale, scale > 0, "above 0 days"),
        "shape": (shape, shape > 0, "above 0"),
        "censored": (censored, 0 <= censored < 1, "0 or more and below 1"),
    }
    for name, (value, is_good, expected) in ranges.items():
        if not is_good:
            raise ValueError(f"{name} is {value}; expected {expected}")
