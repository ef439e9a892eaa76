"""Truncates histories at prediction times, so that no later event is visible."""

import collections
import dataclasses

import numpy as np

from behrt_jax.data import events
from behrt_jax.data.dataset import MICROSECONDS, Patients, gather
from behrt_jax.data.sexes import SEXES, sexes
from behrt_jax.data.vocabulary import SEP
from behrt_jax.data.windows import MINUTES_PER_DAY, MINUTES_PER_YEAR, ranges

ROWS = 512  # histories processed at once
AGE_KNOTS = np.arange(0.0, 101.0, 10.0)  # years
NUM_COVARIATES = len(AGE_KNOTS) + len(SEXES)


def histories_at(
    patients: Patients,
    subject_ids: np.ndarray,
    prediction_times: np.ndarray,
    include_at: bool = False,
) -> tuple[Patients, np.ndarray, collections.Counter]:
    """Truncates histories at prediction times.

    A token is in the history if it was recorded before the prediction time, compared in microseconds. This is a filter
    rather than a prefix, as visits may overlap. Visits are ordered by their start, so if a visit remains, all visits
    before it remain too.

    Args:
      patients: the split, by ascending subject id.
      subject_ids: (N,) int64, in any order, repeated for several predictions of a patient.
      prediction_times: (N,) datetime64.
      include_at: whether tokens recorded exactly at the prediction time are in the history too.

    Returns:
      The M histories as `Patients`, in the given order, with all static tokens; (M,) the predictions they belong to;
      and the count `without_history` of the others, which no timed token precedes. Subject ids may then repeat: windows
      and batches support this, `dataset.sample` and this function do not.

    Raises:
      ValueError: a subject is not in the split, or a time is missing or absurd.
    """
    subject_ids = np.asarray(subject_ids, np.int64)
    rows = np.searchsorted(patients.subject_ids, subject_ids)
    num_unknown = int((patients.subject_ids[np.minimum(rows, len(patients) - 1)] != subject_ids).sum())
    if num_unknown:
        raise ValueError(
            f"subject_id: {num_unknown:,} of {len(rows):,} predictions are of subjects that are not among the "
            f"{len(patients):,} patients of the split; leave them out first"
        )
    until = times_since_birth(patients, rows, prediction_times) + include_at
    histories, predictions = truncate(patients, rows, until)
    return histories, predictions, collections.Counter(without_history=len(rows) - len(predictions))


def truncate(patients: Patients, rows: np.ndarray, until: np.ndarray) -> tuple[Patients, np.ndarray]:
    """Returns the histories of the patients in (N,) `rows` before (N,) `until`, as `histories_at` does.

    Times are in the unit of `Patients.times`.
    """
    times, parts = patients.times, []
    for start in range(0, max(len(rows), 1), ROWS):
        chunk = slice(start, start + ROWS)
        parts.append(_tokens_before(patients, times, rows[chunk], until[chunk]))
    sizes, tokens = (np.concatenate(part) for part in zip(*parts, strict=True))
    nonempty = np.flatnonzero(sizes)
    return gather(patients, rows[nonempty], sizes[nonempty], tokens), nonempty


def newest_visits(patients: Patients, most_tokens: int) -> Patients:
    """Keeps the newest visits of each history, enough for `most_tokens`, one visit before them, and static tokens.

    The extra visit gives the time gap of the oldest one, so the newest windows of `most_tokens` do not change.
    """
    starts, ends, owners = patients.offsets[:-1], patients.offsets[1:], patients.owners
    oldest = np.append(patients.visits, 0)[np.maximum(ends - most_tokens, starts)]
    kept = (patients.visits < 0) | (patients.visits >= oldest[owners] - 1)
    return gather(patients, slice(None), np.bincount(owners[kept], minlength=len(patients)), kept)


def times_since_birth(patients: Patients, rows: np.ndarray, prediction_times: np.ndarray) -> np.ndarray:
    """Converts prediction times to the unit of `Patients.times`, (N,) int64 microseconds, for the patients in `rows`.

    Raises:
      ValueError: a time is missing, or so late that it must be a placeholder.
    """
    times = np.asarray(prediction_times).astype("datetime64[us]")
    num_missing = int(np.isnat(times).sum())
    if num_missing:
        raise ValueError(f"prediction_time: missing in {num_missing:,} of {len(times):,} rows; fill or remove them")
    since_2000 = (times - np.datetime64(events.EPOCH, "us")).astype(np.int64)
    since_birth = since_2000 - patients.origins[rows].astype(np.int64) * MICROSECONDS
    num_late = int((since_birth > events.LONGEST_HISTORY_DAYS * MINUTES_PER_DAY * MICROSECONDS).sum())
    if num_late:
        raise ValueError(
            f"prediction_time: more than 1,000 years after the subject's birth or first event in {num_late:,} of "
            f"{len(times):,} rows (a placeholder such as 9999-12-31?); correct or remove them"
        )
    return since_birth


def append_prediction_token(
    patients: Patients, prediction_times: np.ndarray, row_length: int, token: int = SEP
) -> Patients:
    """Appends a visit of one special token at its (M,) datetime64 prediction time to each of M histories.

    Its `time_deltas` tell the model the time since the last visit, its `ages` and `dates` the patient's current age and
    the date. It is never `maskable`. If the last visit leaves no room for it in a row of `row_length` tokens, that
    visit loses its oldest tokens, like any visit longer than a row, and then starts at its first remaining token.
    """
    minutes, microseconds = np.divmod(
        times_since_birth(patients, np.arange(len(patients)), prediction_times), MICROSECONDS
    )
    owners, ends = patients.owners, patients.offsets[1:]
    last_visits = patients.visits[ends - 1]
    statics = np.bincount(owners[patients.visits < 0], minlength=len(patients))
    # Room that `index_visits` leaves for visits, minus the prediction token, its [SEP] and that of the last visit.
    room = row_length - 1 - np.minimum(statics, row_length // 2 - 1) - 3
    fits = (ends[owners] - np.arange(len(owners)) <= room[owners]) | (patients.visits < last_visits[owners])
    sizes = np.bincount(owners[fits], minlength=len(patients))
    positions = np.cumsum(sizes)
    token_values = {"codes": token, "visits": last_visits + 1, "minutes": minutes, "microseconds": microseconds}
    token_values["values"] = np.nan
    columns = {
        name: np.insert(column[fits], positions, token_values[name]) for name, column in patients.columns.items()
    }
    return dataclasses.replace(patients, offsets=np.append(0, np.cumsum(sizes + 1)), **columns)


def ages_at(patients: Patients, prediction_times: np.ndarray) -> np.ndarray:
    """Returns the age of each of M histories at its prediction time, (M,) years; NaN where birth is unknown."""
    times = times_since_birth(patients, np.arange(len(patients)), prediction_times)
    return np.where(patients.has_birth, times / (MICROSECONDS * MINUTES_PER_YEAR), np.nan)


def covariates_at(patients: Patients, prediction_times: np.ndarray, tokens: tuple[str, ...]) -> np.ndarray:
    """Returns age and sex of M histories at (M,) datetime64 prediction times as features for a linear layer.

    Returns:
      (M, NUM_COVARIATES) float32: interpolation weights of the age on its two nearest `AGE_KNOTS`, so that a linear
      function of them is piecewise linear in age, and the sex one-hot over `SEXES`; zeros for unknown values.
    """
    shares, patient_sexes = age_shares(ages_at(patients, prediction_times)), sexes(patients, tokens)
    return np.column_stack([shares, *(patient_sexes == sex for sex in SEXES)]).astype(np.float32)


def age_shares(ages: np.ndarray) -> np.ndarray:
    """Returns (N, knots) linear interpolation weights of (N,) ages in years on `AGE_KNOTS`; zeros for NaN."""
    distances = np.abs(np.clip(ages, AGE_KNOTS[0], AGE_KNOTS[-1])[:, None] - AGE_KNOTS)
    return np.nan_to_num(np.maximum(1 - distances / np.diff(AGE_KNOTS)[0], 0))


def _tokens_before(
    patients: Patients, times: np.ndarray, rows: np.ndarray, until: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (n,) the history size of each row at its time, 0 without a timed token, and (T,) the tokens."""
    starts, sizes = patients.offsets[rows], patients.offsets[rows + 1] - patients.offsets[rows]
    owners, tokens = np.repeat(np.arange(len(rows)), sizes), ranges(starts, sizes)
    timed = patients.visits[tokens] >= 0
    past = timed & (times[tokens] < until[owners])
    kept = past | (~timed & (np.bincount(owners[past], minlength=len(rows)) > 0)[owners])
    return np.bincount(owners[kept], minlength=len(rows)), tokens[kept]
