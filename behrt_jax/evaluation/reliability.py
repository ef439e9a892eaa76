"""Reliability curves: predicted probabilities beside observed frequencies, in bins of equal mass.

A curve is a list of points `{"predicted", "value", "low", "high", "n", "patients"}`, one for each bin: the mean
prediction, the observed frequency with its interval over patients, and the numbers of predictions and of patients.
Each target has one or two curves: the finest and, if any of its bins has fewer than `MIN_PATIENTS` patients, the finest
with enough patients in every bin, to be shown of real patients.
"""

import numpy as np

from behrt_jax.evaluation.small_cells import MIN_PATIENTS
from behrt_jax.metrics import bootstrap, survival
from behrt_jax.metrics.classification import equal_mass_bins, most_bins, row_weights
from behrt_jax.metrics.multilabel import CALIBRATION_BINS, calibration_table

ReliabilityCurves = list[list[dict[str, float]]]


def of_probabilities(probabilities: np.ndarray, targets: np.ndarray, patients: np.ndarray) -> ReliabilityCurves:
    """Computes the curves of (N, T) float32 probabilities and (N, T) bool targets, of (N,) patients."""
    owners, curves = np.unique(patients, return_inverse=True)[1], []
    weights = bootstrap.resamples(int(owners.max()) + 1).astype(np.float64)
    for num_bins in range(CALIBRATION_BINS, 0, -1):
        table = calibration_table(probabilities, targets, owners, num_bins)
        table = table[:, :, table[:, 2].sum(axis=0) > 0]
        counts, (sums, hits, cells) = (table[:, 2] > 0).sum(axis=0), table.sum(axis=0)
        is_enough = counts.min() >= MIN_PATIENTS
        if is_enough or not curves:
            resampled = np.tensordot(weights, table, 1)
            shares = bootstrap.divide(resampled[:, 1], resampled[:, 2])
            curves.append(_points(sums / cells, hits / cells, shares, cells, counts))
        if is_enough:
            break
    return curves


def of_risks(
    risks: np.ndarray, days: np.ndarray, causes: np.ndarray, patients: np.ndarray, horizon: float, cause: int
) -> ReliabilityCurves:
    """Computes the curves of (N,) risks of an event by a horizon (days); see `survival.calibration_table`."""
    curves, weights = [], row_weights(patients)
    for num_bins in sorted({most_bins(risks, patients, fewest) for fewest in (1, MIN_PATIENTS)} - {0}, reverse=True):
        predicted, observed, mass = survival.calibration_table(risks, days, causes, weights, horizon, cause, num_bins)
        bins = equal_mass_bins(risks, num_bins)
        counts = [len(np.unique(patients[bins == each])) for each in np.unique(bins)]
        curves.append(_points(predicted[0], observed[0], observed[1:], mass[0], counts))
    return curves


def _points(predicted, observed, resampled, numbers, patients) -> list[dict[str, float]]:
    """Makes a curve of (bins,) arrays and (R, bins) observed frequencies of resamples."""
    low, high = np.nanquantile(resampled, [(1 - bootstrap.LEVEL) / 2, (1 + bootstrap.LEVEL) / 2], axis=0)
    columns = {"predicted": predicted, "value": observed, "low": low, "high": high, "n": numbers, "patients": patients}
    casts = {"n": int, "patients": int}
    rows = zip(*columns.values(), strict=True)
    return [{name: casts.get(name, float)(value) for name, value in zip(columns, row, strict=True)} for row in rows]
