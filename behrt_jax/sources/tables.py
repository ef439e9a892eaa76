"""Reads tables of a source as text, and writes those that MEDS-Extract reads, with a count of the rows left out.

MEDS-Extract guesses the types of CSV columns, so that the code `08` becomes 8; tables that are written here keep text.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import polars as pl

from behrt_jax.data import files
from behrt_jax.data.events import YEARS

SUFFIXES = (".csv", ".csv.gz", ".parquet")
TIME_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")


class RowCounts(NamedTuple):
    """Rows of a source table: `read`, and `skipped` by reason; the others were written."""

    read: int
    skipped: dict[str, int]


def list_tables(folder: Path, required: str, expected: str) -> dict[str, list[Path]]:
    """Finds tables by lower-case name: files NAME.csv, NAME.csv.gz or NAME.parquet, or a folder NAME of such files.

    Args:
      folder: holds the tables.
      required: the table of patients.
      expected: what the folder should hold, for the error.

    Raises:
      ValueError: the folder or the required table is missing, or two files have one table's name.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such directory; --input must name the folder of the source's tables")
    tables: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(files.HIDDEN):
            continue
        parts = sorted(part for part in path.iterdir() if _is_table(part)) if path.is_dir() else [path]
        name = (path.name if path.is_dir() else _table_name(path)).lower()
        if not parts or not (path.is_dir() or _is_table(path)):
            continue
        if name in tables:
            raise ValueError(f"{path} and {tables[name][0]} are both the table '{name}'; keep one of them")
        tables[name] = parts
    if required not in tables:
        raise ValueError(f"{folder}: found no table '{required}'; expected {expected}")
    return tables


def _is_table(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(SUFFIXES) and not path.name.startswith(files.HIDDEN)


def _table_name(path: Path) -> str:
    return next((path.name[: -len(end)] for end in SUFFIXES if path.name.lower().endswith(end)), path.name)


def scan_text(paths: list[Path], required: tuple[str, ...], optional: tuple[str, ...] = ()) -> pl.LazyFrame:
    """Scans a table as text: the required columns, and the optional ones, null where a file lacks them.

    Column names are matched in either case and returned in lower case. "start|date" requires one of the two and returns
    both. Text is stripped of spaces at both ends; empty text is null.

    Raises:
      ValueError: a file cannot be read, is empty or lacks a required column.
    """
    return pl.concat([_scan_file(path, required, optional) for path in paths])


def _open_file(path: Path) -> pl.LazyFrame:
    try:
        is_parquet = path.suffix.lower() == ".parquet"
        scan = files.scan_parquet(path) if is_parquet else pl.scan_csv(path, infer_schema=False, glob=False)
        scan.collect_schema()
    except files.UNREADABLE as error:
        raise unreadable(path, error) from error
    return scan


def _scan_file(path: Path, required: tuple[str, ...], optional: tuple[str, ...]) -> pl.LazyFrame:
    scan = _open_file(path)
    names = {name.strip().lower(): name for name in scan.collect_schema().names()}
    for column in required:
        if not set(column.split("|")) & set(names):
            wanted = " or ".join(f"'{name}'" for name in column.split("|"))
            # Do not name other columns: without a header line, their names are a patient's values.
            known = [name for each in (*required, *optional) for name in each.split("|") if name in names]
            raise ValueError(
                f"{path}: column {wanted} is missing; found {', '.join(known) or 'none that is known'} and "
                f"{len(set(names) - set(known))} others; add the column, or a first line of names separated by commas"
            )
    columns = {
        name: strip(pl.col(names[name]).cast(pl.String)) if name in names else pl.lit(None, pl.String)
        for column in (*required, *optional)
        for name in column.split("|")
    }
    return scan.select(**columns)


def strip(text: pl.Expr) -> pl.Expr:
    """Strips text of spaces at both ends; empty text becomes null.

    Polars does not stream `Expr.replace`: with it, memory grows with the rows of a file.
    """
    stripped = text.str.strip_chars()
    return pl.when(stripped != "").then(stripped)


def check_readable(paths: Iterable[Path]) -> None:
    """Reads files to their end, those that exist; raises a ValueError that names one that cannot be read."""
    for path in paths:
        if path.is_file():
            collect(_open_file(path).select(pl.all().count()), [path])


def unreadable(path: Path, error: BaseException) -> ValueError:
    """Returns the error for a file that polars cannot read; leaves out polars' message, which may quote values."""
    reason = next((words for part, words in REASONS.items() if part in str(error)), type(error).__name__)
    kind = "Parquet" if path.suffix.lower() == ".parquet" else "CSV"
    return ValueError(f"{path}: not a readable {kind} file ({reason}); correct it, or write or copy it again")


REASONS = {
    "empty CSV": "the file is empty",
    "unexpected end of file": "it ends early; the copy may be incomplete",
    "more fields than": "a row has more fields than the header",
    "utf-8": "it is not UTF-8",
    "could not parse": "a quote is not closed",
    "CSV malformed": "a quote is not closed",
}


def parse_time(text: pl.Expr) -> pl.Expr:
    """Parses ISO dates and times in UTC or without a time zone to `Datetime[us]`; null where the text is neither.

    Years outside 1 to 6000, which the reader refuses, are null too.
    """
    plain = text.str.replace("T", " ", literal=True).str.replace(r"(Z| ?UTC|[+]00:?00)$", "")
    times = [plain.str.to_datetime(form, strict=False, time_unit="us") for form in TIME_FORMATS]
    time = pl.coalesce(times)
    return pl.when(time.is_between(*YEARS)).then(time)


def time_reasons(column: str, raw: pl.Expr) -> list[tuple[str, pl.Expr]]:
    """Reasons to skip a row for its time: `raw` holds the text that became `column`."""
    return [("no time", raw.is_null()), ("unreadable time", pl.col(column).is_null())]


def collect(rows: pl.LazyFrame, source: list[Path]) -> pl.DataFrame:
    """Collects what is small, from the files of a source; raises a ValueError if one cannot be read to its end."""
    try:
        return rows.collect(engine="streaming", optimizations=_options(source))
    except files.UNREADABLE as error:
        raise unreadable(source[0] if len(source) == 1 else source[0].parent, error) from error


def _options(source: list[Path]) -> pl.QueryOptFlags:
    """Reading only some columns of a CSV file would hide rows with more fields than the header."""
    return pl.QueryOptFlags(projection_pushdown=all(path.suffix.lower() == ".parquet" for path in source))


def write_table(
    rows: pl.LazyFrame, reasons: list[tuple[str, pl.Expr]], keep: list[str], source: list[Path], output: Path
) -> RowCounts:
    """Writes the rows for which no reason holds, and counts the others by the first reason that holds.

    Args:
      rows: a table, as text and with what was added to it.
      reasons: names and conditions, in the order in which they are tried; a null condition does not hold.
      keep: the columns to write.
      source: the files that `rows` reads, for errors.
      output: a Parquet file to write.

    Raises:
      ValueError: a source file cannot be read to its end.
    """
    reason = pl.lit(None, pl.String)
    for name, condition in reversed(reasons):
        reason = pl.when(condition).then(pl.lit(name)).otherwise(reason)
    marked = rows.select(*keep, _reason=reason)
    output.parent.mkdir(parents=True, exist_ok=True)
    totals = collect(marked.group_by("_reason").len(), source)
    written = marked.filter(pl.col("_reason").is_null()).drop("_reason")
    try:
        written.sink_parquet(output, maintain_order=True, optimizations=_options(source))
    except files.UNREADABLE as error:
        raise unreadable(source[0] if len(source) == 1 else source[0].parent, error) from error
    counts = dict(totals.iter_rows())
    skipped = {name: counts[name] for name, _ in reasons if name in counts}
    return RowCounts(sum(counts.values()), skipped)
