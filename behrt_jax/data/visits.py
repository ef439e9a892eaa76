"""Groups events into visits and orders them."""

import polars as pl

VISIT_COLUMNS = ("visit_id", "visit_occurrence_id", "encounter_id", "hadm_id")
NO_VISIT = ("", "nan", "none", "null", "nil", "na", "n/a", "#n/a", "<na>", "nat", "\\n", "-", ".")  # in lower case


def visit_columns(visits: str) -> tuple[str, ...]:
    """Returns the columns that may name visits, given the config key `data.visits`."""
    return {"auto": VISIT_COLUMNS, "day": (), "gap": ()}.get(visits, (visits,))


def check_column(columns: list[str], visits: str, source: object) -> None:
    """Raises a ValueError if `data.visits` names a column that a shard lacks."""
    if visits not in ("auto", "day", "gap", *columns):
        raise ValueError(
            f"data.visits: column '{visits}' is not in {source} (found {', '.join(columns)}); name one of these, or "
            "use auto, day or gap"
        )


def name_visits(events: pl.DataFrame, visits: str, source: object = "the data") -> pl.DataFrame:
    """Adds `visit_name:String`, the visit that each timed event of a validated shard names, or null.

    Uses the first visit column in which a timed event of the shard names a visit. Null, NaN, empty text and words such
    as "null" and "N/A" name none; with `data.visits` of `day` or `gap`, no event does. All code that reads visits calls
    this function.

    Raises:
      ValueError: a column holds values other than numbers, text or dates.
    """
    for column in visit_columns(visits):
        if column in events.columns and events[column].null_count() < events.height:
            name = _name(pl.col(column), events.schema[column], source)
            named_events = events.with_columns(visit_name=pl.when(pl.col("time").is_not_null()).then(name))
            if named_events["visit_name"].null_count() < events.height:
                return named_events
    return events.with_columns(visit_name=pl.lit(None, pl.String))


def _name(ids: pl.Expr, kind: pl.DataType, source: object) -> pl.Expr:
    """Returns visit ids as text, null for values that are not ids."""
    if kind.is_float():
        return pl.when(ids.is_finite()).then(ids.cast(pl.String))
    if kind.base_type() in (pl.String, pl.Categorical, pl.Enum):
        text = ids.cast(pl.String).str.strip_chars()
        return pl.when(~text.str.to_lowercase().is_in(NO_VISIT)).then(text)
    if kind.is_numeric() or kind.base_type() in (pl.Date, pl.Datetime):
        return ids.cast(pl.String)
    raise ValueError(
        f"{source}: column '{ids.meta.output_name()}' is {kind}; expected one visit id an event, a number or text; "
        "convert it, or name another column, day or gap in data.visits"
    )


def assign_visits(events: pl.DataFrame, visits: str, gap_hours: float) -> pl.DataFrame:
    """Groups timed events into visits and sorts them by the visit's start, then time.

    Events without a `visit_name` are grouped by calendar day. With `data.visits=gap`, pauses of more than `gap_hours`
    separate visits.

    Returns:
      The timed events with `visit:UInt32`, ascending in each subject; a later filter may leave gaps in the numbers.
    """
    timed = events.filter(pl.col("time").is_not_null())
    if visits == "gap":
        pause = pl.col("time").diff().over("subject_id") > pl.duration(minutes=round(gap_hours * 60))
        keys = {"_name": pause.fill_null(False).cum_sum().over("subject_id"), "_day": pl.lit(None, pl.Date)}
    else:
        name = pl.col("visit_name")
        keys = {"_name": name, "_day": pl.when(name.is_null()).then(pl.col("time").dt.date())}
    timed = timed.with_columns(**keys).with_columns(_start=pl.col("time").min().over("subject_id", "_name", "_day"))
    timed = timed.sort("subject_id", "_start", "_name", "_day", "time", maintain_order=True)
    return timed.with_columns(visit=pl.struct("subject_id", "_name", "_day").rle_id()).drop("_name", "_day", "_start")


def number_visits(events: pl.DataFrame) -> pl.DataFrame:
    """Numbers the visits of each subject from 0, without gaps, as `visit:Int32`.

    Visits are sorted by their first remaining event, so that the time from one to the next is never negative.
    """
    start = pl.col("time").min().over("subject_id", "visit")
    events = events.sort("subject_id", start, "visit", "time", maintain_order=True)
    events = events.with_columns(visit=pl.struct("subject_id", "visit").rle_id().cast(pl.Int32))
    return events.with_columns(visit=pl.col("visit") - pl.col("visit").first().over("subject_id"))
