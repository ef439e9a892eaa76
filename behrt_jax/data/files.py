"""Finds and reads Parquet files, by one rule for data sets and folders of labels."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

SUFFIX = ".parquet"
HIDDEN = (".", "_")  # prefixes of hidden and system files, such as ._0.parquet, _SUCCESS and _temporary/
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)  # raised by polars for a bad file


class ParquetFiles(NamedTuple):
    """The Parquet files below a folder.

    Attributes:
      files: the files to read, sorted by path.
      hidden: number of hidden or system files and folders left out.
      other: number of files of other kinds left out.
    """

    files: list[Path]
    hidden: int
    other: int


def find_parquet(folder: Path, suffix: str = SUFFIX) -> ParquetFiles:
    """Finds the Parquet files (or those with another suffix) below a folder, at any depth and through links.

    A folder may be named like a file (`events.parquet/part-0.parquet`, as Spark writes).

    Raises:
      ValueError: a folder cannot be listed, or a link points to nothing.
    """
    paths = list(_walk(folder, ()))
    visible = [path for path in paths if not path.name.startswith(HIDDEN)]
    files = [path for path in visible if path.suffix.lower() == suffix and path.is_file()]
    return ParquetFiles(files, len(paths) - len(visible), len(visible) - len(files))


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """Yields the files and the hidden folders below a folder, in order; skips links to a parent folder."""
    real_path = os.path.realpath(folder)
    if real_path in above:
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ValueError(f"{folder}: cannot list this folder ({error.strerror}); make it readable") from error
    for name in names:
        path = folder / name
        if name.startswith(HIDDEN):
            yield path
        elif path.is_dir():
            yield from _walk(path, (*above, real_path))
        elif not path.exists():
            raise _broken(path)
        else:
            yield path


def _broken(link: Path) -> ValueError:
    return ValueError(f"{link}: this link points to nothing; restore what it points to, or remove the link")


def find_table(path: Path) -> list[Path]:
    """Returns the files of a table, which is one file or a folder of shards; an empty list if the path is missing."""
    if path.is_dir():
        return find_parquet(path).files
    if path.is_symlink() and not path.exists():
        raise _broken(path)
    return [path] if path.exists() else []


def read_table(path: Path) -> pl.DataFrame:
    """Reads a table that `find_table` finds; raises a ValueError if it cannot be read."""
    shards = find_table(path)
    if not shards:
        raise ValueError(f"{path}: no parquet file there; expected a file or a folder of *.parquet")
    tables = []
    for shard in shards:
        try:
            tables.append(scan_parquet(shard).collect())
        except UNREADABLE as error:
            raise unreadable(shard, error) from error
    try:
        return pl.concat(tables, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: its shards have columns of different types; write them alike") from error


def read_text_table(file: Path, key: str) -> pl.DataFrame:
    """Reads a table (.csv or .parquet) that the config `key` names, all columns as text; a ValueError if it cannot."""
    try:
        if file.suffix.lower() == ".csv":
            return pl.read_csv(file, infer_schema=False)
        return scan_parquet(file).collect().cast(pl.String)
    except UNREADABLE as error:
        raise ValueError(f"{key}: {unreadable(file, error, 'table')}") from error


def digest(file: str, key: str) -> str:
    """Returns the SHA-256 of a file that the config `key` names; raises a ValueError if it cannot be read."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{key}: cannot read {file} ({error.strerror}); correct the path, or leave it out") from error


def scan_parquet(file: Path) -> pl.LazyFrame:
    """Scans exactly this file; `glob=False` keeps polars from expanding `*`, `?` or `[` in its name."""
    return pl.scan_parquet(file, glob=False, hive_partitioning=False)


def unreadable(file: Path, error: BaseException, kind: str = "parquet") -> ValueError:
    """Returns the error to raise for one of `UNREADABLE`."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return ValueError(f"{file}: not a readable {kind} file ({reason}); write or copy it again")
