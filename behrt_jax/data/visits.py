"""Visits: which events belong together, in which order, and which of them share a moment."""

import polars as pl

VISIT_COLUMNS = ("visit_id", "visit_occurrence_id", "encounter_id", "hadm_id")


def visit_column(columns: list[str], visits: str, source: object = "the data") -> str | None:
    """Resolves the config key `data.visits` against the columns of a shard.

    Args:
      columns: the columns that the shard has.
      visits: `auto` (the first of `VISIT_COLUMNS` the shard has, else calendar days), `day`, `gap`, or a column name.
      source: what has these columns, for the error.

    Returns:
      The column that names visits, or None for calendar days or gaps.

    Raises:
      ValueError: a column was named that the shard lacks.
    """
    if visits in ("day", "gap"):
        return None
    if visits == "auto":
        return next((name for name in VISIT_COLUMNS if name in columns), None)
    if visits not in columns:
        raise ValueError(
            f"data.visits: column '{visits}' is not in {source} (found {', '.join(columns)}); name one of these, or "
            "use auto, day or gap"
        )
    return visits


def assign_visits(events: pl.DataFrame, visits: str, gap_hours: float) -> pl.DataFrame:
    """Groups timed events to visits and orders them by the visit's start, then time.

    Args:
      events: one validated shard.
      visits: see `visit_column`; events with a null in the visit column are grouped by calendar day.
      gap_hours: with `visits="gap"`, a pause of more than this starts a new visit.

    Returns:
      The timed events with `visit:UInt32` (ascending in each subject, not yet contiguous after a later filter).

    Raises:
      ValueError: `visits` names a column that the shard lacks.
    """
    column = visit_column(events.columns, visits)
    timed = events.filter(pl.col("time").is_not_null())
    day = pl.col("time").dt.date()
    if column is not None:
        keys = {"_name": pl.col(column).cast(pl.String), "_day": pl.when(pl.col(column).is_null()).then(day)}
    elif visits == "gap":
        pause = pl.col("time").diff().over("subject_id") > pl.duration(minutes=round(gap_hours * 60))
        keys = {"_name": pause.fill_null(False).cum_sum().over("subject_id"), "_day": pl.lit(None, pl.Date)}
    else:
        keys = {"_name": pl.lit(None, pl.String), "_day": day}
    timed = timed.with_columns(**keys).with_columns(_start=pl.col("time").min().over("subject_id", "_name", "_day"))
    timed = timed.sort("subject_id", "_start", "_name", "_day", "time", maintain_order=True)
    return timed.with_columns(visit=pl.struct("subject_id", "_name", "_day").rle_id()).drop("_name", "_day", "_start")


def number_visits(events: pl.DataFrame) -> pl.DataFrame:
    """Numbers visits and moments from 0 in each subject, without holes.

    A moment is what shares subject, visit and time: its codes have no order among themselves. Visits are ordered by the
    first of the events that are left, so that the time from one to the next is never negative.

    Returns:
      The events with `visit:Int32` renumbered and `moment:Int32` added.
    """
    start = pl.col("time").min().over("subject_id", "visit")
    events = events.sort("subject_id", start, "visit", "time", maintain_order=True)
    runs = {
        "visit": pl.struct("subject_id", "visit").rle_id().cast(pl.Int32),
        "moment": pl.struct("subject_id", "visit", "time").rle_id().cast(pl.Int32),
    }
    events = events.with_columns(**runs)
    return events.with_columns(*[pl.col(name) - pl.col(name).first().over("subject_id") for name in runs])
