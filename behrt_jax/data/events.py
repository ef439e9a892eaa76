"""Finds, validates and reads MEDS data sets, one shard at a time.

A data set is a folder in the layout of the Medical Event Data Standard (MEDS 0.3-0.4): `data/**/*.parquet` with
`subject_id, time, code, numeric_value`, sharded by subject, and `metadata/subject_splits.parquet`.
"""

import datetime
import fnmatch
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from behrt_jax.data import files
from behrt_jax.data.hashing import hash_fraction

BIRTH = "MEDS_BIRTH"
DEATH = "MEDS_DEATH"
SPLITS = ("train", "tuning", "held_out")
SPLIT_SHARES = (0.70, 0.15, 0.15)
LONGEST_HISTORY_DAYS = 365_250  # int32 minutes could hold four times as many
EPOCH = datetime.datetime(2000, 1, 1)
LAST_YEAR = 6000  # int32 minutes from EPOCH reach 4,083 years either way
YEARS = (datetime.datetime(1, 1, 1), datetime.datetime(LAST_YEAR + 1, 1, 1))
UNIX_EPOCH = datetime.datetime(1970, 1, 1)
SPLITS_FILE = Path("metadata") / "subject_splits.parquet"
CODES_FILE = Path("metadata") / "codes.parquet"
CODE_COLUMNS = {"description": pl.String(), "parent_codes": pl.List(pl.String)}


def find_shards(path: str | Path) -> list[Path]:
    """Returns the parquet files of a MEDS data set in a fixed order; see `find_files`."""
    return find_files(path).files


def find_files(path: str | Path) -> files.ParquetFiles:
    """Finds the shards of a MEDS data set by `files.find_parquet`, and counts the other files.

    Raises:
      ValueError: the folder is missing or holds no parquet file under `data/`, or a folder in it cannot be listed.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{root}: no such directory; data.path must name a MEDS data set (a folder with data/)")
    folder = root / "data"
    listing = files.find_parquet(folder) if folder.is_dir() else files.ParquetFiles([], 0, 0)
    if not listing.files:
        raise ValueError(
            f"{root}: no *.parquet file under {folder} ({listing.hidden} hidden or system files, {listing.other} of "
            "other kinds); expected MEDS shards there"
        )
    return listing


def read_shard(shard: Path, extra_columns: tuple[str, ...] = (), *, check_rows: bool = True) -> pl.DataFrame:
    """Reads and validates a shard of MEDS events, with those of `extra_columns` that it has.

    Without `check_rows`, only types and years are checked: rows may be unsorted, incomplete or before birth.

    Returns:
      `subject_id:Int64, time:Datetime[us] (null = static), code:String, numeric_value:Float32` and the extra
      columns found, sorted by subject, then time with the static rows first.

    Raises:
      ValueError: the file cannot be read, a column is missing or mistyped, or its rows break the standard.
    """
    try:
        scan = files.scan_parquet(shard)
        columns = scan.collect_schema().names()
        num_rows = scan.select(pl.len()).collect().item()
        table = scan.select([name for name in dict.fromkeys((*KINDS, *extra_columns)) if name in columns]).collect()
    except files.UNREADABLE as error:
        raise files.unreadable(shard, error) from error
    if not num_rows:  # then nothing can be missing or mistyped
        return pl.DataFrame(schema={name: kind.dtype for name, kind in KINDS.items()})
    for name in ("subject_id", "time", "code"):
        if name not in columns:
            expected = KINDS[name].words
            raise ValueError(f"{shard}: column '{name}' is missing (found {', '.join(columns)}); expected {expected}")
    events = table.with_columns(**{name: _typed(shard, table, name) for name in KINDS})
    events = events.select(*KINDS, *(name for name in table.columns if name not in KINDS))
    if check_rows:
        _check_rows(shard, events)
    return events


class Kind(NamedTuple):
    """Type of an event column: its dtype, its name in errors, and which dtypes of a file can be cast to it."""

    dtype: pl.DataType
    words: str
    fits: Callable[[pl.DataType], bool]


def fits_int64(kind: pl.DataType) -> bool:
    """Returns whether a type is an integer type that fits int64."""
    return kind.is_integer() and kind not in (pl.UInt64, pl.Int128)


def is_text(kind: pl.DataType) -> bool:
    """Returns whether a column of this type holds strings."""
    return kind.base_type() in (pl.String, pl.Categorical, pl.Enum)


KINDS = {
    "subject_id": Kind(pl.Int64(), "int64", fits_int64),
    "time": Kind(
        pl.Datetime("us"),
        "timestamp[us] without a time zone",
        lambda kind: isinstance(kind, pl.Datetime) and not kind.time_zone,
    ),
    "code": Kind(pl.String(), "string", is_text),
    "numeric_value": Kind(pl.Float32(), "float32", lambda kind: kind.is_numeric()),
}


def _typed(shard: Path, found: pl.DataFrame, name: str) -> pl.Expr:
    """Returns a column cast to its type; a column without values may have any type or be missing."""
    kind = KINDS[name]
    if name not in found.columns or found[name].null_count() == found.height:
        return pl.lit(None, kind.dtype)
    if not kind.fits(found.schema[name]):
        raise ValueError(f"{shard}: column '{name}' is {found.schema[name]}; expected {kind.words}; convert it")
    if name == "time":
        _check_years(shard, found["time"])
    return pl.col(name).cast(kind.dtype)


def _check_years(shard: Path, times: pl.Series) -> None:
    """Checks times in the unit of the file, since absurd ones would overflow in another."""
    per_second = {"ms": 10**3, "us": 10**6, "ns": 10**9}[times.dtype.time_unit]  # pyright: ignore
    seconds = [int((bound - UNIX_EPOCH).total_seconds()) for bound in YEARS]
    low, high = max(seconds[0] * per_second, -(2**63)), min(seconds[1] * per_second, 2**63) - 1
    num_absurd = len(times) - times.null_count() - int(times.to_physical().is_between(low, high).sum())
    if num_absurd:
        raise ValueError(
            f"{shard}: column 'time' is not in the years 1 to {LAST_YEAR:,} in {num_absurd} rows (a placeholder such "
            "as 9999-12-31?); correct or remove them"
        )


def _check_rows(shard: Path, events: pl.DataFrame) -> None:
    for name in ("code", "subject_id"):
        if num_missing := events[name].null_count():
            raise ValueError(
                f"{shard}: column '{name}' is null in {num_missing} of {events.height} rows; drop or fill them"
            )
    if not events["subject_id"].is_sorted():
        raise ValueError(f"{shard}: column 'subject_id' is not sorted; sort the shard by subject_id, then time")
    same_subject = pl.col("subject_id") == pl.col("subject_id").shift(1)
    previous = pl.col("time").shift(1)
    backward = (pl.col("time") < previous) | (pl.col("time").is_null() & previous.is_not_null())
    num_unsorted = events.select((same_subject & backward).sum()).item()
    if num_unsorted:
        raise ValueError(
            f"{shard}: column 'time' goes backwards within a subject in {num_unsorted} rows; "
            "sort the shard by subject_id, then time (static rows, with a null time, first)"
        )
    early_events = events.filter(pl.col("time") < birth_times(pl.col("time")))
    if early_events.height:
        raise ValueError(
            f"{shard}: {early_events.height} events of {early_events['subject_id'].n_unique()} subjects lie before "
            f"{BIRTH}; expected no event before birth; correct the birth times or remove the events"
        )
    since_first = pl.col("time") - pl.col("time").min().over("subject_id")
    num_late = events.select((since_first > pl.duration(days=LONGEST_HISTORY_DAYS)).sum()).item()
    if num_late:
        raise ValueError(
            f"{shard}: column 'time' is more than 1,000 years after the subject's first in {num_late} rows (a "
            "placeholder such as 9999-12-31?); correct or remove them"
        )


def birth_times(time: pl.Expr) -> pl.Expr:
    """Returns each subject's first `MEDS_BIRTH` time, null where there is none."""
    return time.filter(pl.col("code") == BIRTH).min().over("subject_id")


def read_metadata(file: Path) -> pl.DataFrame:
    """Reads a table under `metadata/`; raises a ValueError if it cannot be read."""
    return files.read_table(file)


def read_codes(path: str | Path, column: str) -> pl.DataFrame:
    """Reads one column of `metadata/codes.parquet`: the `description` or the `parent_codes` of codes.

    Returns:
      `code:String` and the column, for codes with a value; no rows if the data set has no such column or file.

    Raises:
      ValueError: the file cannot be read, or one of its columns is missing or of another type.
    """
    file, kinds = Path(path) / CODES_FILE, {"code": pl.String(), column: CODE_COLUMNS[column]}
    table = files.read_table(file) if files.find_table(file) else pl.DataFrame()
    if column not in table.columns or not table[column].count():
        return pl.DataFrame(schema=kinds)
    for name, expected in kinds.items():
        kind = table.schema.get(name)
        if kind not in (expected, pl.List(pl.Null)) and not (expected == pl.String and kind and is_text(kind)):
            dtype = kind or "missing"
            raise ValueError(f"{file}: column '{name}' is {dtype}; expected {expected}; correct it, or remove the file")
    return table.select(pl.col(name).cast(kind) for name, kind in kinds.items()).drop_nulls()


def read_splits(path: str | Path) -> pl.DataFrame | None:
    """Reads `metadata/subject_splits.parquet` as `subject_id:Int64, split:String`; None if there is no such file.

    Raises:
      ValueError: the file cannot be read, lacks a column, or puts a subject in two splits.
    """
    file = Path(path) / SPLITS_FILE
    if not files.find_table(file):
        return None
    splits = read_metadata(file)
    for name, fits, expected in (("subject_id", fits_int64, "int64"), ("split", is_text, "string")):
        if name not in splits.columns:
            raise ValueError(f"{file}: column '{name}' is missing (found {', '.join(splits.columns)})")
        if not fits(splits.schema[name]) and splits[name].null_count() < splits.height:
            raise ValueError(f"{file}: column '{name}' is {splits.schema[name]}; expected {expected}; convert it")
    # A row without a subject or a split carries no information.
    splits = (
        splits.select("subject_id", "split").drop_nulls().cast({"subject_id": pl.Int64, "split": pl.String}).unique()
    )
    conflicts = splits.height - splits["subject_id"].n_unique()
    if conflicts:
        raise ValueError(f"{file}: {conflicts} subjects are in two splits; each must be in one of {', '.join(SPLITS)}")
    return splits


def splits_of_folders(path: str | Path, shards: list[Path]) -> dict[Path, str]:
    """Returns the split of each shard whose folder is named after one (`data/train/0.parquet`, `data/split=train/...`).

    Raises:
      ValueError: only some shards lie in the folder of a split, or a shard lies in the folders of two.
    """
    splits = {}
    for shard in shards:
        folders = shard.relative_to(path).parts[:-1]
        names = {name for folder in folders if (name := folder.removeprefix("split=")) in SPLITS}
        if len(names) > 1:
            raise ValueError(f"{shard}: lies in the folders of two splits; expected one, or a file {SPLITS_FILE}")
        splits.update(dict.fromkeys([shard] if names else [], *names))
    if splits and len(splits) < len(shards):
        other_shard = next(shard for shard in shards if shard not in splits)
        raise ValueError(
            f"{other_shard}: lies in no folder of a split ({', '.join(SPLITS)}) but other shards do; name its folder "
            f"after its split, or write a file {SPLITS_FILE}"
        )
    return splits


def make_splits(subject_ids: np.ndarray) -> pl.DataFrame:
    """Assigns subjects to train, tuning and held_out (70/15/15) by a hash of their id alone."""
    bounds = np.cumsum(SPLIT_SHARES)[:-1]
    index = np.searchsorted(bounds, hash_fraction(subject_ids), side="right")
    return pl.DataFrame({"subject_id": subject_ids, "split": np.array(SPLITS)[index]})


def check_disjoint(subjects: dict[Path, np.ndarray]) -> None:
    """Checks the distinct subject ids of each shard; a ValueError if there are none, or two shards share one."""
    ids = np.concatenate(list(subjects.values()))
    if not ids.size:
        raise ValueError(f"{next(iter(subjects))}: the data set is empty: its {len(subjects)} shards hold no event")
    owners = np.repeat(np.arange(len(subjects)), [len(shard_ids) for shard_ids in subjects.values()])
    order = np.argsort(ids, kind="stable")
    repeated = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if repeated.size:
        first, second = (list(subjects)[owners[order[repeated[0] + step]]] for step in (0, 1))
        raise ValueError(
            f"{second}: {repeated.size} subjects are also in another shard, such as {first}; a subject must be in one "
            "shard: remove the duplicate shard or merge the subject's rows"
        )


def matching_codes(codes: list[str], include: tuple[str, ...], exclude: tuple[str, ...]) -> list[str]:
    """Returns the codes that match a pattern of `include` and none of `exclude` (shell patterns, case-sensitive).

    Brackets in a pattern also match themselves, since many codes contain brackets and every code must match itself.

    >>> matching_codes(["LAB//1", "DIAGNOSIS//2"], ("*",), ("LAB//*",))
    ['DIAGNOSIS//2']
    >>> matching_codes(["BMI [Ratio]", "BMI a", "BMI x"], ("BMI [Ratio]", "BMI [ab]"), ())
    ['BMI [Ratio]', 'BMI a']
    """

    def matcher(patterns: tuple[str, ...]) -> Callable[[str], bool]:
        variants = {*patterns, *(pattern.replace("[", "[[]") for pattern in patterns)}
        return lambda code: any(fnmatch.fnmatchcase(code, variant) for variant in variants)

    is_included, is_excluded = matcher(include), matcher(exclude)
    return [code for code in codes if is_included(code) and not is_excluded(code)]
