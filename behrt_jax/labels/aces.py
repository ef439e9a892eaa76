"""ACES tasks: cohorts and binary labels defined by a configuration of `es-aces` (Xu et al. 2025)."""

import collections
import contextlib
import copy
import dataclasses
import datetime
import logging
import re
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from aces.config import TaskExtractorConfig
from aces.predicates import get_predicates_df
from aces.query import query

from behrt_jax.labels.aces_checks import EVENT_COLUMNS, MOST_DAYS, check_config, check_task, extra_columns
from behrt_jax.labels.follow_up import FollowUp, Made, count_dates, drop, parse_follow_up, section_of, subjects

LABEL_SCHEMA = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "boolean_value": pl.Boolean}
MOST_CHARACTERS = 500  # of an error message


@dataclasses.dataclass(frozen=True)
class AcesTask:
    """An ACES task file, with the follow-up from our section in its `metadata`.

    Attributes:
      description: the task in words.
      file: the task file.
      config: the configuration that ACES parsed.
      predicates: names of the predicates that match codes.
      columns: further columns of the events that predicates read.
      trigger: the predicate whose events are index dates.
      window: how long after the prediction time an outcome counts; None if negatives are not checked for censoring.
      follow_up: the end of follow-up; None likewise.
    """

    description: str
    file: Path
    config: TaskExtractorConfig
    predicates: tuple[str, ...]
    columns: tuple[str, ...]
    trigger: str
    window: datetime.timedelta | None
    follow_up: FollowUp | None


def parse_aces(task: dict[str, Any], file: Path, text: str) -> AcesTask:
    """Parses an ACES task file, given its YAML and its text.

    Raises:
      ValueError: ACES rejects it, or it does not define the label and the prediction time.
    """
    check_task(task, str(file))
    with (
        _aces_log(collections.Counter()),
        _one_line(f"{file}: not a task that ACES reads"),
        tempfile.TemporaryDirectory() as folder,
    ):
        task_file = Path(folder) / "task.yaml"  # the only suffix that ACES accepts
        task_file.write_text(text, encoding="utf-8")
        config = TaskExtractorConfig.load(task_file)
    check_config(config, str(file))
    window, follow_up = _parse_metadata(task.get("metadata"), f"{file}: metadata")
    return AcesTask(
        description=str(task.get("description", "")).strip(),
        file=file,
        config=config,
        predicates=tuple(config.plain_predicates),
        columns=extra_columns(config),
        trigger=config.trigger.predicate,
        window=window,
        follow_up=follow_up,
    )


def _parse_metadata(metadata: Any, where: str) -> tuple[datetime.timedelta | None, FollowUp | None]:
    """Returns the outcome window and the follow-up from our section of the metadata, both None without it."""
    if metadata is not None and not isinstance(metadata, dict):
        raise ValueError(f"{where}: expected keys such as follow_up; found {type(metadata).__name__}")
    if (settings := (metadata or {}).get("follow_up")) is None:
        return None, None
    where = f"{where}.follow_up"
    section = section_of(settings, ("days", "until", "last_event"), where)
    days = section.get("days")
    if isinstance(days, bool) or not isinstance(days, int | float) or not 0 < days <= MOST_DAYS:
        raise ValueError(
            f"{where}.days: '{days}'; expected the days in which the outcome counts, {MOST_DAYS:,} at most"
        )
    return datetime.timedelta(days=days), parse_follow_up(section, where)


def label_aces(shard: Path, events: pl.DataFrame, task: AcesTask) -> Made:
    """Makes the labels of one shard from its events from `read_shard`, with the columns of the task.

    Returns:
      `subject_id, prediction_time, boolean_value`; index dates at or after death, and negatives whose follow-up ends
      before their outcome window does, are left out and counted.

    Raises:
      ValueError: ACES cannot run the task on these events, or a prediction time gets both labels.
    """
    details = collections.Counter()
    predicates, cohort = _run_aces(shard, events, task, details)
    triggers = predicates.filter(pl.col("timestamp").is_not_null() & (pl.col(task.trigger) > 0))
    people = subjects(events)
    counts = count_dates(people, triggers)
    dropped = {"that fit no windows": triggers.height - cohort.height}
    rows = pl.DataFrame(schema=LABEL_SCHEMA)
    if cohort.height:
        values = {"prediction_time": pl.col("index_timestamp"), "boolean_value": pl.col("label") > 0}
        rows = cohort.select("subject_id", **values).cast(LABEL_SCHEMA)  # pyright: ignore[reportArgumentType]
    rows, dropped_rows = drop(rows.join(people, on="subject_id"), _unusable(task))
    labels = rows.select(*LABEL_SCHEMA).unique().sort("subject_id", "prediction_time")
    dropped_rows["that share their prediction time and label with another"] = rows.height - labels.height
    if conflicts := labels.filter(pl.struct("subject_id", "prediction_time").is_duplicated()).height:
        raise ValueError(
            f"{task.file}: {conflicts} rows of {shard} share subject and prediction time, but not the label; expected "
            "one label for each; begin the window of the label at the prediction time"
        )
    matched = collections.Counter({name: int(predicates[name].sum()) for name in task.predicates if name in predicates})
    return Made(labels, counts, collections.Counter({**dropped, **dropped_rows}), details, matched)


def _run_aces(
    shard: Path, events: pl.DataFrame, task: AcesTask, details: collections.Counter
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns the counts of predicates at each time, and the cohort, which may be empty."""
    if missing := [name for name in task.columns if name not in events.columns]:
        if events.height:
            raise ValueError(
                f"{task.file}: predicates read the column '{missing[0]}', which {shard} does not have; expected one of "
                "the data's columns, or of the keys of a predicate (code, value_min, ...)"
            )
        events = events.with_columns(pl.lit(None).alias(name) for name in missing)
    # ACES reads files by different rules, so it gets a file of the events that our reader validated and typed.
    with tempfile.TemporaryDirectory() as folder, _aces_log(details):
        file = Path(folder) / "events.parquet"
        events.select({*EVENT_COLUMNS, *task.columns}).write_parquet(file)
        with _one_line(f"{task.file}: ACES cannot run this task on {shard}"):
            # ACES modifies the windows of a config when it runs, so each shard needs a fresh copy.
            config = copy.deepcopy(task.config)
            source = types.SimpleNamespace(path=str(file), standard="meds")
            predicates = get_predicates_df(config, source)  # pyright: ignore[reportArgumentType]
            return predicates, query(config, predicates)


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Converts any exception of ACES or its dependencies to a ValueError of one line."""
    try:
        yield
    except (Exception, pl.exceptions.PanicException) as error:
        message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        text = " ".join(message.partition("Resolved plan")[0].split())  # polars appends its query plan
        reason = text[:MOST_CHARACTERS] + "..." * (len(text) > MOST_CHARACTERS)
        raise ValueError(f"{what} ({reason or type(error).__name__}); docs/labels.md has an example") from error


def _unusable(task: AcesTask) -> dict[str, pl.Expr]:
    time = pl.col("prediction_time")
    reasons = {
        "without a prediction time": time.is_null(),
        "without a label": pl.col("boolean_value").is_null(),
        "before birth": time < pl.col("birth"),
        "at or after death": time >= pl.col("death"),
    }
    if task.follow_up is not None:
        # No event follows death, so a window that death cuts short counts as fully observed.
        censored = pl.col("death").is_null() & (task.follow_up.end() < time + pl.lit(task.window))
        reasons["without the outcome, censored before its window ends"] = ~pl.col("boolean_value") & censored
    return reasons


class _Exclusions(logging.Handler):
    """Counts the rows that each window excludes, which only ACES' log states; counts none if its wording changes."""

    def __init__(self, counts: collections.Counter):
        super().__init__(logging.INFO)
        self.counts, self.window = counts, ""

    def emit(self, record: logging.LogRecord) -> None:
        """Parses a line of the log."""
        text = record.getMessage()
        if match := re.match(r"Summarizing subtree rooted at '(.+)'", text):
            self.window = match[1].rpartition(".")[0] or match[1]
        elif self.window and (match := re.match(r"Excluding ([\d,]+) rows as they failed to satisfy '(.+)'", text)):
            self.counts[f"in {self.window}: not {match[2]}"] += int(match[1].replace(",", ""))


@contextlib.contextmanager
def _aces_log(counts: collections.Counter) -> Iterator[None]:
    logger, handler = logging.getLogger("aces"), _Exclusions(counts)
    previous = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(previous[0])
        logger.propagate = previous[1]
