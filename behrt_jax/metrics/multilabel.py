"""Metrics of next-visit prediction, many codes at once, with bootstrap intervals over patients.

Ranking metrics of a resample come from histograms of scores by patient. On the data they are exact, and the
resamples are shifted by the small difference between the two. Undefined metrics are omitted.

Where few patients have a code, a resample may contain none of them, or some of them twice. The value need not be in the
middle of the interval of a mean over codes.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse

from behrt_jax.metrics.bootstrap import Estimate, divide, resamples

PREFIX = "next_visit/"
MIN_CELLS = 10  # positives, and for AUROC negatives, that a code needs to count in a mean over codes
CALIBRATION_BINS = 15
MICRO_QUANTILES, MICRO_TOP, CODE_QUANTILES = 2000, 200, 48
ROWS = 4096  # visits worked on at once
EPSILON = float(np.finfo(np.float32).eps)

Targets = np.ndarray | scipy.sparse.csr_array


class Examples(NamedTuple):
    """N visits to predict, with their patients and which of T codes they contain.

    Attributes:
      targets: (N, T) bool, dense or sparse.
      patients: (N,) int, the patient of each visit.
      seen_before: (N, T) bool, codes that the patient had before.
      cells: further parts of the table to measure, by name: bool masks that broadcast to (N, T); see `group_cells`.
    """

    targets: Targets
    patients: np.ndarray
    seen_before: np.ndarray
    cells: dict[str, np.ndarray] = {}


def group_cells(
    code_types: np.ndarray | None = None, ages: np.ndarray | None = None, sexes: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Returns masks of parts of the table by name, such as `type=CONDITION`, `age=40-60` and `sex=F`.

    Types are (T,) str; ages (N,) years, where NaN is in no band; sexes (N,) str, empty where unknown.
    """
    cells = {}
    if code_types is not None:
        cells |= {f"type={kind}": (code_types == kind)[None, :] for kind in np.unique(code_types)}
    if ages is not None:
        bands = {"0-20": (0, 20), "20-40": (20, 40), "40-60": (40, 60), "60-80": (60, 80), "80+": (80, np.inf)}
        cells |= {f"age={name}": ((ages >= low) & (ages < high))[:, None] for name, (low, high) in bands.items()}
    if sexes is not None:
        cells |= {f"sex={sex}": (sexes == sex)[:, None] for sex in np.unique(sexes) if sex}
    return cells


def measure(probabilities: np.ndarray, examples: Examples, threshold: float, seed: int = 0) -> dict[str, Estimate]:
    """Measures (N, T) float32 probabilities of the codes of `examples`, independent of each other.

    Args:
      probabilities: of the codes.
      examples: the visits and their targets.
      threshold: the lowest probability at which a code is predicted; `best_threshold` on the tuning split.
      seed: of the resamples; two models measured with the same seed are paired.

    Returns:
      Estimates by name; n counts visits, positive cells (`micro_f1`, `average_precision*`) or codes (`macro_*`), and
      `patients` counts the patients of these visits, of the positive cells, or of the positive cells of these codes.
    """
    order = np.argsort(examples.patients, kind="stable")
    probabilities, targets = np.asarray(probabilities, np.float32)[order], _dense(examples.targets)[order]
    seen = np.asarray(examples.seen_before)[order]
    _, owners = np.unique(np.asarray(examples.patients)[order], return_inverse=True)
    num_patients, cut = int(owners[-1]) + 1, np.float32(threshold)  # the dtype of the scores
    weights = np.vstack([np.ones((1, num_patients)), resamples(num_patients, seed)]).astype(np.float32)
    parts = {f"/{name}": cells if len(cells) == 1 else cells[order] for name, cells in examples.cells.items()}
    results = _ratios(probabilities, targets, seen, owners, weights, cut)
    for name, cells in {"": np.True_, "/new": ~seen, "/repeat": seen, **parts}.items():
        results[f"average_precision{name}"] = _micro_average_precision(probabilities, targets, cells, owners, weights)
    results |= _means_over_codes(probabilities, targets, owners, weights, cut)
    results["calibration_error"] = _calibration_error(probabilities, targets, owners, weights)
    return {PREFIX + name: estimate for name, estimate in results.items() if estimate is not None}


def best_threshold(probabilities: np.ndarray, targets: Targets) -> float:
    """Returns the threshold of the highest micro-F1 over all cut points; 1 without targets."""
    if not targets.sum():
        return 1.0
    precision, recall, cuts = _curve(np.asarray(probabilities, np.float32), _dense(targets))
    return float(cuts[np.argmax(precision * recall / (precision + recall))])


def precision_recall(probabilities: np.ndarray, targets: Targets, points: int = 200) -> tuple[np.ndarray, ...]:
    """Returns precision, recall and threshold, each (points or fewer,), at cuts spaced evenly over the positives."""
    precision, recall, cuts = _curve(probabilities, _dense(targets))
    hits = np.rint(recall * targets.sum())
    indices = np.unique(np.searchsorted(-hits, -np.linspace(hits[0], 1, points), "right") - 1)
    return precision[indices], recall[indices], cuts[indices]


def hits_at(scores: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Counts the targets among the k highest scores of each row, (N,); targets rank last among tied scores."""
    k = min(k, scores.shape[1])
    lowest = np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k, None]
    above, tied = scores > lowest, scores == lowest
    room = k - above.sum(axis=1) - (tied & ~targets).sum(axis=1)
    return (above & targets).sum(axis=1) + np.clip(room, 0, (tied & targets).sum(axis=1))


def _dense(targets) -> np.ndarray:
    return targets.toarray() if scipy.sparse.issparse(targets) else np.asarray(targets)


def _curve(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns precision, recall and threshold at the distinct scores of targets, ascending."""
    cuts, hits, cells = _count_from(np.sort(scores, axis=None), np.sort(scores[targets]))
    return hits / cells, hits / hits[:1], cuts


def _count_from(scores: np.ndarray, hits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the distinct scores of hits, ascending, and the numbers of hits and of scores at or above each.

    Both arguments are 1-D and ascending.
    """
    cuts, first = np.unique(hits, return_index=True)
    return cuts, len(hits) - first, len(scores) - np.searchsorted(scores, cuts)


def _exact(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Computes the average precision and the AUROC of (N,) scores; NaN where undefined.

    Both need the scores once in order; scikit-learn sorts for each, and checks its inputs for longer than that.
    """
    ordered = np.sort(scores)
    cuts, hits, cells = _count_from(ordered, np.sort(scores[targets]))
    hits_here = -np.diff(hits, append=0)
    others_here = np.searchsorted(ordered, cuts, "right") - np.searchsorted(ordered, cuts) - hits_here
    num_hits = hits_here.sum()
    num_others = len(scores) - num_hits
    others_below = num_others - (cells - hits)
    average_precision = divide((hits_here * hits / cells).sum(), num_hits)
    auroc = divide((hits_here * (others_below + others_here / 2)).sum(), num_hits * num_others)
    return float(average_precision), float(auroc)


def _ratios(probabilities, targets, seen, owners, weights, threshold) -> dict[str, Estimate | None]:
    """Computes the metrics that are a ratio of two sums over visits."""
    totals = {}
    for start in range(0, len(owners), ROWS):
        rows = slice(start, start + ROWS)
        scores, labels, new_labels = probabilities[rows], targets[rows], targets[rows] & ~seen[rows]
        num_labels, num_new = labels.sum(axis=1), new_labels.sum(axis=1)
        ones, predictions = np.ones(len(scores)), scores >= threshold
        probs = np.clip(scores.astype(np.float64), EPSILON, 1 - EPSILON)
        hits_new = hits_at(np.where(seen[rows], -np.inf, scores), new_labels, 10)
        sums = {
            "micro_f1": (2 * (predictions & labels).sum(axis=1), predictions.sum(axis=1) + num_labels),
            "recall@10/new": (hits_new / np.maximum(num_new, 1), num_new > 0),
            "loss": (-np.log(np.where(labels, probs, 1 - probs)).sum(axis=1), ones),
        }
        for k in (10, 30):
            sums[f"recall@{k}"] = (hits_at(scores, labels, k) / np.maximum(num_labels, 1), num_labels > 0)
        for k in (1, 10):
            sums[f"precision@{k}"] = (hits_at(scores, labels, k) / min(k, scores.shape[1]), ones)
        for name, pair in sums.items():
            table = np.stack([np.bincount(owners[rows], column, weights.shape[1]) for column in pair])
            totals[name] = totals.get(name, 0) + table
    counts = {name: pair[1] for name, pair in totals.items()}
    counts["micro_f1"] = np.bincount(owners, targets.sum(axis=1), weights.shape[1])
    ratios = {name: divide(*(pair @ weights.T)) for name, pair in totals.items()}
    return {
        name: _estimate(values, values[0], int(counts[name].sum()), int((counts[name] > 0).sum()))
        for name, values in ratios.items()
    }


def _micro_average_precision(probabilities, targets, cells, owners, weights) -> Estimate | None:
    """Computes the average precision over all cells of a part of the table."""
    cells = np.broadcast_to(cells, targets.shape)
    scores, hits = probabilities[cells], targets[cells]
    if not hits.any():
        return None
    positives = np.sort(scores[hits])
    edges = np.unique(np.concatenate([_spread(positives, MICRO_QUANTILES), positives[-MICRO_TOP:]]))
    histograms = _count(np.repeat(owners, cells.sum(axis=1)), scores, hits, edges, weights)
    patients = len(np.unique(owners[(targets & cells).any(axis=1)]))
    return _estimate(_binned(*histograms)[0], _exact(scores, hits)[0], len(positives), patients)


def _means_over_codes(probabilities, targets, owners, weights, threshold) -> dict[str, Estimate | None]:
    """Averages metrics over the codes with enough positives; in a resample, over those codes that occur in it."""
    positives = targets.sum(axis=0)
    code_ids = np.flatnonzero(positives >= MIN_CELLS)
    if not len(code_ids):
        return {}
    parts = [_measure_code(probabilities[:, code], targets[:, code], owners, weights, threshold) for code in code_ids]
    binned, exact = (np.stack(side, axis=-1) for side in zip(*parts, strict=True))
    all_codes = np.ones(len(code_ids), bool)
    enough = len(owners) - positives[code_ids] >= MIN_CELLS
    results, kinds = {}, {"macro_average_precision": all_codes, "macro_auroc": enough, "macro_f1": all_codes}
    for (name, kept), replicates, values in zip(kinds.items(), binned, exact, strict=True):
        present = ~np.isnan(replicates) & kept
        means = divide(np.where(present, replicates, 0).sum(axis=1), present.sum(axis=1))
        patients = len(np.unique(owners[targets[:, code_ids[kept]].any(axis=1)]))
        results[name] = _estimate(means, values[kept].sum() / max(kept.sum(), 1), int(kept.sum()), patients)
    return results


def _measure_code(column, wanted, owners, weights, threshold) -> tuple[np.ndarray, np.ndarray]:
    """Computes average precision, AUROC and F1 of one code: (3, 1 + resamples) from histograms and (3,) exact."""
    quantiles = _spread(np.sort(column[wanted]), CODE_QUANTILES)
    edges = np.unique(np.concatenate([quantiles, np.nextafter(quantiles, np.float32(np.inf)), [threshold]]))
    # A bin of one score is a step of the curve; in a bin of several scores, precision is taken at its middle.
    middle = np.append(0.5, np.where(np.isin(edges, quantiles), 0.0, 0.5))
    hits, totals = _count(owners, column, wanted, edges, weights)
    precision, area = _binned(hits, totals, middle)
    cut = np.searchsorted(edges, threshold, side="right")
    f1 = divide(2 * hits[:, cut:].sum(axis=1), totals[:, cut:].sum(axis=1) + hits.sum(axis=1))
    f1 = np.where(hits.any(axis=1), f1, np.nan)
    return np.stack([precision, area, f1]), np.array([*_exact(column, wanted), f1[0]])


def _count(owners, scores, hits, edges, weights) -> list[np.ndarray]:
    """Counts positives and cells of each resample in bins that start at edges, each (R, edges + 1) float32."""
    shape = weights.shape[1], len(edges) + 1
    bins = np.searchsorted(edges, scores, side="right")
    bins += owners * shape[1]
    counts = (np.bincount(values, minlength=shape[0] * shape[1]) for values in (bins[hits], bins))
    return [weights @ values.reshape(shape).astype(np.float32) for values in counts]


def _binned(hits: np.ndarray, every: np.ndarray, middle: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns the average precision and the AUROC of (R, bins) positives and cells, in bins of ascending scores.

    `middle` is where in a bin precision is taken: 0 is its lower end, 1 its upper end.
    """
    hits_above, cells_above = (np.cumsum(table[:, ::-1], axis=1, dtype=np.float64)[:, ::-1] for table in (hits, every))
    negatives = every - hits
    precision = divide(hits_above - middle * hits, cells_above - middle * every)
    pairs = hits_above[:, 0] * negatives.sum(axis=1, dtype=np.float64)
    return (
        divide((hits * np.nan_to_num(precision)).sum(axis=1), hits_above[:, 0]),
        divide((negatives * (hits_above - hits / 2)).sum(axis=1), pairs),
    )


def _calibration_error(probabilities, targets, owners, weights) -> Estimate | None:
    """Computes the mean distance of probabilities from observed shares, over equal-mass bins of all cells."""
    totals = np.tensordot(weights, calibration_table(probabilities, targets, owners), 1)
    errors = np.abs(totals[:, 0] - totals[:, 1]).sum(axis=1) / totals[:, 2].sum(axis=1)
    return _estimate(errors, errors[0], targets.size, int(owners[-1]) + 1)


def calibration_table(probabilities, targets, owners, num_bins: int = CALIBRATION_BINS) -> np.ndarray:
    """Sums probabilities, targets and cells by patient and equal-mass bin: (patients, 3, bins)."""
    ranks = np.arange(1, num_bins) * probabilities.size // num_bins
    edges = np.unique(np.partition(probabilities, ranks, axis=None)[ranks])
    bins = np.searchsorted(edges, probabilities, side="right") + owners[:, None] * num_bins
    size = (owners.max() + 1) * num_bins
    sums = [np.bincount(bins.ravel(), values, size) for values in (probabilities.ravel(), targets.ravel(), None)]
    return np.stack([table.reshape(-1, num_bins) for table in sums], axis=1)


def _spread(ordered: np.ndarray, count: int) -> np.ndarray:
    """Picks at most `count` of ascending values, spaced evenly by rank, with the lowest and the highest."""
    return ordered[np.unique(np.linspace(0, len(ordered) - 1, count).astype(int))]


def _estimate(found: np.ndarray, value: float, n: int, patients: int) -> Estimate | None:
    """Builds an estimate from an exact value and (1 + resamples,) approximate ones, the first of them on the data."""
    return Estimate(float(value), found[1:] + (value - found[0]), n, patients) if n else None
