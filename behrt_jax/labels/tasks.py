"""Label making: applies a task file to MEDS events, shard by shard; docs/labels.md has the formats."""

import collections
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import polars as pl
from ruamel.yaml import YAML

from behrt_jax.data.events import read_shard
from behrt_jax.data.visits import name_visits, visit_columns
from behrt_jax.labels.aces import MOST_CHARACTERS, AcesTask, label_aces, parse_aces
from behrt_jax.labels.follow_up import Made
from behrt_jax.labels.time_to_event import TimeToEventTask, label_time_to_event, parse_time_to_event


def load_task(path: str | Path) -> AcesTask | TimeToEventTask:
    """Reads a task file: a time-to-event task if it has the key `time_to_event`, else an ACES configuration.

    Raises:
      ValueError: the file does not exist, or is not a task.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file}: no such task file; expected a YAML file such as configs/tasks/death.yaml")
    try:
        text = file.read_text(encoding="utf-8")
        task = YAML(typ="safe", pure=True).load(text)
    except Exception as error:  # invalid tags and dates raise many exception types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file}: not a YAML file ({reason[-MOST_CHARACTERS:]}); correct it") from error
    if not isinstance(task, dict):
        raise ValueError(f"{file}: holds no keys; expected 'time_to_event', or 'predicates', 'trigger' and 'windows'")
    try:
        return parse_time_to_event(task, str(file)) if "time_to_event" in task else parse_aces(task, file, text)
    except ValueError as error:  # the message may quote a long value
        message = " ".join(str(error).split())
        raise ValueError(message[:MOST_CHARACTERS] + "..." * (len(message) > MOST_CHARACTERS)) from error


def make_labels(
    task: AcesTask | TimeToEventTask, shards: Sequence[Path], track: Callable[[Iterable], Iterable] = iter
) -> Made:
    """Makes the labels of a task from shards of MEDS events, no two of which share a subject.

    Holds one shard and the labels in memory. `track` wraps the shards to show progress, as `tqdm.tqdm` does.

    Returns:
      The labels of all shards, sorted, and the counts; there may be no labels.
    """
    visits_named = isinstance(task, TimeToEventTask) and any(_read(shard)["visit_name"].count() for shard in shards)
    parts = []
    for shard in track(shards):
        if isinstance(task, TimeToEventTask):
            parts.append(label_time_to_event(_read(shard), task, visits_named))
        else:
            parts.append(label_aces(shard, read_shard(shard, task.columns), task))
    labels = pl.concat([part.labels for part in parts]).sort("subject_id", "prediction_time")
    totals = [collections.Counter() for _ in parts[0][1:]]
    for part in parts:
        for total, part_counts in zip(totals, part[1:], strict=True):
            total.update(part_counts)  # keeps zeros, unlike +
    return Made(labels, *totals)


def _read(shard: Path) -> pl.DataFrame:
    """Reads a shard with `visit_name`; see `name_visits`."""
    return name_visits(read_shard(shard, visit_columns("auto")), "auto", shard)


def summarize(made: Made) -> list[str]:
    """Returns lines of counts: patients, index dates, dropped dates by reason, rows and outcomes."""
    counts, labels = made.counts, made.labels
    lines = [f"{counts['patients']:,} patients"]
    lines += [f"{counts['index dates']:,} index dates of {counts['patients with index dates']:,} patients"]
    lines += [f"  dropped: {number:,} {reason}" for reason, number in made.dropped.items() if number]
    details = [f"{number:,} {reason}" for reason, number in made.details.items() if number]
    lines += ["  fit no windows (one may fail several):"] * bool(details) + [f"    {line}" for line in details]
    lines += [f"  no event in the data is '{name}'" for name, number in made.matched.items() if not number]
    lines += [f"{labels.height:,} rows of {labels['subject_id'].n_unique():,} patients"]
    return lines + (count_outcomes(labels) if labels.height else [])


def count_outcomes(labels: pl.DataFrame) -> list[str]:
    """Returns lines of counts: rows and patients by outcome."""

    def line(chosen: pl.DataFrame, what: str) -> str:
        share = chosen.height / labels.height
        return f"  {chosen.height:,} {what} ({share:.1%}), of {chosen['subject_id'].n_unique():,} patients"

    if "boolean_value" in labels.columns:
        return [line(labels.filter("boolean_value"), "positive")]
    if labels.schema["event"] == pl.Boolean:
        lines = [line(labels.filter("event"), "events")]
        censored = labels.filter(~pl.col("event"))
    else:
        causes = labels["event"].drop_nulls().unique().sort()
        lines = [line(labels.filter(event=cause), f"events: {cause}") for cause in causes]
        censored = labels.filter(pl.col("event").is_null())
    median = (labels["event_time"] - labels["prediction_time"]).dt.total_days().median()
    return [*lines, line(censored, "censored"), f"  median days to the event or the end of follow-up: {median:,.0f}"]
