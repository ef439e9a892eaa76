"""Follow-up: times of birth, death and the last event of subjects, and the end of their observation."""

import collections
import dataclasses
import datetime
from typing import Any, NamedTuple

import polars as pl

from behrt_jax.data import events as data_events
from behrt_jax.data.events import BIRTH, DEATH


class Made(NamedTuple):
    """Labels of a task, with counts of index dates and matched events.

    Attributes:
      labels: sorted rows in one of the formats of `behrt_jax.labels.labels`.
      counts: `patients`, `index dates`, `patients with index dates`.
      dropped: number of index dates without a row, by reason.
      details: the same for overlapping reasons, which do not add up.
      matched: number of events that match each pattern or predicate of the task.
    """

    labels: pl.DataFrame
    counts: collections.Counter
    dropped: collections.Counter
    details: collections.Counter
    matched: collections.Counter


@dataclasses.dataclass(frozen=True)
class FollowUp:
    """Rule for the end of follow-up, which is the earliest of the given times.

    Attributes:
      until: a date, or None.
      last_event: whether the subject's last event also ends follow-up.
    """

    until: datetime.datetime | None
    last_event: bool

    def end(self) -> pl.Expr:
        """Returns the end of follow-up as an expression over the columns of `subjects`."""
        ends = [pl.lit(self.until, pl.Datetime("us"))] if self.until else []
        return pl.min_horizontal(*ends, *([pl.col("last")] if self.last_event else []))


def parse_follow_up(section: dict[str, Any], where: str) -> FollowUp:
    """Parses `until` and `last_event`; raises a ValueError if neither is given."""
    until = as_time(section["until"], f"{where}.until") if section.get("until") else None
    last_event = section.get("last_event", False)
    if not isinstance(last_event, bool):
        raise ValueError(f"{where}.last_event: '{last_event}'; expected true or false")
    if until is None and not last_event:
        raise ValueError(f"{where}: follow-up has no end; give 'until: 2025-12-31', 'last_event: true' or both")
    return FollowUp(until, last_event)


def section_of(parent: Any, allowed: tuple[str, ...], where: str) -> dict[str, Any]:
    """Returns a section of a task file; raises a ValueError that names unknown keys."""
    if not isinstance(parent, dict):
        raise ValueError(f"{where}: expected a section with keys such as {', '.join(allowed)}; found '{parent}'")
    if unknown := [str(key) for key in parent if key not in allowed]:
        raise ValueError(f"{where}: no such key: {', '.join(unknown)}; expected {', '.join(allowed)}")
    return parent


def as_time(value: Any, where: str) -> datetime.datetime:
    """Returns a date of a task file as a datetime at midnight; a datetime without a time zone stays unchanged."""
    if isinstance(value, datetime.datetime) and value.tzinfo is None:
        return value
    if isinstance(value, datetime.datetime) or not isinstance(value, datetime.date):
        raise ValueError(f"{where}: '{value}'; expected a date such as 2025-12-31, without a time zone")
    return datetime.datetime(value.year, value.month, value.day)


def subjects(events: pl.DataFrame) -> pl.DataFrame:
    """Returns `subject_id, birth, death, last` of a shard, null where unknown; `last` is the time of the last event."""
    codes = {"birth": BIRTH, "death": DEATH}
    times = {name: pl.col("time").filter(pl.col("code") == code).min() for name, code in codes.items()}
    return events.group_by("subject_id").agg(**times, last=pl.col("time").max())


def count_dates(people: pl.DataFrame, dates: pl.DataFrame) -> collections.Counter:
    """Counts the patients of a shard and their index dates, for `Made.counts`."""
    date_counts = {"index dates": dates.height, "patients with index dates": dates["subject_id"].n_unique()}
    return collections.Counter({"patients": people.height, **date_counts})


def drop(rows: pl.DataFrame, reasons: dict[str, pl.Expr]) -> tuple[pl.DataFrame, collections.Counter]:
    """Drops rows by one reason after the other, so that each row is counted once; null counts as False."""
    dropped = collections.Counter()
    for reason, condition in reasons.items():
        remaining = rows.filter(~condition.fill_null(False))
        dropped[reason] = rows.height - remaining.height
        rows = remaining
    return rows, dropped


def read_lives(path: str) -> pl.DataFrame:
    """Reads the times of birth, death and the last event of all subjects of a data set; see `subjects`."""
    return pl.concat(subjects(data_events.read_shard(shard)) for shard in data_events.find_shards(path))
