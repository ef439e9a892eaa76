"""Features of the last hours before a prediction time, with values: for stays in hospital, where hours matter."""

import numpy as np
import scipy.sparse

from behrt_jax.data.code_counts import static_tokens
from behrt_jax.data.dataset import MICROSECONDS, Patients
from behrt_jax.data.histories import covariates_at, times_since_birth
from behrt_jax.data.vocabulary import NUM_SPECIAL
from behrt_jax.data.windows import MINUTES_PER_DAY
from behrt_jax.regression.outcome_features import Inputs

ZERO = 1e-9  # what stands for a value of 0, as a sparse table does not tell 0 from a missing value


def read(patients: Patients, times: np.ndarray, tokens: tuple[str, ...], days: float) -> Inputs:
    """Computes features of N histories at their (N,) datetime64 prediction times, unscaled.

    Args:
      patients: N histories from `histories.histories_at`, without prediction tokens; with `values` if
        `data.value_encoding` is `continuous`.
      times: the prediction times.
      tokens: of the vocabulary, by id.
      days: length of the window before the prediction time.

    Returns:
      `basic`: `histories.covariates_at`. `codes`: log counts of codes within the window, log counts before it, static
      tokens, and of each code with values the last, lowest, highest and mean value within the window.
    """
    shape, owners = (len(patients), len(tokens)), patients.owners
    now = times_since_birth(patients, np.arange(len(patients)), times) / MICROSECONDS
    timed = (patients.visits >= 0) & (patients.codes >= NUM_SPECIAL)
    recent = timed & (now[owners] - patients.minutes <= days * MINUTES_PER_DAY)

    def count(kept: np.ndarray) -> scipy.sparse.csr_array:
        cells = owners[kept], patients.codes[kept]
        return scipy.sparse.csr_array((np.ones(len(cells[0])), cells), shape=shape).log1p()

    blocks = [count(recent), count(timed & ~recent), static_tokens(patients, len(tokens)).astype(np.float64)]
    if patients.values is not None:
        blocks += _summarize(patients, patients.values, recent & ~np.isnan(patients.values), shape)
    basic = covariates_at(patients, times, tokens).astype(float)
    return Inputs(basic, scipy.sparse.hstack(blocks).tocsr())


def _summarize(
    patients: Patients, values: np.ndarray, kept: np.ndarray, shape: tuple[int, int]
) -> list[scipy.sparse.csr_array]:
    """Returns the last, lowest, highest and mean of the kept values of each code, (N, V) each."""
    cells = patients.owners[kept].astype(np.int64) * shape[1] + patients.codes[kept]
    order = np.lexsort((patients.times[kept], cells))
    cells, values = cells[order], values[kept][order].astype(np.float64)
    places, starts, sizes = np.unique(cells, return_index=True, return_counts=True)
    if not len(places):
        return []
    lowest, highest, total = (each.reduceat(values, starts) for each in (np.minimum, np.maximum, np.add))
    columns = values[starts + sizes - 1], lowest, highest, total / sizes
    where = np.divmod(places, shape[1])
    return [scipy.sparse.csr_array((np.where(each == 0, ZERO, each), where), shape=shape) for each in columns]
