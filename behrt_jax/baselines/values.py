"""Baselines for the values of masked codes: quantiles of train, and the patient's nearest value of the same code.

Each baseline gets the same input as the model: the window with the same codes masked, and the masked code itself.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.metrics.bootstrap import PerTargetScores
from behrt_jax.models.heads import QUANTILES
from behrt_jax.objectives import mlm
from behrt_jax.objectives.scoring import MaskedBatch

FEWEST = 20  # values of a code in train for quantiles of its own, and pairs of values for a line
CODE_QUANTILES = "quantiles of the code in train"
NEAREST = "patient's nearest value of the code"


class MaskedValues(NamedTuple):
    """The masked codes that had a value, (n,) each, in the order of `MaskedBatch.targets`.

    Attributes:
      patients: the patient of each.
      codes: the masked codes.
      values: float32, their scaled values.
      nearest: float32, the patient's visible value of the same code that is nearest in time; NaN without one.
    """

    patients: np.ndarray
    codes: np.ndarray
    values: np.ndarray
    nearest: np.ndarray


Predictor = Callable[[MaskedValues], np.ndarray]


def find_values(masked_batches: Iterable[MaskedBatch]) -> MaskedValues:
    """Finds the values of masked codes; there may be none."""
    parts = [MaskedValues(*(np.empty(0, kind) for kind in (np.int32, np.int32, np.float32, np.float32)))]
    for masked in masked_batches:
        values = masked.batch["values"][masked.targets]
        has_value = ~np.isnan(values)
        found = (masked.patients, masked.labels, values, nearest_values(masked))
        parts.append(MaskedValues(*(column[has_value] for column in found)))
    return MaskedValues(*map(np.concatenate, zip(*parts, strict=True)))


def nearest_values(masked: MaskedBatch) -> np.ndarray:
    """Returns, (n,), the visible value of each masked code nearest in time, or the earlier of two; NaN without one."""
    batch = masked.batch
    is_masked = np.zeros(batch["codes"].shape, bool)
    is_masked[masked.targets] = True
    rows, places = np.nonzero(~np.isnan(batch["values"]))
    owners, codes, times = (batch[name][rows, places] for name in ("patient_ids", "codes", "times"))
    order = np.lexsort((places, codes, owners, rows))
    rows, places, times = rows[order], places[order], times[order]
    keys = np.stack([rows, owners[order], codes[order]])
    group = np.cumsum((np.diff(keys, axis=1, prepend=-1) != 0).any(axis=0))
    visible, index, last = ~is_masked[rows, places], np.arange(len(rows)), len(rows) - 1
    before = np.maximum.accumulate(np.where(visible, index, 0))
    after = np.minimum.accumulate(np.where(visible, index, last)[::-1])[::-1]
    distances = [
        np.where(visible[other] & (group[other] == group), np.abs(times[other] - times).astype(float), np.inf)
        for other in (before, after)
    ]
    nearest = np.where(distances[0] <= distances[1], before, after)
    values = np.full(is_masked.shape, np.nan, np.float32)
    is_known = np.isfinite(np.minimum(*distances))
    values[rows, places] = np.where(is_known, batch["values"][rows[nearest], places[nearest]], np.nan)
    return values[masked.targets]


def fit_baselines(train: MaskedValues, vocab_size: int) -> dict[str, Predictor]:
    """Fits every baseline.

    Args:
      train: values of train, one or more, masked as those to predict.
      vocab_size: V.

    Returns:
      By name, a function from masked values to their (n, Q) quantiles at `heads.QUANTILES`.
    """
    tables = np.tile(np.quantile(train.values, QUANTILES), (vocab_size, 1))
    lines = np.zeros((vocab_size, 2 + len(QUANTILES)))  # slope, 1 if fitted, and quantiles of the residuals
    for code in np.unique(train.codes):
        values, nearest = (column[train.codes == code].astype(np.float64) for column in (train.values, train.nearest))
        if len(values) >= FEWEST:
            tables[code] = np.quantile(values, QUANTILES)
        pairs = np.stack([nearest, values])[:, ~np.isnan(nearest)]
        if pairs.shape[1] >= FEWEST and pairs[0].std() > 0:
            slope = np.cov(pairs)[0, 1] / pairs[0].var(ddof=1)
            lines[code] = [slope, 1.0, *np.quantile(pairs[1] - slope * pairs[0], QUANTILES)]

    def from_code(found: MaskedValues) -> np.ndarray:
        return tables[found.codes]

    def from_nearest(found: MaskedValues) -> np.ndarray:
        slopes, is_fitted, residuals = np.split(lines[found.codes], [1, 2], axis=1)
        uses_line = (is_fitted[:, 0] > 0) & ~np.isnan(found.nearest)
        predicted = slopes * np.nan_to_num(found.nearest)[:, None] + residuals
        return np.where(uses_line[:, None], predicted, from_code(found))

    return {CODE_QUANTILES: from_code, NEAREST: from_nearest}


def predict(predictor: Predictor, found: MaskedValues) -> PerTargetScores:
    """Scores a baseline at each value by `mlm.value_outcomes`."""
    outcomes = mlm.value_outcomes(jnp.asarray(predictor(found), jnp.float32), jnp.asarray(found.values))
    return PerTargetScores(found.patients, jax.device_get(outcomes))
