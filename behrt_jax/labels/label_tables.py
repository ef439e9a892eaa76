"""Tables of labels: validates the columns and rows of one file or folder of shards."""

import logging
from pathlib import Path
from typing import NamedTuple

import polars as pl

from behrt_jax.data.events import fits_int64
from behrt_jax.labels.label_files import (
    BOOLEANS,
    KEYS,
    NUMBER,
    SURVIVAL_COLUMNS,
    TRUTH_COLUMNS,
    VALUE_COLUMNS,
    list_names,
    read_label_files,
)

logger = logging.getLogger(__name__)
MAX_CLASSES = 50  # a column with more distinct values is a quantity or an identifier


class LabelTable(NamedTuple):
    """A validated table of labels.

    Attributes:
      rows: `subject_id, prediction_time` and `value` (0 and 1, or indices of classes), or `event_time` and `event` (0
        if censored, else 1 + the index in `names`) and, if present, `TRUTH_COLUMNS`; sorted, each subject and time
        once.
      kind: `binary`, `multiclass`, `survival`, or `times` if the table has no outcome.
      names: the name of the label (that of the file), or the names of the classes or causes.
    """

    rows: pl.DataFrame
    kind: str
    names: tuple[str, ...]


def read_label_table(file: Path, with_outcomes: bool = True) -> LabelTable:
    """Reads and validates a Parquet or CSV file of labels, or a folder of shards; see `labels.read_labels`."""
    table = read_label_files(file)
    if not table.height:
        raise ValueError(f"{file}: holds no labels; expected rows of {', '.join(KEYS)} and a label")
    keys = {"subject_id": _as_ids(file, table), "prediction_time": _as_times(file, table, "prediction_time")}
    survival = any(name in table.columns for name in SURVIVAL_COLUMNS)
    if not with_outcomes and not {*table.columns} & {*VALUE_COLUMNS, *SURVIVAL_COLUMNS}:
        return LabelTable(_deduplicate(file, pl.DataFrame(keys)), "times", ())
    label, kind, names = _event_columns(file, table) if survival else _value_column(file, table)
    rows = _deduplicate(file, pl.DataFrame({**keys, **label}))
    if survival:
        _check_order(file, rows)
    return LabelTable(rows, kind, names)


def _column(file: Path, table: pl.DataFrame, name: str, expected: str) -> pl.Series:
    """Returns a column; raises a ValueError if it is missing or has nulls."""
    if name not in table.columns:
        raise ValueError(f"{file}: column '{name}' is missing (found {list_names(table)}); expected {expected}")
    column = table[name]
    if nulls := column.null_count():
        raise ValueError(
            f"{file}: column '{name}' is null or NaN in {nulls} of {table.height} rows; expected {expected} in every "
            "row; drop or fill them"
        )
    return column


def _mistyped(file: Path, column: pl.Series, expected: str) -> ValueError:
    return ValueError(f"{file}: column '{column.name}' is {column.dtype}; expected {expected}; convert it")


def _as_ids(file: Path, table: pl.DataFrame) -> pl.Series:
    column = _column(file, table, "subject_id", "int64")
    if not fits_int64(column.dtype):
        raise _mistyped(file, column, "int64")
    return column.cast(pl.Int64)


def _as_times(file: Path, table: pl.DataFrame, name: str) -> pl.Series:
    expected = "timestamp[us] without a time zone"
    column = _column(file, table, name, expected)
    if column.dtype != pl.Date and (column.dtype.base_type() != pl.Datetime or getattr(column.dtype, "time_zone", 0)):
        raise _mistyped(file, column, expected)
    return column.cast(pl.Datetime("us"))


def _value_column(file: Path, table: pl.DataFrame) -> tuple[dict[str, pl.Series], str, tuple[str, ...]]:
    """Returns the only column with label values, as numbers, the kind of label, and the names."""
    used = [name for name in VALUE_COLUMNS if name in table.columns and table[name].null_count() < table.height]
    if len(used) != 1:
        names = ", ".join(used) or list_names(table)
        raise ValueError(
            f"{file}: {len(used)} columns of labels have values (found {names}); expected one of "
            f"{', '.join(VALUE_COLUMNS)}, or {' and '.join(SURVIVAL_COLUMNS)} for time to event"
        )
    name = used[0]
    column = _column(file, table, name, "a label")
    is_valid = {
        "boolean_value": column.dtype == pl.Boolean,
        "integer_value": column.dtype.is_integer(),
        "float_value": column.dtype.is_numeric(),
        "categorical_value": column.dtype == pl.String,
    }
    if not is_valid[name]:
        raise _mistyped(file, column, VALUE_COLUMNS[name])
    if column.dtype == pl.Boolean or (column.dtype.is_numeric() and column.is_in([0, 1]).all()):
        return {"value": column.cast(pl.Float32)}, "binary", (file.stem,)
    if name == "float_value":
        count = int((~column.is_in([0, 1])).sum())
        raise ValueError(
            f"{file}: column 'float_value' is neither 0 nor 1 in {count} of {table.height} rows; regression is not "
            "supported; make it a boolean_value (a threshold) or an integer_value (classes)"
        )
    classes = column.unique().sort()
    if len(classes) > MAX_CLASSES:
        raise ValueError(
            f"{file}: column '{name}' has {len(classes)} distinct values; expected at most {MAX_CLASSES} classes; "
            "merge the rare ones"
        )
    index = column.replace_strict(classes, range(len(classes)), return_dtype=pl.Int32)
    return {"value": index}, "multiclass", tuple(str(value) for value in classes)


def _event_columns(file: Path, table: pl.DataFrame) -> tuple[dict[str, pl.Series], str, tuple[str, ...]]:
    """Returns event times and events as numbers, the kind, and the names of the causes."""
    times = _as_times(file, table, "event_time")
    event = table["event"] if "event" in table.columns else None
    if event is not None and event.dtype in (pl.String, pl.Null):
        causes = event.drop_nulls().unique().sort().cast(pl.String)
        _check_causes(file, causes)
        if not len(causes) or not causes.str.to_lowercase().is_in(BOOLEANS).all():
            index = event.replace_strict(causes, range(1, len(causes) + 1), default=0, return_dtype=pl.Int32)
            return {"event_time": times, "event": index}, "survival", tuple(causes)
        table = table.with_columns(event=event.str.to_lowercase() == "true")
    expected = "boolean, or string (the cause; null = censored)"
    event = _column(file, table, "event", expected)
    if event.dtype != pl.Boolean:
        raise _mistyped(file, event, expected)
    truth = TRUTH_COLUMNS if {*TRUTH_COLUMNS} <= {*table.columns} else ()
    true_values = {name: _column(file, table, name, "the truth of simulated outcomes") for name in truth}
    for column in true_values.values():
        if not column.dtype.is_numeric():
            raise _mistyped(file, column, "a number")
    true_values = {name: column.cast(pl.Float64) for name, column in true_values.items()}
    return {"event_time": times, "event": event.cast(pl.Int32), **true_values}, "survival", ("event",)


def _check_causes(file: Path, causes: pl.Series) -> None:
    """Checks that the texts of an event column are all names of causes, or all true and false."""
    booleans, numbers = (
        int(mask.sum()) for mask in (causes.str.to_lowercase().is_in(BOOLEANS), causes.str.contains(f"^{NUMBER}$"))
    )
    expected = "expected true and false, or the name of the cause (empty = censored)"
    if numbers or 0 < booleans < len(causes):
        content = "numbers" if numbers else "true or false beside names"
        raise ValueError(f"{file}: column 'event' is text that holds {content}; {expected}; write them so")
    if len(causes) > MAX_CLASSES:
        raise ValueError(
            f"{file}: column 'event' names {len(causes)} causes; expected at most {MAX_CLASSES}; merge the rare ones"
        )


def _deduplicate(file: Path, table: pl.DataFrame) -> pl.DataFrame:
    """Sorts rows and drops repeated ones; raises a ValueError if two of one subject and time have different labels."""
    subject, time = (pl.col(name) for name in KEYS)
    backward = (subject < subject.shift(1)) | ((subject == subject.shift(1)) & (time < time.shift(1)))
    num_unsorted = table.select(backward.sum()).item()
    if num_unsorted and not file.is_dir():  # shards have no order
        logger.info(
            f"{file}: {num_unsorted:,} of {table.height:,} rows were out of order (by {', then '.join(KEYS)}); sorted"
        )
    unique = table.unique().sort(KEYS)
    if num_repeated := table.height - unique.height:
        logger.info(f"{file}: {num_repeated:,} of {table.height:,} rows repeat another; dropped")
    num_contradicting = unique.filter(pl.struct(KEYS).is_duplicated()).height
    if num_contradicting:
        raise ValueError(
            f"{file}: {num_contradicting} rows share {' and '.join(KEYS)} with another but not its label; expected one "
            "label for each; keep the right one"
        )
    return unique


def _check_order(file: Path, rows: pl.DataFrame) -> None:
    if late := rows.filter(pl.col("event_time") <= pl.col("prediction_time")).height:
        raise ValueError(
            f"{file}: column 'event_time' is not after 'prediction_time' in {late} of {rows.height} rows; expected the "
            "time of the event, or of the end of follow-up, later than the prediction; drop or correct them"
        )
