"""Tables of features of histories at prediction times, for outcome baselines and regressions."""

from typing import NamedTuple

import numpy as np
import scipy.sparse

from behrt_jax.data.code_counts import static_tokens
from behrt_jax.data.dataset import MICROSECONDS, Patients
from behrt_jax.data.histories import ages_at, covariates_at, times_since_birth
from behrt_jax.data.vocabulary import NUM_SPECIAL
from behrt_jax.data.windows import MINUTES_PER_DAY

HALF_LIVES = (90.0, 730.0)  # days
RECENT = 730.5  # days
AGE_BINS = np.arange(0, 100, 5)
MIN_PATIENTS = 10  # of train that must have a feature
FREE = 10.0  # age and sex are scaled up relative to codes, so that penalties hardly shrink them


class Inputs(NamedTuple):
    """Features at each prediction time: (N, A) float64 age and sex, and (N, D) sparse float64 others, scaled."""

    basic: np.ndarray
    codes: scipy.sparse.csr_array

    def joined(self) -> scipy.sparse.csr_array:
        """Concatenates all features, (N, A + D) sparse."""
        return scipy.sparse.hstack([scipy.sparse.csr_array(self.basic), self.codes]).tocsr()

    def widened(self, embeddings: np.ndarray) -> "Inputs":
        """Appends (N, D) embeddings to the features."""
        return self._replace(codes=scipy.sparse.hstack([self.codes, scipy.sparse.csr_array(embeddings)]).tocsr())


def features(patients: Patients, times: np.ndarray, tokens: tuple[str, ...]) -> Inputs:
    """Computes features of N histories at their (N,) datetime64 prediction times, unscaled.

    The histories are from `histories.histories_at`, without prediction tokens.

    Returns:
      `basic`: age in decades (0 where unknown) and a column for each `GENDER//...`. `codes`: log counts of all codes,
      log counts that decay by each of `HALF_LIVES`, codes of the last `RECENT` days, static tokens, the age in bins of
      five years (the first if unknown), and the logs of the number of visits and of the days since the last token.
    """
    shape = (len(patients), len(tokens))
    owners, timed = patients.owners, patients.visits >= 0
    now = times_since_birth(patients, np.arange(len(patients)), times) / MICROSECONDS
    days_ago = np.maximum(now[owners] - patients.minutes, 0) / MINUTES_PER_DAY

    def total(weights: np.ndarray) -> scipy.sparse.csr_array:
        kept = timed & (patients.codes >= NUM_SPECIAL) & (weights > 0)
        return scipy.sparse.csr_array((weights[kept], (owners[kept], patients.codes[kept])), shape=shape)

    statics = static_tokens(patients, len(tokens)).astype(np.float64)
    ages = ages_at(patients, times)
    bins = np.searchsorted(AGE_BINS, np.nan_to_num(ages, nan=-1.0), side="right")
    last = np.full(len(patients), np.inf)
    np.minimum.at(last, owners[timed], days_ago[timed])
    visits = patients.visits[patients.offsets[1:] - 1] + 1
    blocks = [
        total(np.ones(len(days_ago))).log1p(),
        *(total(np.exp2(-days_ago / half_life)).log1p() for half_life in HALF_LIVES),
        total((days_ago <= RECENT).astype(float)).minimum(1),
        statics,
        scipy.sparse.csr_array(np.eye(len(AGE_BINS) + 1)[bins]),
        scipy.sparse.csr_array(np.log1p(np.stack([visits, last], axis=1))),
    ]
    genders = [code for code, token in enumerate(tokens) if token.startswith("GENDER//")]
    basic = np.column_stack([np.nan_to_num(ages) / 10, statics[:, genders].toarray()])
    return Inputs(basic, scipy.sparse.hstack(blocks).tocsr())


def read(patients: Patients, times: np.ndarray, tokens: tuple[str, ...]) -> Inputs:
    """Computes the inputs of baselines: `features`, with age and sex as in the model's head.

    `basic` is `histories.covariates_at`. Instead of bins of age, `codes` ends with the age in decades, which trees can
    split anywhere.
    """
    inputs = features(patients, times, tokens)
    num_logs = 2  # columns: log number of visits, log days since the last token
    blocks = inputs.codes[:, : -len(AGE_BINS) - 1 - num_logs], inputs.codes[:, -num_logs:]
    age = scipy.sparse.csr_array(inputs.basic[:, :1])
    return Inputs(covariates_at(patients, times, tokens).astype(float), scipy.sparse.hstack([*blocks, age]).tocsr())


class FeatureScaler(NamedTuple):
    """Selection and scaling of the columns of `read`, fitted to train: A of age and sex, D others.

    Attributes:
      varied: (A,) int, selected columns of `basic`.
      centre: (A,) offsets subtracted from them.
      basic_scale: (A,) factors applied afterwards.
      used: (D,) int, selected columns of `codes`.
      code_scale: (D,) their factors.
      splines: whether age is a piecewise linear basis; older runs use `features`, where age is linear.
    """

    varied: np.ndarray
    centre: np.ndarray
    basic_scale: np.ndarray
    used: np.ndarray
    code_scale: np.ndarray
    splines: bool = True

    def encode(self, patients: Patients, times: np.ndarray, tokens: tuple[str, ...]) -> Inputs:
        """Computes the selected columns of histories at their prediction times, scaled."""
        return self.scale((read if self.splines else features)(patients, times, tokens))

    def scale(self, inputs: Inputs) -> Inputs:
        """Selects and scales columns of inputs with the columns that it was fitted to."""
        basic = (inputs.basic[:, self.varied] - self.centre) * self.basic_scale
        return Inputs(basic, (inputs.codes[:, self.used] @ scipy.sparse.diags_array(self.code_scale)).tocsr())


def fit_scaler(patients: Patients, times: np.ndarray, tokens: tuple[str, ...]) -> FeatureScaler:
    """Selects and scales the columns of `read` on train; see `fit_columns`."""
    return fit_columns(read(patients, times, tokens), patients.subject_ids)


def fit_columns(table: Inputs, subject_ids: np.ndarray) -> FeatureScaler:
    """Selects columns of the train inputs and fits their scales; row n belongs to the patient `subject_ids[n]`.

    Columns that fewer than `MIN_PATIENTS` patients have, or that are constant, are left out; the others are divided by
    their standard deviation. Age and sex share one scale, `FREE` times as large, so that a knot with few patients near
    it is not larger than the others.
    """
    _, subjects = np.unique(subject_ids, return_inverse=True)
    groups = scipy.sparse.csr_array((np.ones(len(subjects)), (subjects, np.arange(len(subjects)))))
    num_patients = np.diff((groups @ table.codes).tocsc().indptr)
    mean = table.codes.mean(axis=0)
    deviation = np.sqrt(np.maximum(table.codes.power(2).mean(axis=0) - mean**2, 0))
    used = np.flatnonzero((num_patients >= MIN_PATIENTS) & (deviation > 1e-6))
    spread = table.basic.std(axis=0)
    varied = np.flatnonzero(spread > 1e-6)
    scale = FREE / np.sqrt(np.mean(spread[varied] ** 2)) if len(varied) else FREE
    centre = table.basic.mean(axis=0)[varied]
    return FeatureScaler(varied, centre, np.full(len(varied), scale), used, 1 / deviation[used])
