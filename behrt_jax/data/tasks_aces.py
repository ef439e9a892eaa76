"""ACES tasks: cohorts and binary labels as a configuration of `es-aces` describes them (Xu et al. 2025)."""

import collections
import contextlib
import dataclasses
import datetime
import logging
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from aces.config import TaskExtractorConfig
from aces.predicates import get_predicates_df
from aces.query import query

from behrt_jax.data.follow_up import FollowUp, Made, count_dates, drop, parse_follow_up, section_of, subjects

LABEL_SCHEMA = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "boolean_value": pl.Boolean}


@dataclasses.dataclass(frozen=True)
class AcesTask:
    """A task file that ACES reads, and what our section in its `metadata` adds.

    Attributes:
      description: in words.
      file: the task file.
      predicates: the names of its events that are codes.
      trigger: the predicate that begins each index date.
      window: how long after the prediction time an outcome counts; None where the record's end does not matter.
      follow_up: until when an outcome would be seen; None likewise.
    """

    description: str
    file: Path
    predicates: tuple[str, ...]
    trigger: str
    window: datetime.timedelta | None
    follow_up: FollowUp | None


def parse_aces(task: dict[str, Any], file: Path) -> AcesTask:
    """Reads a task file.

    Raises:
      ValueError: ACES refuses it, or it does not say what the label and the prediction time are.
    """
    with _aces_log(collections.Counter()):
        try:
            config = TaskExtractorConfig.load(file)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{file}: not a task that ACES reads ({reason}); docs/labels.md has an example") from error
    for name, found in (("label", config.label_window), ("index_timestamp", config.index_timestamp_window)):
        if not found:
            raise ValueError(
                f"{file}: no window has '{name}'; name the predicate of the label, and start or end of a window"
            )
    window, follow_up = None, None
    given = (task.get("metadata") or {}).get("follow_up")
    if given is not None:
        where = f"{file}: metadata.follow_up"
        section = section_of(given, ("days", "until", "last_event"), where)
        if not isinstance(section.get("days"), int | float) or section["days"] <= 0:
            raise ValueError(f"{where}.days: '{section.get('days')}'; expected the days in which the outcome counts")
        window, follow_up = datetime.timedelta(days=section["days"]), parse_follow_up(section, where)
    return AcesTask(
        description=str(task.get("description", "")).strip(),
        file=file,
        predicates=tuple(config.plain_predicates),
        trigger=config.trigger.predicate,
        window=window,
        follow_up=follow_up,
    )


def label_aces(shard: Path, events: pl.DataFrame, task: AcesTask) -> Made:
    """Makes the labels of one shard.

    Args:
      shard: the file, which ACES reads itself.
      events: the same, validated.
      task: what to label.

    Returns:
      `subject_id, prediction_time, boolean_value`: dates at or after death, and negatives whose follow-up ends before
      the outcome's window does, are left out and counted.
    """
    details, config = collections.Counter(), types.SimpleNamespace(path=str(shard), standard="meds")
    with _aces_log(details):
        # ACES changes the windows of a task when it runs it, so that each shard needs a fresh one.
        fresh = TaskExtractorConfig.load(task.file)
        predicates = get_predicates_df(fresh, config)  # pyright: ignore[reportArgumentType]
        found = query(fresh, predicates)
    triggers = predicates.filter(pl.col("timestamp").is_not_null() & (pl.col(task.trigger) > 0))
    people = subjects(events)
    counts = count_dates(people, triggers)
    dropped = {"that fit no windows": triggers.height - found.height}
    rows = pl.DataFrame(schema=LABEL_SCHEMA)
    if found.height:
        values = {"prediction_time": pl.col("index_timestamp"), "boolean_value": pl.col("label") > 0}
        rows = found.select("subject_id", **values).cast(LABEL_SCHEMA)  # pyright: ignore[reportArgumentType]
    rows, more = drop(rows.join(people, on="subject_id"), _unusable(task))
    rows = rows.select(*LABEL_SCHEMA).sort("subject_id", "prediction_time")
    matched = collections.Counter({name: int(predicates[name].sum()) for name in task.predicates if name in predicates})
    return Made(rows, counts, collections.Counter({**dropped, **more}), details, matched)


def _unusable(task: AcesTask) -> dict[str, pl.Expr]:
    time = pl.col("prediction_time")
    reasons = {"before birth": time < pl.col("birth"), "at or after death": time >= pl.col("death")}
    if task.follow_up is not None:
        # Nothing more comes after death, so that a window which death cuts short is known to its end.
        censored = pl.col("death").is_null() & (task.follow_up.end() < time + pl.lit(task.window))
        reasons["without the outcome, censored before its window ends"] = ~pl.col("boolean_value") & censored
    return reasons


class _Exclusions(logging.Handler):
    """Counts what each window excludes, which ACES says in its log alone; silent if its words change."""

    def __init__(self, counts: collections.Counter):
        super().__init__(logging.INFO)
        self.counts, self.window = counts, ""

    def emit(self, record: logging.LogRecord) -> None:
        """Reads a line of the log."""
        text = record.getMessage()
        if found := re.match(r"Summarizing subtree rooted at '(.+)'", text):
            self.window = found[1].rpartition(".")[0] or found[1]
        elif self.window and (found := re.match(r"Excluding ([\d,]+) rows as they failed to satisfy '(.+)'", text)):
            self.counts[f"in {self.window}: not {found[2]}"] += int(found[1].replace(",", ""))


@contextlib.contextmanager
def _aces_log(counts: collections.Counter) -> Iterator[None]:
    logger, handler = logging.getLogger("aces"), _Exclusions(counts)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
