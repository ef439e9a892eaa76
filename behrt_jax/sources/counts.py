"""Counts what became of each row of a source: an event, or skipped for a reason."""

from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from behrt_jax.sources import engine
from behrt_jax.sources.tables import RowCounts

DUPLICATE = "duplicate"


class EventCounts(NamedTuple):
    """Rows of a table that one kind of event was made from: `rows` = `events` + the sum of `skipped` by reason."""

    table: str
    kind: str
    rows: int
    skipped: dict[str, int]
    events: int


def count_events(spec: Any, work: Path, prepared: dict[str, RowCounts]) -> list[EventCounts]:
    """Counts rows, skipped rows and events of every kind of event in a spec.

    Events are counted in the finished data set, skipped rows in the tables by the spec's own expressions, so that the
    sum shows whether MEDS-Extract dropped a row for another reason.

    Args:
      spec: what `engine.load_spec` returns.
      work: the folder in which the stages ran.
      prepared: rows read and skipped before MEDS-Extract, by table.

    Raises:
      ValueError: rows are missing, or there are more than were read.
    """
    shards = engine.read_shards(work)
    scans = [pl.scan_parquet(work / "data" / f"{shard}.parquet", glob=False) for shard in shards]
    counted = pl.concat(scans).group_by("source_block").len().collect(engine="streaming")
    num_events = dict(counted.iter_rows())
    one_value = spec.etl.stage_options.get("do_dedup_text_and_numeric", False)
    counts = []
    for table in spec.event_tables:
        before = prepared.get(table.input_prefix, RowCounts(0, {}))
        rows = table.scan(work / "convert_to_parquet").select(pl.len()).collect().item()
        parts = [_count_shard(table, work / "convert_to_subject_sharded" / shard, one_value) for shard in shards]
        for kind in table.events:
            block = f"{table.input_prefix}/{kind.name}"
            skipped = dict(before.skipped)
            skipped["no subject id"] = rows - sum(part[block]["rows"] for part in parts)
            for reason in ("no code", "no time", "unreadable time", DUPLICATE):
                skipped[reason] = skipped.get(reason, 0) + sum(part[block][reason] for part in parts)
            found = {reason: number for reason, number in skipped.items() if number}
            read = rows + sum(before.skipped.values())
            counts.append(EventCounts(table.input_prefix, kind.name, read, found, num_events.get(block, 0)))
    check(counts)
    return counts


def check(counts: list[EventCounts]) -> None:
    """Raises a ValueError unless every row became an event or is counted as skipped."""
    for count in counts:
        if count.rows != count.events + sum(count.skipped.values()):
            raise ValueError(
                f"{count.table}/{count.kind}: {count.rows} rows, but {count.events} events and "
                f"{sum(count.skipped.values())} rows skipped ({count.skipped}); rows are lost or repeated without a "
                "reason; is the spec's join key unique, and did the input change during the conversion?"
            )


def _count_shard(table: Any, folder: Path, one_value: bool) -> dict[str, dict[str, int]]:
    """Returns, by kind of event, the rows of one shard and those that make no event, by reason."""
    scan = pl.concat([pl.scan_parquet(file, glob=False) for file in table.source_files(folder)])
    rows = table.prepare(scan)
    return {f"{table.input_prefix}/{kind.name}": _count_kind(kind, rows, one_value) for kind in table.events}


def _count_kind(kind: Any, rows: pl.LazyFrame, one_value: bool) -> dict[str, int]:
    columns = dict(kind.polars_exprs)
    no_code = columns["code"].is_null() if kind.code_source_columns else pl.lit(False)
    null_time = ~no_code & columns["time"].is_null() if not kind.is_static else pl.lit(False)
    inputs = [] if kind.is_static else [pl.col(name).is_null() for name in kind.columns["time"].referenced_columns]
    no_time = null_time & pl.all_horizontal(*inputs, pl.lit(True))
    marks = rows.select(
        no_code=no_code,
        no_time=no_time,
        unreadable=null_time & ~no_time,
        content=pl.struct("subject_id", *(expr.alias(name) for name, expr in _content(columns, one_value).items())),
    )
    kept = ~pl.any_horizontal("no_code", "no_time", "unreadable")
    counts = marks.select(
        pl.len().alias("rows"),
        pl.col("no_code").sum().alias("no code"),
        pl.col("no_time").sum().alias("no time"),
        pl.col("unreadable").sum().alias("unreadable time"),
        (kept.sum() - pl.col("content").filter(kept).n_unique()).alias(DUPLICATE),
    )
    return {name: int(value) for name, value in counts.collect().row(0, named=True).items()}


def _content(columns: dict[str, pl.Expr], one_value: bool) -> dict[str, pl.Expr]:
    """Returns the columns of an event; rows that are equal in all of them give one event."""
    content = dict(columns)
    if one_value and {"numeric_value", "text_value"} <= set(columns):
        text, number = columns["text_value"], columns["numeric_value"].cast(pl.Float32)
        is_number = (text.cast(pl.Float32, strict=False) == number).fill_null(False)
        content["text_value"] = pl.when(~is_number).then(text)
    return content
