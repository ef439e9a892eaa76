"""Reads labels from a Parquet or CSV file, or a folder of shards, into one table of plain columns."""

import csv
import datetime
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from behrt_jax.data.events import LAST_YEAR, is_text
from behrt_jax.data.files import UNREADABLE, find_parquet, scan_parquet, unreadable

logger = logging.getLogger(__name__)
VALUE_COLUMNS = {  # with the type of each
    "boolean_value": "boolean",
    "integer_value": "an integer",
    "float_value": "float",
    "categorical_value": "string",
}
SURVIVAL_COLUMNS = ("event_time", "event")
TRUTH_COLUMNS = ("log_hazard", "weibull_scale", "weibull_shape")  # true hazard of simulated outcomes
KEYS = ["subject_id", "prediction_time"]
TIME_COLUMNS = ("prediction_time", "event_time")
TEXT_COLUMNS = ("categorical_value", "event")
COLUMNS = (*KEYS, *VALUE_COLUMNS, *SURVIVAL_COLUMNS, *TRUTH_COLUMNS)
NO_VALUE = ("na", "n/a", "<na>", "nan", "nat", "none", "null")  # spellings of an empty cell in other programs
BOOLEANS = ("true", "false")
NUMBER = r"[+-]?\d+(\.\d*)?"
NO_CAUSE = rf"(?i)|{NUMBER}|" + "|".join((*NO_VALUE, *BOOLEANS))  # not a cause: empty, a number, a word for none
DATE = r"^(\d{4})(?:-(\d\d)-|/(\d\d)/)(\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(\.\d{1,9})?)?$"
DATE_EXAMPLES = "dates with the year first and no time zone, such as 2025-12-31 or 2025-12-31 23:59:59"


def read_label_files(source: Path) -> pl.DataFrame:
    """Reads a Parquet or CSV file of labels, or a folder of Parquet or CSV shards.

    Logs counts when files are left out or words are read as empty cells.

    Returns:
      All columns. In those of labels, empty cells, NaN and, in `event`, words such as NA are null; others are all null.

    Raises:
      ValueError: a file cannot be read, shards differ in their columns or types, or a date is ambiguous.
    """
    if not source.exists():
        raise ValueError(f"{source}: no such file; make labels with python -m experiments.labels, or with es-aces")
    shards = {}
    for file in _find_shards(source):
        table = _read_csv(file) if file.suffix.lower() == ".csv" else _read_parquet(file)
        shards[file] = _clean(file, table)
    _check_shards(source, shards)
    try:
        return pl.concat(shards.values(), how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{source}: shards differ in the types of a column ({reason}); convert it") from error


def list_names(table: pl.DataFrame) -> str:
    """Lists the columns of a table for an error, on one line even if their names contain line breaks."""
    return ", ".join(" ".join(name.split()) for name in table.columns)


def _find_shards(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(f"{source}: neither a file nor a folder; expected labels as Parquet or CSV")
    for suffix in (".parquet", ".csv"):
        listing = find_parquet(source, suffix)
        skipped = f"{listing.hidden:,} hidden or system files and {listing.other:,} files that are not *{suffix}"
        if listing.files:
            if listing.hidden or listing.other:
                logger.info(f"{source}: {skipped} were not read")
            return listing.files
    raise ValueError(f"{source}: no *.parquet or *.csv file in this folder ({skipped}); expected shards of labels")


def _read_parquet(file: Path) -> pl.DataFrame:
    try:
        scan = scan_parquet(file)
        other_columns = [name for name in scan.collect_schema().names() if name not in COLUMNS]
        return scan.with_columns(pl.lit(None).alias(name) for name in other_columns).collect()
    except UNREADABLE as error:
        raise unreadable(file, error, file.suffix or "parquet") from error


def _read_csv(file: Path) -> pl.DataFrame:
    """Reads a CSV file; columns of labels get a type that fits all their cells, others are null."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = [row for row in csv.reader(stream, strict=True) if row]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise unreadable(file, ValueError(reason), ".csv") from error
    if not rows:
        raise ValueError(f"{file}: is empty; expected a line of column names, {', '.join(KEYS)} and a label")
    names = [name.strip() for name in rows.pop(0)]
    if not {*KEYS} & {*names}:  # the error omits the line, which may be a patient's row
        raise ValueError(f"{file}: the first line does not name columns; expected {', '.join(KEYS)} and a label")
    if uneven := sum(len(row) != len(names) for row in rows):
        raise ValueError(
            f"{file}: {uneven} of {len(rows)} rows do not have {len(names)} cells, as the line of column names has; "
            "expected as many in each (a cut-off file, or a comma in a cell without quotes?); write it again"
        )
    if duplicates := {name for name in names if name in COLUMNS and names.count(name) > 1}:
        raise ValueError(f"{file}: column '{min(duplicates)}' is there more than once; keep one")
    cells = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {name: () for name in names}
    nulls = pl.repeat(None, len(rows), eager=True)
    return pl.DataFrame({name: _parse(file, name, cells[name]) if name in COLUMNS else nulls for name in cells})


def _parse(file: Path, name: str, cells: Iterable[str]) -> pl.Series:
    """Parses a CSV column to dates, text, or the first of integer, float and boolean that fits all its cells."""
    text = pl.Series(name, list(cells), pl.String).str.strip_chars()
    if name in TEXT_COLUMNS:
        return text
    lower = text.str.to_lowercase()
    text = text.set(lower.is_in(["", *NO_VALUE]), None)
    if text.null_count() == len(text):
        return text.cast(pl.Null)
    if name in TIME_COLUMNS:
        return _parse_dates(file, text)
    for kind, pattern in ((pl.Int64, r"^[+-]?\d+$"), (pl.Float64, r"^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$")):
        if text.str.contains(f"(?i){pattern}").all():
            parsed = text.str.strip_prefix("+").cast(kind, strict=False)
            return parsed if parsed.null_count() == text.null_count() else text
    is_boolean = lower.filter(text.is_not_null()).is_in(BOOLEANS).all()
    return pl.select(pl.when(text.is_not_null()).then(lower == "true").alias(name)).to_series() if is_boolean else text


def _parse_dates(file: Path, text: pl.Series) -> pl.Series:
    """Parses ISO dates, also with slashes; raises a ValueError for other forms, where day and month are ambiguous."""
    parts = [text.str.extract(DATE, group) for group in range(1, 8)]
    year, month, slash_month, day, hour, second, fraction = parts
    fraction = fraction.fill_null(".").str.pad_end(7, "0").str.head(7)
    iso_text = year + "-" + month.fill_null(slash_month) + "-" + day
    iso_text = iso_text + "T" + hour.fill_null("00:00") + second.fill_null(":00") + fraction
    times = iso_text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.6f", time_unit="us", strict=False)
    if num_wrong := times.null_count() - text.null_count():
        forms = text.filter(times.is_null() & text.is_not_null()).str.replace_all(r"\d", "9")
        form = forms.str.replace_all(r"\p{L}", "a").str.replace_all(r"\s+", " ").str.head(30).mode().sort()[0]
        raise ValueError(
            f"{file}: column '{text.name}' is not an unambiguous date in {num_wrong} of {len(text)} rows (of "
            f"the form {form}); expected {DATE_EXAMPLES}; write it so"
        )
    return times.alias(text.name)


def _clean(file: Path, table: pl.DataFrame) -> pl.DataFrame:
    """Converts NaN and empty text to null, columns of a shard without values to the type Null, and times to [us]."""
    for column in table.iter_columns():
        if column.dtype.is_float():
            column = column.fill_nan(None)
        elif _kind(column.dtype) == "date":
            column = _clean_times(file, column)
        elif is_text(column.dtype):
            text = column.cast(pl.String)
            words = text.str.strip_chars().str.to_lowercase()
            is_unset = words.is_in(NO_VALUE)
            num_unset = int(is_unset.sum())
            if num_unset and (column.name == "event" or (is_unset | (words == "")).all()):
                if column.name == "event":
                    logger.info(
                        f"{file}: column 'event' says NA, none or the like in {num_unset:,} rows; read as censored"
                    )
                text = text.set(is_unset, None)
            column = text.set(words == "", None)
        is_bool = column.name == "event" and column.dtype == pl.Boolean  # the type Null would mean all censored
        is_empty = column.null_count() == len(column) and (not is_bool or not len(column))
        table = table.with_columns(pl.lit(None).alias(column.name) if is_empty else column)
    return table


def _clean_times(file: Path, column: pl.Series) -> pl.Series:
    times = column.cast(pl.Datetime("us"), strict=False)  # null on overflow
    bounds = (datetime.datetime.min, datetime.datetime(LAST_YEAR + 1, 1, 1))
    is_absurd = column.is_not_null() & ~times.is_between(*bounds, closed="left").fill_null(False)
    if number := int(is_absurd.sum()):
        raise ValueError(
            f"{file}: column '{column.name}' is not in the years 1 to {LAST_YEAR:,} in {number} of {len(column)} rows "
            "(a placeholder such as 9999-12-31?); correct or drop them"
        )
    return times


def _check_shards(source: Path, shards: dict[Path, pl.DataFrame]) -> None:
    """Checks that all shards with rows have each column that is in use, and that its kind is the same in all."""
    tables = {file: table for file, table in shards.items() if table.height}
    for name in COLUMNS:
        kinds = {file: _kind(table[name].dtype) for file, table in tables.items() if name in table.columns}
        used = {file: kind for file, kind in kinds.items() if tables[file][name].null_count() < tables[file].height}
        for file in tables if used else ():
            if file not in kinds:
                names = list_names(shards[file])
                raise ValueError(
                    f"{file}: column '{name}', which other shards have, is missing (found {names}); add it"
                )
            if file in used and used[file] != (first := next(iter(used.values()))):
                raise ValueError(
                    f"{file}: column '{name}' is {shards[file][name].dtype}, but {first} in other shards of {source}; "
                    "expected one type; convert it"
                )


def _kind(dtype: pl.DataType) -> str:
    """Returns the kind of a type; types of one kind can be concatenated."""
    if dtype.is_numeric():
        return "number"
    is_time = dtype == pl.Date or (dtype.base_type() == pl.Datetime and getattr(dtype, "time_zone", None) is None)
    return "date" if is_time else str(dtype)


def write_labels(labels: pl.DataFrame, output: Path) -> None:
    """Writes the labels to a Parquet file, atomically."""
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{output.name}-", dir=output.parent)
    os.close(handle)
    try:
        labels.write_parquet(scratch)
        Path(scratch).chmod(0o644)
        Path(scratch).replace(output)
    finally:
        Path(scratch).unlink(missing_ok=True)
