"""Snapshots of patients: their histories up to a date, or in full, as a model reads them."""

import datetime
from typing import NamedTuple

import numpy as np
import polars as pl

from behrt_jax.data import dataset, windows
from behrt_jax.data import histories as data_histories
from behrt_jax.data.config import DataConfig

LAST = "last"
SINCE = np.datetime64("2000-01-01", "us")


class Snapshot(NamedTuple):
    """The histories of M patients up to given times.

    Attributes:
      times: (M,) datetime64[us]; only events strictly before them are included.
      histories: whole histories.
      model_inputs: what the model reads; for a fine-tuned model with its prediction token at the end, as in training.
    """

    times: np.ndarray
    histories: dataset.Patients
    model_inputs: dataset.Patients


def read_date(text: str) -> np.datetime64 | None:
    """Parses `--at`: a date, or None for `last`; raises a ValueError for anything else."""
    if text == LAST:
        return None
    try:
        return np.datetime64(datetime.date.fromisoformat(text), "us")
    except ValueError as error:
        raise ValueError(f"--at={text}: expected a date such as 2015-01-01, or last") from error


def take_snapshot(
    patients: dataset.Patients,
    at: np.datetime64 | None,
    lives: pl.DataFrame,
    row_length: int,
    prediction_token: bool = False,
    whole: bool = False,
) -> tuple[Snapshot, dict[str, int]]:
    """Truncates histories strictly before a date, or just after their last event.

    Args:
      patients: a split.
      at: the date; None for the end of each history.
      lives: `subject_id, birth, death`, from `labels.follow_up.read_lives`.
      row_length: tokens per row.
      prediction_token: whether such a token ends what the model reads, as for a fine-tuned one that learned with it.
      whole: whether the model reads whole histories, in several windows; else their newest tokens.

    Returns:
      The snapshot, and the number of patients left out for each reason.
    """
    if at is None:
        ends = patients.origins.astype(np.int64) * dataset.MICROSECONDS + patients.last_times
        times = SINCE + (ends + 1).astype("timedelta64[us]")
    else:
        times = np.full(len(patients), at)
    dates = pl.DataFrame({"subject_id": patients.subject_ids}).join(
        lives, on="subject_id", how="left", maintain_order="left"
    )
    births, deaths = (dates[name].to_numpy().astype("datetime64[us]") for name in ("birth", "death"))
    unborn, dead = (births >= times, deaths < times) if at is not None else np.zeros((2, len(patients)), bool)
    alive = np.flatnonzero(~unborn & ~dead)
    histories, kept, _ = data_histories.histories_at(patients, patients.subject_ids[alive], times[alive])
    times = times[alive][kept]
    rows = histories if whole else data_histories.newest_visits(histories, row_length)
    if prediction_token and len(rows):
        rows = data_histories.append_prediction_token(rows, times, row_length)
    left_out = {"not yet born": int(unborn.sum()), "dead by then": int((dead & ~unborn).sum())}
    left_out["without an event before that the model reads"] = len(alive) - len(kept)
    return Snapshot(times, histories, rows), {reason: number for reason, number in left_out.items() if number}


def windows_of(config: DataConfig, rows: dataset.Patients, whole: bool) -> windows.Windows | None:
    """Returns windows that together cover each whole history, or None for the newest window of each."""
    index = windows.index_visits(rows, config.row_length, config.use_sep)
    return windows.covering_windows(index)[0] if whole else None
