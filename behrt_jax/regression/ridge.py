"""Ridge regressions on blocks of features for few labels, averaged over block scales by cross-validation.

A setting gives each block a factor: for a block scaled to a variance of 1, the prior standard deviation of its part of
the score. One regression is fitted for each setting. Their scores are averaged with weights: a prior weight times the
likelihood of the outcomes of left-out patients. With a handful of labels no setting is clearly best. An average of
linear scores is a single linear score.

References:
  Rad and Maleki (2020), A scalable estimate of the out-of-sample prediction error via approximate leave-one-out.
  Yao, Vehtari, Simpson and Gelman (2018), Using stacking to average Bayesian predictive distributions (pseudo-BMA).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
from scipy.special import expit

Blocks = dict[str, np.ndarray]  # (N, D) each, of the same N rows

RANK = 256  # largest number of directions of the features
TOLERANCE = 1e-6  # norm of the gradient, in nats, at which the fit stops
INTERCEPT_PENALTY = 1e-4
LARGEST = 30.0  # log rate, so that its exponential stays finite


class Outcome(NamedTuple):
    """An outcome of N rows.

    Attributes:
      happened: (N,) bool.
      days: (N,) to the event or the end of follow-up; None for outcomes without a time.
      owners: (N,) the patient of each row; all rows of a patient are left out together.
    """

    happened: np.ndarray
    days: np.ndarray | None
    owners: np.ndarray


class Data(NamedTuple):
    """Data of a regression: (N,) outcomes as 0 or 1, exposures of rates or None, and offsets of the scores."""

    happened: np.ndarray
    exposure: np.ndarray | None
    offset: np.ndarray


class Scorer(NamedTuple):
    """A linear score: the log odds of an outcome, or a log rate.

    Attributes:
      weights: (D,) by block.
      bias: the intercept.
      shares: (S,) weights of the settings, which sum to 1.
    """

    weights: dict[str, np.ndarray]
    bias: float
    shares: np.ndarray

    def __call__(self, blocks: Blocks) -> np.ndarray:
        """Computes the (M,) scores of M rows; blocks that no setting uses may be missing."""
        rows = len(next(iter(blocks.values())))
        return sum((blocks[name] @ weights for name, weights in self.weights.items()), np.full(rows, self.bias))


def fit(
    blocks: Blocks,
    outcome: Outcome,
    settings: Sequence[dict[str, float]],
    prior: Sequence[float] | None = None,
    expected: dict[str, np.ndarray] | None = None,
) -> Scorer:
    """Fits a regression for each setting and averages them.

    Uses logistic regression for outcomes without a time. For times to event, uses Poisson regression of the events with
    the cumulative hazard of all rows (Nelson-Aalen) as exposure: it replaces Cox's partial likelihood and gives each
    row a separate likelihood.

    Args:
      blocks: features of N rows, scaled without labels.
      outcome: of the N rows.
      settings: factors by block; a block that is not named, or has the factor 0, is not used.
      prior: prior weights of the settings, above 0; equal if not given.
      expected: (D,) prior weights by block, towards which the ridge shrinks; 0 for blocks that are not named.
    """
    expected = expected or {}
    happened = outcome.happened.astype(np.float64)
    exposure = None if outcome.days is None else cumulative_hazard(outcome.days, outcome.happened)
    offset = sum((blocks[name] @ weights for name, weights in expected.items()), np.zeros(len(happened)))
    data = Data(happened, exposure, offset)
    groups = _group(outcome.owners)
    fits, evidence = [], np.log(np.ones(len(settings)) if prior is None else np.asarray(prior, np.float64))
    for index, setting in enumerate(settings):
        weights, bias, left_out_scores = _fit_setting(blocks, setting, data, groups)
        evidence[index] -= _losses(left_out_scores, data).sum()
        fits.append((weights, bias))
    shares = np.exp(evidence - evidence.max())
    shares /= shares.sum()
    average: dict[str, np.ndarray] = dict(expected)
    for share, (weights, _) in zip(shares, fits, strict=True):
        for name, values in weights.items():
            average[name] = average.get(name, 0.0) + share * values
    return Scorer(average, float(shares @ [bias for _, bias in fits]), shares)


def cumulative_hazard(days: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Computes the Nelson-Aalen cumulative hazard of all rows at the time of each row, (N,)."""
    times, places = np.unique(days, return_inverse=True)
    at_risk = len(days) - np.searchsorted(np.sort(days), times, side="left")
    return np.cumsum(np.bincount(places, events) / at_risk)[places]


def _rotate(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects inputs on their top `RANK` directions: (N, R) and (R, D); outside these, ridge weights are 0."""
    left, sizes, right = np.linalg.svd(inputs, full_matrices=False)
    rank = min(int((sizes > 1e-6 * sizes.max(initial=0)).sum()), RANK)
    return left[:, :rank] * sizes[:rank], right[:rank]


def _fit_setting(
    blocks: Blocks, setting: dict[str, float], data: Data, groups: np.ndarray
) -> tuple[dict[str, np.ndarray], float, np.ndarray]:
    """Fits a setting; returns the weights by block, the bias, and each row's score without its patient, (N,)."""
    names = [name for name, factor in setting.items() if factor > 0]
    parts = [np.zeros((len(data.happened), 0)), *(blocks[name] * setting[name] for name in names)]
    inputs, right = _rotate(np.concatenate(parts, axis=1))
    inputs = np.column_stack([inputs, np.ones(len(inputs))])
    coefficients, hessian = _minimize(inputs, data)
    split = np.split(coefficients[:-1] @ right, np.cumsum([part.shape[1] for part in parts[1:]])[:-1])
    weights = {name: setting[name] * part for name, part in zip(names, split, strict=False)}
    return weights, float(coefficients[-1]), _leave_out(inputs, coefficients, hessian, data, groups)


def _minimize(inputs: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Minimises loss and ridge; returns (D,) coefficients, with the bias last, and the (D, D) Hessian there."""
    penalty = np.append(np.ones(inputs.shape[1] - 1), INTERCEPT_PENALTY)
    start = np.zeros(inputs.shape[1])
    expected, _ = _moments(data.offset, data)
    start[-1] = np.log((data.happened.sum() + 0.5) / (expected.sum() + 0.5))

    def loss(found):
        return _losses(data.offset + inputs @ found, data).sum() + penalty @ found**2 / 2

    def gradient(found):
        return inputs.T @ (_moments(data.offset + inputs @ found, data)[0] - data.happened) + penalty * found

    def hessian(found):
        return (inputs.T * _moments(data.offset + inputs @ found, data)[1]) @ inputs + np.diag(penalty)

    options = {"gtol": TOLERANCE}
    found = scipy.optimize.minimize(loss, start, jac=gradient, hess=hessian, method="trust-exact", options=options).x
    return found, hessian(found)


def _leave_out(
    inputs: np.ndarray, found: np.ndarray, hessian: np.ndarray, data: Data, groups: np.ndarray
) -> np.ndarray:
    """Computes the score of each row with its patient left out, (N,), by one Newton step.

    `groups` are the rows of each patient, (P, m), padded with N.
    """
    score = data.offset + inputs @ found
    mean, variance = _moments(score, data)
    padded = np.vstack([inputs, np.zeros(inputs.shape[1])])[groups]  # (P, m, D)
    spread = padded @ np.linalg.solve(hessian, padded.transpose(0, 2, 1))
    own_variance = np.append(variance, 0.0)[groups]
    residuals = np.append(mean - data.happened, 0.0)[groups]
    system = np.eye(groups.shape[1]) - spread * own_variance[:, None, :]
    shifts = np.linalg.solve(system, spread @ residuals[..., None])[..., 0]
    row_shifts = np.zeros(len(score) + 1)
    row_shifts[groups] = shifts
    return score + row_shifts[:-1]


def _group(owners: np.ndarray) -> np.ndarray:
    """Returns the rows of each patient, (P, m), padded with the number of rows."""
    _, places, counts = np.unique(owners, return_inverse=True, return_counts=True)
    groups = np.full((len(counts), counts.max()), len(owners))
    order = np.argsort(places, kind="stable")
    groups[places[order], np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)] = order
    return groups


def _losses(scores: np.ndarray, data: Data) -> np.ndarray:
    if data.exposure is None:
        return np.logaddexp(0, scores) - data.happened * scores
    return np.exp(np.minimum(scores, LARGEST)) * data.exposure - data.happened * scores


def _moments(scores: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Computes the expected outcomes and their variances, (N,) each."""
    if data.exposure is None:
        mean = expit(scores)
        return mean, mean * (1 - mean)
    mean = np.exp(np.minimum(scores, LARGEST)) * data.exposure
    return mean, mean
