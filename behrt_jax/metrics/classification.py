"""Metrics of classification at prediction times, with bootstrap intervals over patients.

Each resample is measured exactly: a patient sampled twice gives its rows twice the weight. Undefined metrics are
omitted: all metrics of a group with one class, or the slope where predictions separate the classes perfectly. A
resample that lacks a class still counts for the metrics that do not need it. The calibration error of resamples is
higher than that of the data, as noise adds to distances, so the value need not be in the middle of its interval.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit, logit

from behrt_jax.metrics import multilabel
from behrt_jax.metrics.bootstrap import Estimate, divide, resamples

PREFIX = "classification/"
CALIBRATION_BINS = 10
NET_BENEFIT_THRESHOLDS = (0.05, 0.1, 0.2, 0.3)
FIGURE_RESAMPLES = 200  # a drawn band or bar needs fewer than a reported interval
CELLS = 2_000_000  # resamples times rows worked on at once
MAX_NEWTON_STEPS = 60
TOLERANCE = 1e-4  # of the last step; the error of Newton's method is about its square
EPSILON = float(np.finfo(np.float32).eps)


def measure(
    probabilities: np.ndarray,
    targets: np.ndarray,
    patients: np.ndarray,
    threshold: float | np.ndarray = 0.5,
    groups: dict[str, np.ndarray] | None = None,
    labels: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Estimate]:
    """Measures the predictions of a binary, multi-label or multi-class model.

    Binary and multi-label: AUROC, average precision (`auprc`), Brier score, log loss, calibration slope (Cox 1958) and
    error (equal-mass bins), F1, prevalence, and net benefit at some probabilities (Vickers & Elkin 2006). With several
    labels, each is the mean over the labels where it is defined. Multi-class: the mean of the one-vs-rest AUROCs,
    accuracy, log loss, Brier score (0 to 2), and the calibration error of the most likely class.

    Args:
      probabilities: (N,) binary, (N, K) otherwise.
      targets: (N,) bool binary; (N, K) bool multi-label; (N,) int of 0 to K - 1 multi-class.
      patients: (N,) int, the patient of each row.
      threshold: the lowest probability at which a label is predicted, one or (K,); see `best_threshold`.
      groups: bool masks of rows by name, (N,) or (N, 1); see `multilabel.group_cells`.
      labels: K names; adds the metrics of each label or class, as `auroc/label=NAME`.
      seed: of the resamples; two models measured with the same seed are paired.

    Returns:
      Estimates by name, as `classification/auroc` and `classification/auroc/sex=F`; n counts rows.

    Raises:
      ValueError: values are no probabilities, or the inputs do not fit the targets.
    """
    probabilities, targets = check(probabilities, targets)
    owners, weights = patient_weights(patients, len(targets), seed)
    columns = targets.reshape(len(targets), -1)
    is_multi_class = targets.ndim < probabilities.ndim
    num_labels = probabilities.reshape(len(targets), -1).shape[1]
    if len(labels) not in (0, num_labels):
        raise ValueError(f"{len(labels)} names do not fit {num_labels} labels")
    cuts = np.broadcast_to(np.float32(threshold), num_labels)
    results = {}
    for part, rows in parts(groups, len(targets)).items():
        if part and (not rows.any() or (columns[rows] == columns[rows][0]).all()):
            continue
        scores = probabilities.reshape(len(targets), -1)[rows]
        if is_multi_class:
            function = _multi_class(scores, targets[rows], labels)
        else:
            function = _multi_label(scores, columns[rows], cuts, labels)
        results |= estimates(replicate(function, owners[rows], weights), PREFIX, part, owners[rows])
    return results


def best_threshold(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the threshold of the highest F1 for each label, () for (N,) or (K,) for (N, K); 1 without positives."""
    probabilities, targets = check(probabilities, targets)
    pairs = zip(np.atleast_2d(probabilities.T), np.atleast_2d(targets.T), strict=True)
    thresholds = [multilabel.best_threshold(scores, labels) for scores, labels in pairs]
    return np.array(thresholds, np.float32).reshape(targets.shape[1:])


def auroc(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Computes the area under the ROC curve of (N,) scores under each of (R, N) weights; a tie counts half."""
    positives, negatives = _by_score(scores, targets, weights)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    return divide((positives * below).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))


def average_precision(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Computes the step-wise average precision of (N,) scores under each of (R, N) weights; ties make one step."""
    positives, negatives = _by_score(-scores, targets, weights)
    hits = np.cumsum(positives, axis=1)
    precision = divide(hits, hits + np.cumsum(negatives, axis=1))
    return divide(np.where(positives > 0, positives * precision, 0).sum(axis=1), hits[:, -1])


def calibration_error(probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Computes the mean distance of probabilities from shares in equal-mass bins, under each of (R, N) weights."""
    bins = equal_mass_bins(probabilities)
    excess = np.eye(CALIBRATION_BINS)[bins] * (probabilities - targets)[:, None]
    return divide(np.abs(weights @ excess).sum(axis=1), weights.sum(axis=1))


def equal_mass_bins(scores: np.ndarray, num_bins: int = CALIBRATION_BINS) -> np.ndarray:
    """Assigns (N,) scores to equal-mass bins, numbered 0 to num_bins - 1 by ascending score; ties share a bin."""
    edges = np.quantile(scores, np.arange(1, num_bins) / num_bins)
    return np.searchsorted(edges, scores, side="left")


def most_bins(scores: np.ndarray, patients: np.ndarray, fewest: int, most: int = CALIBRATION_BINS) -> int:
    """Returns the largest number of equal-mass bins, up to `most`, with at least `fewest` patients each; 0 if none."""
    for num_bins in range(most, 0, -1):
        bins = equal_mass_bins(scores, num_bins)
        if all(len(np.unique(patients[bins == index])) >= fewest for index in np.unique(bins)):
            return num_bins
    return 0


def calibration_slope(probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Computes the slope of a logistic regression on the logits (Cox 1958); 1 is ideal, below 1 is overconfident."""

    def logistic(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means = expit(line)
        return means, means * (1 - means)

    return fit_slope(logit(np.clip(probabilities, EPSILON, 1 - EPSILON)), targets, weights, logistic)


def fit_slope(
    covariate: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    mean: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Fits a generalised linear model of one (N,) covariate by Newton's method under each of (R, N) weights.

    `mean` maps (R, N) linear predictors to the means of the (N,) targets and their derivatives.

    Returns:
      (R,) slopes; NaN where there is none, as with separated classes.
    """
    start = np.zeros((1, 2))
    if len(weights) > 1:  # slopes of resamples are close to the slope of all rows
        start = _newton(covariate, targets, np.ones_like(weights[:1]), mean, start)
    return _newton(covariate, targets, weights, mean, np.repeat(start, len(weights), axis=0))[:, 1]


def _newton(covariate, targets, weights, mean, line) -> np.ndarray:
    """Runs Newton's method from (R, 2) intercepts and slopes with steps of at most 1; NaN without convergence."""
    powers = np.stack([np.ones_like(covariate), covariate, covariate**2], axis=1)
    size = np.full(len(line), np.inf)
    for _ in range(MAX_NEWTON_STEPS):
        means, derivative = mean(line @ powers[:, :2].T)
        gradient = (weights * (targets - means)) @ powers[:, :2]
        curvature = (weights * derivative) @ powers
        numerators = curvature[:, [2, 0]] * gradient - curvature[:, 1:2] * gradient[:, ::-1]
        step = divide(numerators, (curvature[:, 0] * curvature[:, 2] - curvature[:, 1] ** 2)[:, None])
        size = np.abs(step).max(axis=1)
        line = line + step / np.maximum(size, 1)[:, None]
        if not (size > TOLERANCE).any():  # a step of NaN has failed
            break
    return np.where(size[:, None] <= TOLERANCE, line, np.nan)


def _multi_label(scores, targets, cuts, labels) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns a function from (R, N) weights to each metric of each resample, averaged over labels."""

    def found(weights: np.ndarray) -> dict[str, np.ndarray]:
        label_metrics = [_binary(*one, weights) for one in zip(scores.T, targets.T, cuts, strict=True)]
        means = {name: mean_over([one[name] for one in label_metrics]) for name in label_metrics[0]}
        return means | _by_label(label_metrics, labels)

    return found


def _binary(scores, targets, cut, weights) -> dict[str, np.ndarray]:
    probs, predictions = np.clip(scores, EPSILON, 1 - EPSILON), scores.astype(np.float32) >= cut
    rows = {
        "brier": (scores - targets) ** 2,
        "loss": -np.log(np.where(targets, probs, 1 - probs)),
        "prevalence": targets,
        **{f"net_benefit@{p}": (scores >= p) * np.where(targets, 1, -p / (1 - p)) for p in NET_BENEFIT_THRESHOLDS},
    }
    true_positives, totals = weights @ (predictions & targets), weights @ (predictions.astype(float) + targets)
    auprc = average_precision(scores, targets, weights)
    return {
        "auroc": auroc(scores, targets, weights),
        "auprc": np.full_like(auprc, np.nan) if targets.all() else auprc,  # 1 for any prediction
        "calibration_slope": calibration_slope(scores, targets, weights),
        "calibration_error": calibration_error(scores, targets, weights),
        "f1": divide(2 * true_positives, totals),
        **_means(rows, weights),
    }


def _multi_class(scores, targets, labels) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns a function from (R, N) weights to each metric of each resample."""
    is_class = np.eye(scores.shape[1], dtype=bool)[targets]
    confidence, correct = scores.max(axis=1), scores.argmax(axis=1) == targets
    rows = {
        "accuracy": correct,
        "loss": -np.log(np.clip(scores[is_class], EPSILON, 1)),
        "brier": ((scores - is_class) ** 2).sum(axis=1),
    }

    def found(weights: np.ndarray) -> dict[str, np.ndarray]:
        label_metrics = [{"auroc": auroc(*one, weights)} for one in zip(scores.T, is_class.T, strict=True)]
        error = calibration_error(confidence, correct, weights)
        overall = {"auroc": mean_over([one["auroc"] for one in label_metrics]), "calibration_error": error}
        return overall | _means(rows, weights) | _by_label(label_metrics, labels)

    return found


def _means(rows: dict[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    means = divide(weights @ np.stack([*rows.values()], axis=1), weights.sum(axis=1, keepdims=True))
    return dict(zip(rows, means.T, strict=True))


def _by_label(each: list[dict[str, np.ndarray]], labels: Sequence[str]) -> dict[str, np.ndarray]:
    label_metrics = dict(zip(labels, each, strict=False))  # either all or none are named
    return {f"{metric}/label={name}": values for name, one in label_metrics.items() for metric, values in one.items()}


def _by_score(scores, targets, weights) -> tuple[np.ndarray, np.ndarray]:
    """Sums the weights of positives and of negatives at each distinct score, ascending, (R, distinct) each."""
    order = np.argsort(scores)
    starts = np.unique(scores[order], return_index=True)[1]
    sorted_weights = weights[:, order]
    positives = sorted_weights * targets[order]
    if len(starts) == len(order):
        return positives, sorted_weights - positives
    return np.add.reduceat(positives, starts, axis=1), np.add.reduceat(sorted_weights - positives, starts, axis=1)


def check(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities as float64 and targets as bool, or as int for multi-class.

    Raises:
      ValueError: values are no probabilities, or they do not fit the targets.
    """
    probabilities, targets = np.asarray(probabilities, np.float64), np.asarray(targets)
    num_invalid = int((~((probabilities >= 0) & (probabilities <= 1))).sum())
    if num_invalid:
        raise ValueError(f"{num_invalid:,} of {probabilities.size:,} probabilities are NaN or outside 0 to 1")
    is_multi_class = probabilities.ndim == 2 and targets.ndim == 1
    if not len(targets) or probabilities.shape[: 1 if is_multi_class else 2] != targets.shape:
        raise ValueError(f"probabilities {probabilities.shape} do not fit targets {targets.shape} of 1 row or more")
    classes = probabilities.shape[1] if is_multi_class else 2
    num_invalid = int((~np.isin(targets, np.arange(classes))).sum())
    if num_invalid:
        raise ValueError(
            f"{num_invalid:,} of {targets.size:,} targets are none of the {classes} classes 0 to {classes - 1}"
        )
    return probabilities, targets.astype(int if is_multi_class else bool)


def patient_weights(patients: np.ndarray, num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each row's patient index, (N,), and bootstrap counts of patients, (1 + R, P); the first row is all ones.

    Raises:
      ValueError: there is not one patient for each row.
    """
    if np.shape(patients) != (num_rows,):
        raise ValueError(f"{np.shape(patients)} patients do not fit {num_rows:,} rows")
    unique_patients, owners = np.unique(patients, return_inverse=True)
    return owners, np.vstack([np.ones((1, len(unique_patients)), np.uint16), resamples(len(unique_patients), seed)])


def row_weights(patients: np.ndarray) -> np.ndarray:
    """Returns how often each row counts: once in the data, then in each resample of a figure, (1 + R, N) int."""
    owners, weights = patient_weights(patients, len(patients), seed=0)
    return weights[: FIGURE_RESAMPLES + 1, owners].astype(int)


def parts(groups: dict[str, np.ndarray] | None, num_rows: int) -> dict[str, np.ndarray]:
    """Returns (N,) bool masks: all rows under "", and each group under "/NAME"."""
    masks = {f"/{name}": np.asarray(rows, bool).reshape(num_rows) for name, rows in (groups or {}).items()}
    return {"": np.ones(num_rows, bool), **masks}


def replicate(
    function: Callable[[np.ndarray], dict[str, np.ndarray]], owners: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Applies a function of (r, N) row weights to a few resamples at a time and concatenates the results."""
    size = max(1, CELLS // len(owners))
    chunks = (weights[start : start + size] for start in range(0, len(weights), size))
    results = [function(chunk[:, owners].astype(np.float64)) for chunk in chunks]
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def estimates(found: dict[str, np.ndarray], prefix: str, part: str, owners: np.ndarray) -> dict[str, Estimate]:
    """Builds estimates from (1 + R,) values, the first on the data; omits those undefined there or on all resamples.

    `owners`, (N,) int, are the patients of the rows that were measured.
    """
    counts = len(owners), len(np.unique(owners))
    return {
        f"{prefix}{name}{part}": Estimate(float(values[0]), values[1:], *counts)
        for name, values in found.items()
        if np.isfinite(values[0]) and np.isfinite(values[1:]).any()
    }


def mean_over(values: list[np.ndarray]) -> np.ndarray:
    """Averages (R,) arrays element-wise, ignoring NaN."""
    table = np.stack(values)
    return divide(np.nansum(table, axis=0), (~np.isnan(table)).sum(axis=0))
