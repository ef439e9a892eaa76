"""Reads and validates labels, the outcomes of subjects at prediction times; see docs/labels.md.

Two formats are supported, as Parquet or CSV, in one file or a folder of shards: the MEDS label schema, which ACES
writes (`subject_id, prediction_time`, then `boolean_value`, `integer_value`, `float_value` or `categorical_value`), and
time-to-event labels (`subject_id, prediction_time, event_time, event`).
"""

import collections
import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data.events import SPLITS
from behrt_jax.labels.follow_up import drop
from behrt_jax.labels.label_files import KEYS, SURVIVAL_COLUMNS, TRUTH_COLUMNS
from behrt_jax.labels.label_tables import LabelTable, read_label_table

logger = logging.getLogger(__name__)
MICROSECONDS_A_DAY = 86_400e6


@dataclasses.dataclass(frozen=True)
class Labels:
    """N labels, sorted by subject, then prediction time; models may use only events before the prediction time.

    Attributes:
      kind: `binary`, `multiclass`, `multilabel`, `survival`, or `times` for prediction times without outcomes.
      names: names of the label (binary), the labels (multilabel), the classes, or the causes of an event.
      subject_ids: (N,) int64.
      prediction_times: (N,) datetime64[us].
      values: (N, K) float32: 0 or 1 for each label, or (N, 1) indices of classes; (N, 0) for other kinds.
      days: (N,) float64 > 0, from the prediction time to the event or the end of follow-up; NaN for other kinds.
      events: (N,) int32, 0 if follow-up ended without an event (censored), else 1 + the index in `names`.
      truth: (N, 3) for simulated outcomes: the log hazard, and the scale (days) and shape of the Weibull baseline.
    """

    kind: str
    names: tuple[str, ...]
    subject_ids: np.ndarray
    prediction_times: np.ndarray
    values: np.ndarray
    days: np.ndarray
    events: np.ndarray
    truth: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.subject_ids)

    def take(self, rows: np.ndarray) -> "Labels":
        """Returns the labels at `rows`, (M,) indices or (N,) bool; they stay sorted only if `rows` keeps the order."""
        arrays = {k: v[rows] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return dataclasses.replace(self, **arrays)

    def outcomes(self) -> np.ndarray:
        """Returns which of `names` each row has, (N, K) bool: its labels, its class, or the cause of its event."""
        if self.kind in ("survival", "multiclass"):
            numbers = self.events - 1 if self.kind == "survival" else self.values[:, 0]
            return numbers[:, None] == np.arange(len(self.names))
        return self.values > 0


def read_labels(files: Sequence[str | Path], with_outcomes: bool = True) -> Labels:
    """Reads labels; several binary files become one multi-label task with the rows that all of them have.

    Args:
      files: Parquet or CSV files, or folders of shards.
      with_outcomes: whether an outcome is required; if not, one file of subjects and times is enough.

    Returns:
      The labels. Values of only 0 and 1 are binary; other integers and strings are classes, sorted.

    Raises:
      ValueError: a file cannot be read, a column is missing, mistyped or has nulls, labels contradict each other, an
        event is not after its prediction time, or several files are not binary or share no row.
    """
    if not files:
        raise ValueError("labels: no file is named; name one, or several that are binary")
    tables = [read_label_table(Path(file), with_outcomes) for file in files]
    rows, kind, names = tables[0] if len(tables) == 1 else _join([Path(file) for file in files], tables)
    survival = kind == "survival"
    value_columns = rows.select(pl.exclude([*KEYS, *SURVIVAL_COLUMNS, *TRUTH_COLUMNS])).columns
    values = rows.select(value_columns).to_numpy() if value_columns else np.zeros((rows.height, 0))
    days, events = np.full(rows.height, np.nan), np.zeros(rows.height)
    if survival:
        elapsed = (rows["event_time"] - rows["prediction_time"]).dt.total_microseconds()
        days, events = elapsed.to_numpy() / MICROSECONDS_A_DAY, rows["event"].to_numpy()
    return Labels(
        kind=kind,
        names=names,
        subject_ids=rows["subject_id"].to_numpy(),
        prediction_times=rows["prediction_time"].to_numpy().astype("datetime64[us]"),
        values=values.astype(np.float32),
        days=days,
        events=events.astype(np.int32),
        truth=rows.select(TRUTH_COLUMNS).to_numpy() if {*TRUTH_COLUMNS} <= {*rows.columns} else None,
    )


def _join(files: list[Path], read: list[LabelTable]) -> LabelTable:
    for file, table in zip(files, read, strict=True):
        if table.kind != "binary":
            raise ValueError(f"{file}: its labels are {table.kind}; several files are read together only if binary")
    names = tuple(file.stem for file in files)
    if len(set(names)) < len(names):
        raise ValueError(
            f"{files[0]}: two of the {len(files)} files have one name; labels are named by their files; rename one"
        )
    tables = [table.rows.rename({"value": name}) for name, table in zip(names, read, strict=True)]
    joined = functools.reduce(lambda left, right: left.join(right, on=KEYS, how="inner"), tables).sort(KEYS)
    for file, table in zip(files, tables, strict=True):
        if num_lost := table.height - joined.height:
            logger.info(f"{file}: {num_lost:,} of {table.height:,} rows have no label in every other file; dropped")
    if not joined.height:
        raise ValueError(
            f"{files[0]}: no subject and prediction time is in all {len(files)} files; expected labels of the same "
            "prediction times; make them by one trigger"
        )
    return LabelTable(joined, "multilabel", names)


def check_learnable(labels: Labels, where: str) -> None:
    """Raises a ValueError if a model cannot learn from the labels; see `describe_lack`."""
    if lack := describe_lack(labels, where):
        raise ValueError(f"labels: {lack}; use more patients, another task or another split")


def describe_lack(labels: Labels, where: str) -> str:
    """Describes what labels of some patients, named `where`, lack for training or evaluation; "" for nothing.

    They may lack rows, a second class, or an event of each cause.
    """
    size, counts = len(labels), labels.outcomes().sum(axis=0)
    if not size:
        return f"none is left in {where}; expected rows of its patients"
    if labels.kind == "survival":
        missing_causes = ", ".join(name for name, count in zip(labels.names, counts, strict=True) if not count)
        event = f"the event '{missing_causes}'" if missing_causes else "" if labels.names else "an event"
        return f"none of the {size} rows in {where} has {event}" if event else ""
    if labels.kind == "multiclass":
        return f"all {size} rows in {where} are of one class" if size in counts else ""
    constants = {name: int(count > 0) for name, count in zip(labels.names, counts, strict=True) if count in (0, size)}
    return ", ".join(f"'{name}' is {value} in all {size} rows in {where}" for name, value in constants.items())


def match_subjects(labels: Labels, lives: pl.DataFrame) -> tuple[np.ndarray, collections.Counter]:
    """Finds the labels of subjects (of `follow_up.subjects`) with data who are alive at the prediction time.

    Returns:
      The rows to keep, and counts of those left out: `of unknown subjects`, `before birth`, `at or after death`.
    """
    rows = pl.DataFrame({"subject_id": labels.subject_ids, "time": labels.prediction_times}).with_row_index("row")
    rows = rows.join(lives.with_columns(known=True), on="subject_id", how="left", maintain_order="left")
    reasons = {
        "of unknown subjects": pl.col("known").is_null(),
        "before birth": pl.col("time") < pl.col("birth"),
        "at or after death": pl.col("time") >= pl.col("death"),
    }
    matches, dropped = drop(rows, reasons)
    return matches["row"].to_numpy(), +dropped


def temporal_split(
    labels: Labels, split: str, cutoff: np.datetime64, outcome_window_days: float = 0
) -> tuple[Labels, int]:
    """Keeps the labels of a split on its side of a cutoff date, so that the model is tested on later predictions.

    Train and tuning keep prediction times before the cutoff, held_out those from the cutoff on. Outcomes after the
    cutoff must not be used in training, so times to event are censored there. A classification label does not have the
    time of its outcome; `outcome_window_days`, the length of its outcome window, keeps training rows that far from the
    cutoff.

    Returns:
      The labels kept, and how many of them were censored at the cutoff.
    """
    if split == SPLITS[2]:
        return labels.take(labels.prediction_times >= cutoff), 0
    subset = labels.take(labels.prediction_times < cutoff - np.timedelta64(round(outcome_window_days * 86_400), "s"))
    limits = (cutoff - subset.prediction_times) / np.timedelta64(1, "D")  # pyright: ignore[reportOperatorIssue]
    is_late = subset.days > limits  # false where NaN
    days, events = np.where(is_late, limits, subset.days), np.where(is_late, 0, subset.events).astype(np.int32)
    return dataclasses.replace(subset, days=days, events=events), int(is_late.sum())
