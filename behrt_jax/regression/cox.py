"""Cox regression (1972) with a ridge or elastic net penalty and Efron's approximation for ties; the log-rank test."""

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse
from scipy.special import chdtrc

Matrix = np.ndarray | scipy.sparse.csr_array
TINY = np.finfo(np.float64).tiny
TOLERANCE = 1e-3  # relative excess of a gradient over the L1 penalty before its feature joins the fit


class PartialLikelihood:
    """Negative log partial likelihood of N rows as a function of their log risks (Efron 1977).

    `days` are (N,) to the event or the end of follow-up, `events` (N,) bool; as in all functions here.
    """

    def __init__(self, days: np.ndarray, events: np.ndarray):
        self._order = np.argsort(-days, kind="stable")
        later = -days[self._order]
        self._events = np.flatnonzero(events[self._order])
        # The risk set of a row is everything up to the last row of the same day.
        self._ends = np.searchsorted(later, later[self._events], side="right") - 1
        _, first, self._ties, counts = np.unique(self._ends, return_index=True, return_inverse=True, return_counts=True)
        # Efron: of two tied events, the second has half of their risk removed from its risk set, and so on.
        self._gone = (np.arange(len(self._ends)) - first[self._ties]) / counts[self._ties]

    def __call__(self, log_risks: np.ndarray) -> tuple[float, np.ndarray]:
        """Computes the value and its (N,) gradient."""
        ordered = log_risks[self._order]
        shift = ordered.max()
        risks = np.exp(ordered - shift)
        tied = np.bincount(self._ties, risks[self._events])
        at_risk = np.maximum(np.cumsum(risks)[self._ends] - self._gone * tied[self._ties], TINY)
        value = (np.log(at_risk) + shift - ordered[self._events]).sum()
        hazards = np.cumsum(np.bincount(self._ends, 1 / at_risk, len(risks))[::-1])[::-1]
        slopes = risks * hazards
        slopes[self._events] -= 1 + risks[self._events] * np.bincount(self._ties, self._gone / at_risk)[self._ties]
        gradient = np.empty(len(risks))
        gradient[self._order] = slopes
        return float(value), gradient


def fit_ridge(inputs: Matrix, days: np.ndarray, events: np.ndarray, ridge: float) -> np.ndarray:
    """Fits Cox regression of (N, D) inputs with the penalty `ridge / 2 * sum(weights ** 2)`.

    It is added to the negative log partial likelihood.

    Returns:
      (D,) weights of the log risk.
    """
    likelihood, size = PartialLikelihood(days, events), max(int(events.sum()), 1)

    def measure(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slopes = likelihood(inputs @ weights)
        return float(value + ridge / 2 * weights @ weights) / size, (inputs.T @ slopes + ridge * weights) / size

    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-7}
    return scipy.optimize.minimize(measure, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B", options=options).x


def fit_path(
    inputs: Matrix, days: np.ndarray, events: np.ndarray, ratio: float, shares: Sequence[float] | np.ndarray
) -> Iterator[tuple[float, np.ndarray]]:
    """Fits elastic net Cox regressions (Simon et al. 2011) of (N, D) inputs, each starting from the previous one.

    They minimise the negative log partial likelihood over N, plus
    `penalty * (ratio * sum(abs(weights)) + (1 - ratio) / 2 * sum(weights ** 2))`. Features are screened by the strong
    rule (Tibshirani et al. 2012), and those that it wrongly excludes are added.

    Args:
      inputs: (N, D).
      days: (N,).
      events: (N,) bool.
      ratio: the L1 share, above 0.
      shares: decreasing penalties, relative to the smallest that leaves all weights at 0.

    Yields:
      Each penalty and its (D,) weights.
    """
    likelihood, count = PartialLikelihood(days, events), len(days)
    weights = np.zeros(inputs.shape[1])
    slopes = inputs.T @ likelihood(np.zeros(count))[1] / count
    previous = largest = float(np.abs(slopes).max()) / ratio
    for penalty in largest * np.asarray(shares):
        used = (weights != 0) | (np.abs(slopes) >= ratio * (2 * penalty - previous))
        while True:
            part = inputs[:, np.flatnonzero(used)]
            weights[used] = _fit_net(part, likelihood, ratio * penalty, (1 - ratio) * penalty, weights[used])
            slopes = inputs.T @ likelihood(part @ weights[used])[1] / count
            missed = ~used & (np.abs(slopes) > ratio * penalty * (1 + TOLERANCE))
            if not missed.any():
                break
            used |= missed
        previous = penalty
        yield float(penalty), weights.copy()


def log_rank(days: np.ndarray, events: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Tests whether groups, (N,) labels, at least two distinct ones, have the same hazard (Mantel 1966).

    Returns:
      The statistic and its p-value.
    """
    labels, group_indices = np.unique(groups, return_inverse=True)
    times, time_indices = np.unique(days, return_inverse=True)
    shape = (len(times), len(labels))
    cells = time_indices * len(labels) + group_indices
    event_counts = np.bincount(cells, events, np.prod(shape)).reshape(shape)
    at_risk = np.cumsum(np.bincount(cells, minlength=np.prod(shape)).reshape(shape)[::-1], axis=0)[::-1]
    total, deaths = at_risk.sum(axis=1), event_counts.sum(axis=1)
    shares = at_risk / total[:, None]
    differences = (event_counts - shares * deaths[:, None]).sum(axis=0)
    spread = deaths * (total - deaths) / np.maximum(total - 1, 1)
    variance = np.diag(spread @ shares) - (shares * spread[:, None]).T @ shares
    statistic = float(differences @ np.linalg.pinv(variance) @ differences)
    return statistic, float(chdtrc(len(labels) - 1, statistic))


def _fit_net(inputs: Matrix, likelihood: PartialLikelihood, lasso: float, ridge: float, start: np.ndarray):
    """Fits the weights of one elastic net as differences of two positive parts, in which the L1 norm is linear."""
    size, count = len(start), inputs.shape[0]

    def measure(parts: np.ndarray) -> tuple[float, np.ndarray]:
        weights = parts[:size] - parts[size:]
        value, slopes = likelihood(inputs @ weights)
        slopes = inputs.T @ slopes / count + ridge * weights
        value = value / count + lasso * parts.sum() + ridge / 2 * weights @ weights
        return value, np.concatenate([lasso + slopes, lasso - slopes])

    parts = np.concatenate([np.maximum(start, 0), np.maximum(-start, 0)])
    bounds = scipy.optimize.Bounds(0, np.inf)
    result = scipy.optimize.minimize(measure, parts, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-9})
    return result.x[:size] - result.x[size:]
