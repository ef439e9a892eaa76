"""Makes the labels of a task, shard by shard, and prints the counts at each step; docs/labels.md has formats and tasks.

python -m experiments.labels --task=configs/tasks/death.yaml --data=DIR --output=FILE.parquet
"""

from pathlib import Path

import tqdm
from absl import flags

from behrt_jax.data.events import find_shards
from behrt_jax.labels.label_files import write_labels
from behrt_jax.labels.tasks import load_task, make_labels, summarize
from experiments import _cli


def label(task_file: str, data: str, output: Path) -> None:
    """Makes, counts and writes labels; if there are none, raises a ValueError and writes nothing."""
    task = load_task(task_file)
    if output.suffix != ".parquet" or output.is_dir():
        raise ValueError(f"--output={output}: expected a file that ends in .parquet")
    result = make_labels(task, find_shards(data), lambda shards: tqdm.tqdm(shards, unit=" shards", desc="labelling"))
    print("\n".join([f"{task_file}: {task.description}", *summarize(result)]))
    if not result.labels.height:
        raise ValueError(
            f"{task_file}: no labels come of {data} (the counts above say where they are lost); check that the task's "
            "codes are those of the data"
        )
    write_labels(result.labels, output)
    print(f"wrote {output}")


def main() -> None:
    """Runs the command."""
    label(FLAGS.task, FLAGS.data, Path(FLAGS.output))


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("task", None, "A task file: of ACES, or with time_to_event.", required=True)
    flags.DEFINE_string("data", None, "A MEDS data set.", required=True)
    flags.DEFINE_string("output", None, "A Parquet file to write.", required=True)
    _cli.run(main)
