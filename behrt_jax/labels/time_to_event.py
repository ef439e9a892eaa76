"""Time-to-event tasks: index dates of subjects at risk, and the first event or the end of follow-up after each."""

import collections
import dataclasses
import datetime
import functools
import itertools
import re
from typing import Any

import polars as pl

from behrt_jax.data.events import matching_codes
from behrt_jax.labels.follow_up import FollowUp, Made, as_time, count_dates, drop, parse_follow_up, section_of, subjects
from behrt_jax.labels.label_files import KEYS, NO_CAUSE

INDEX_KINDS = ("dates", "codes", "visits")
DAYS_A_YEAR = 365.25
MOST = 100_000  # visits or years; above any real value, and without overflow


@dataclasses.dataclass(frozen=True)
class TimeToEventTask:
    """A parsed task file with `time_to_event`.

    Attributes:
      description: the task in words.
      dates: index dates of every subject.
      codes: shell patterns of codes; their events are index dates. Without `dates` and `codes`, starts of visits are.
      min_visits: minimum number of visits that start before the index date.
      min_age: minimum age in years at the index date.
      none_before: patterns of codes; subjects with one of them before or at the index date are excluded.
      events: patterns of the codes of each cause.
      follow_up: the end of follow-up if no event comes first. Death always ends it.
    """

    description: str
    dates: tuple[datetime.datetime, ...]
    codes: tuple[str, ...]
    min_visits: int
    min_age: float
    none_before: tuple[str, ...]
    events: dict[str, tuple[str, ...]]
    follow_up: FollowUp

    def patterns(self) -> tuple[str, ...]:
        """Returns all code patterns of the task, each of which should match events of the data."""
        return tuple(itertools.chain(self.codes, self.none_before, *self.events.values()))


def parse_time_to_event(task: dict[str, Any], where: str) -> TimeToEventTask:
    """Parses a time-to-event task file; a ValueError if a key is unknown or missing, or its value is invalid."""
    section_of(task, ("description", "metadata", "time_to_event"), where)
    where = f"{where}: time_to_event"
    section = section_of(task["time_to_event"], ("index", "require", "events", "follow_up"), where)
    if missing := [key for key in ("index", "events", "follow_up") if section.get(key) in (None, {}, [])]:
        raise ValueError(f"{where}: {', '.join(missing)} is missing; docs/labels.md has an example")
    index = section_of(section["index"], INDEX_KINDS, f"{where}.index")
    if len(index) != 1 or not all(index.values()):
        raise ValueError(f"{where}.index: found {len(index)} kinds; expected one of {', '.join(INDEX_KINDS)}")
    allowed = ("min_visits", "min_age", "none_before")
    require = section_of(section.get("require") or {}, allowed, f"{where}.require")
    events = section["events"]
    if not isinstance(events, dict):
        raise ValueError(f"{where}.events: '{events}'; expected a name and codes of each cause, as death: MEDS_DEATH")
    if index.get("visits", True) is not True:
        raise ValueError(f"{where}.index.visits: '{index['visits']}'; expected true")
    dates = index.get("dates") or []
    follow_up = section_of(section["follow_up"], ("until", "last_event"), f"{where}.follow_up")
    return TimeToEventTask(
        description=str(task.get("description", "")).strip(),
        dates=tuple(as_time(date, f"{where}.index.dates") for date in (dates if isinstance(dates, list) else [dates])),
        codes=_patterns(index.get("codes") or [], f"{where}.index.codes"),
        min_visits=_whole(require.get("min_visits", 1), f"{where}.require.min_visits"),
        min_age=_number(require.get("min_age", 0), f"{where}.require.min_age"),
        none_before=_patterns(require.get("none_before") or [], f"{where}.require.none_before"),
        events=_causes(events, f"{where}.events"),
        follow_up=parse_follow_up(follow_up, f"{where}.follow_up"),
    )


def _patterns(value: Any, where: str) -> tuple[str, ...]:
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ValueError(f"{where}: '{value}'; expected a code or a list of codes, or shell patterns of them")
    return tuple(patterns)


def _causes(events: dict[Any, Any], where: str) -> dict[str, tuple[str, ...]]:
    """Returns the patterns of each cause; raises a ValueError for a cause without patterns or with an invalid name."""
    for cause in events:
        if not isinstance(cause, str) or re.fullmatch(NO_CAUSE, cause.strip()):
            raise ValueError(f"{where}: '{cause}'; expected the name of a cause, such as death, that is no number")
    causes = {cause: _patterns(codes, f"{where}.{cause}") for cause, codes in events.items()}
    if empty := [cause for cause, patterns in causes.items() if not patterns]:
        raise ValueError(f"{where}.{empty[0]}: no code; expected a code or a list of codes, or shell patterns of them")
    return causes


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        raise ValueError(f"{where}: '{value}'; expected a number from 0 on, {MOST:,} at most")
    return value


def _whole(value: Any, where: str) -> int:
    if int(_number(value, where)) != value:
        raise ValueError(f"{where}: '{value}'; expected a whole number")
    return int(value)


def label_time_to_event(events: pl.DataFrame, task: TimeToEventTask, visits_named: bool) -> Made:
    """Makes the labels of one shard from `name_visits`; unless `visits_named`, calendar days are visits.

    Returns:
      `subject_id, prediction_time, event_time` and `event`: boolean for one cause, the cause's name or null for more.
    """
    people, events = subjects(events), events.filter(pl.col("time").is_not_null())
    codes = events["code"].unique().to_list()
    occurrences = {
        cause: _times(events, matching_codes(codes, patterns, ())) for cause, patterns in task.events.items()
    }
    visits = _visits(events, visits_named)
    index = _index_dates(events, visits, people, task, codes)
    counts = count_dates(people, index)
    rows = _visits_before(index.join(people, on="subject_id"), visits)
    exclusions = _times(events, matching_codes(codes, task.none_before, ()))
    rows = rows.join(exclusions.group_by("subject_id").agg(before=pl.col("time").min()), on="subject_id", how="left")
    rows, dropped = drop(rows, _not_at_risk(task))
    end = task.follow_up.end()
    rows = rows.with_columns(end=pl.when(pl.col("death") < end).then("death").otherwise(end))
    rows, late_counts = drop(rows, {"after the end of follow-up": pl.col("end") <= pl.col("prediction_time")})
    matched = collections.Counter(
        {pattern: int(events["code"].is_in(matching_codes(codes, (pattern,), ())).sum()) for pattern in task.patterns()}
    )
    dropped.update(late_counts)
    return Made(_first_events(rows, occurrences), counts, dropped, collections.Counter(), matched)


def _times(events: pl.DataFrame, codes: list[str]) -> pl.DataFrame:
    return events.filter(pl.col("code").is_in(codes)).select("subject_id", "time").unique().sort("time")


def _visits(events: pl.DataFrame, named: bool) -> pl.DataFrame:
    """Returns `subject_id, time` of the first event of each visit (named by events, or else a day), sorted by time."""
    visit = pl.col("visit_name") if named else pl.col("time").dt.date()
    visits = events.with_columns(visit=visit).drop_nulls("visit").group_by("subject_id", "visit")
    return visits.agg(pl.col("time").min()).drop("visit").sort("time")


def _index_dates(
    events: pl.DataFrame, visits: pl.DataFrame, people: pl.DataFrame, task: TimeToEventTask, codes: list[str]
) -> pl.DataFrame:
    if task.dates:
        dates = pl.DataFrame({"prediction_time": task.dates}, schema={"prediction_time": pl.Datetime("us")})
        return people.select("subject_id").join(dates.unique(), how="cross").sort(KEYS)
    index_dates = _times(events, matching_codes(codes, task.codes, ())) if task.codes else visits.unique()
    return index_dates.rename({"time": "prediction_time"}).sort(KEYS)


def _visits_before(index: pl.DataFrame, visits: pl.DataFrame) -> pl.DataFrame:
    visits = visits.with_columns(visits=pl.int_range(1, pl.len() + 1).over("subject_id"))
    joined = index.sort("prediction_time").join_asof(
        visits,
        left_on="prediction_time",
        right_on="time",
        by="subject_id",
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    return joined.with_columns(pl.col("visits").fill_null(0))


def _not_at_risk(task: TimeToEventTask) -> dict[str, pl.Expr]:
    time = pl.col("prediction_time")
    reasons = {"before birth": time < pl.col("birth"), "at or after death": time >= pl.col("death")}
    if task.min_age:
        age = (time - pl.col("birth")).dt.total_seconds() / (DAYS_A_YEAR * 86_400)
        reasons["of unknown age"] = pl.col("birth").is_null()
        reasons[f"younger than {task.min_age:g} years"] = age < task.min_age
    reasons[f"with fewer than {task.min_visits} visits before"] = pl.col("visits") < task.min_visits
    if task.none_before:
        reasons["with a code of none_before by then"] = pl.col("before") <= time
    return reasons


def _first_events(rows: pl.DataFrame, occurrences: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Returns the first event after each prediction time, or the end of follow-up; the first cause listed wins ties."""

    def join_next(rows: pl.DataFrame, cause: str) -> pl.DataFrame:
        return rows.join_asof(
            occurrences[cause].rename({"time": f"next {cause}"}),
            left_on="prediction_time",
            right_on=f"next {cause}",
            by="subject_id",
            strategy="forward",
            allow_exact_matches=False,
            coalesce=False,
            check_sortedness=False,
        )

    rows = functools.reduce(join_next, occurrences, rows.sort("prediction_time"))
    first = pl.min_horizontal(f"next {cause}" for cause in occurrences)
    has_event = (first <= pl.col("end")).fill_null(False)
    if len(occurrences) == 1:
        event = has_event
    else:
        causes = (pl.when(pl.col(f"next {cause}") == first).then(pl.lit(cause)) for cause in occurrences)
        event = pl.when(has_event).then(pl.coalesce(causes))
    rows = rows.with_columns(event_time=pl.when(has_event).then(first).otherwise("end"), event=event)
    return rows.select(*KEYS, "event_time", "event").sort(KEYS)
