"""Makes labels of a task, shard by shard, and prints the counts at each step; docs/labels.md has formats and tasks.

python -m experiments.labels --task=configs/tasks/death.yaml --data=DIR --output=FILE.parquet
"""

import os
import tempfile
from pathlib import Path

import polars as pl
import tqdm
from absl import flags

from behrt_jax.data.events import find_shards
from behrt_jax.data.follow_up import Made
from behrt_jax.data.tasks import load_task, make_labels
from experiments import command


def summary(made: Made) -> list[str]:
    """Returns lines of counts: patients, index dates, what was dropped and why, rows and events."""
    counts, labels = made.counts, made.labels
    lines = [f"{counts['patients']:,} patients"]
    lines += [f"{counts['index dates']:,} index dates of {counts['patients with index dates']:,} patients"]
    lines += [f"  dropped: {number:,} {reason}" for reason, number in made.dropped.items() if number]
    failed = [f"{number:,} {reason}" for reason, number in made.details.items() if number]
    lines += ["  fit no windows (one may fail several):"] * bool(failed) + [f"    {line}" for line in failed]
    lines += [f"  no event in the data is '{name}'" for name, number in made.matched.items() if not number]
    lines += [f"{labels.height:,} rows of {labels['subject_id'].n_unique():,} patients"]
    return lines + (outcomes(labels) if labels.height else [])


def outcomes(labels: pl.DataFrame) -> list[str]:
    """Returns lines of counts of the outcomes, with the patients they belong to."""

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
    days = (labels["event_time"] - labels["prediction_time"]).dt.total_days().median()
    return [*lines, line(censored, "censored"), f"  median days to the event or the end of follow-up: {days:,.0f}"]


def write(labels: pl.DataFrame, output: Path) -> None:
    """Writes the labels in one move."""
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{output.name}-", dir=output.parent)
    os.close(handle)
    try:
        labels.write_parquet(scratch)
        Path(scratch).chmod(0o644)
        Path(scratch).replace(output)
    finally:
        Path(scratch).unlink(missing_ok=True)


def label(task_file: str, data: str, output: Path) -> None:
    """Makes, counts and writes labels; a ValueError if there are none, and nothing is written then."""
    task = load_task(task_file)
    if output.suffix != ".parquet" or output.is_dir():
        raise ValueError(f"--output={output}: expected a file that ends in .parquet")
    made = make_labels(task, find_shards(data), lambda shards: tqdm.tqdm(shards, unit=" shards", desc="labelling"))
    print("\n".join([f"{task_file}: {task.description}", *summary(made)]))
    if not made.labels.height:
        raise ValueError(
            f"{task_file}: no labels come of {data} (the counts above say where they are lost); check that the task's "
            "codes are those of the data"
        )
    write(made.labels, output)
    print(f"wrote {output}")


def main() -> None:
    """Runs the command."""
    label(FLAGS.task, FLAGS.data, Path(FLAGS.output))


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("task", None, "A task file: of ACES, or with time_to_event.", required=True)
    flags.DEFINE_string("data", None, "A MEDS data set.", required=True)
    flags.DEFINE_string("output", None, "A Parquet file to write.", required=True)
    command.run(main)
