"""Writes one embedding a patient, with age, sex, split and labels, as a Parquet file: docs/embeddings.md.

python -m experiments.embed --workdir=DIR --output=FILE [--data=DIR] [--at=last|DATE] [--pooling=mean]
  [--windows=newest|all] [--labels=FILE,FILE]

With a date, what happens on it or later is not read, and patients not yet born or already dead are left out.
"""

import collections
import tempfile
from pathlib import Path

import polars as pl
from absl import flags
from tqdm import tqdm

from behrt_jax.data import dataset, events
from behrt_jax.data import prepare as data_prepare
from behrt_jax.data.config import DataConfig
from behrt_jax.data.prepare import prepare
from behrt_jax.embeddings import snapshots
from behrt_jax.embeddings.patients import WEIGHTED
from behrt_jax.exploration.export import WINDOWS, add_outcomes, read_outcomes, split_frames
from behrt_jax.labels import follow_up
from behrt_jax.models.config import CHOICES
from behrt_jax.training import workdir
from experiments import _cli


def main() -> None:
    """Runs the command."""
    folder, output, at = Path(FLAGS.workdir), Path(FLAGS.output), snapshots.read_date(FLAGS.at)
    tables = read_outcomes(FLAGS.labels)
    found = workdir.load(folder)
    with found.config.unlocked():
        found.config.data.path = FLAGS.data or found.config.data.path
    elsewhere = FLAGS.data is not None
    needed = () if elsewhere else events.SPLITS
    prepared = prepare(DataConfig(**found.config.data), found.vocabulary, needed, print)
    print(data_prepare.describe_coverage(prepared.report, "all"))
    lives = follow_up.read_lives(found.config.data.path)
    left_out, written, outcomes = collections.Counter(), 0, collections.Counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    number = sum(prepared.report[f"patients/{split}"] for split in events.SPLITS)
    with tempfile.TemporaryDirectory(dir=output.parent) as parts, tqdm(total=number, unit="patient") as bar:
        for split in events.SPLITS:
            if not prepared.report[f"patients/{split}"]:
                continue
            patients = dataset.read(prepared.folder, split)
            given = (found, patients, split, at, lives, FLAGS.pooling, FLAGS.windows == "all")
            for frame, size, without in split_frames(*given):
                frame = add_outcomes(frame, tables)
                frame.write_parquet(Path(parts) / f"{written:012d}-{split}.parquet")
                outcomes.update({name: frame[name].count() for name in frame.columns[6:]})
                left_out.update(without)
                written += frame.height
                bar.update(size)
        if not written:
            raise ValueError(f"--at={FLAGS.at}: no patient of {found.config.data.path} was alive with an event before")
        scratch = Path(parts) / "all"
        pl.scan_parquet(Path(parts) / "*.parquet").sink_parquet(scratch)
        scratch.replace(output)
    for reason, patients_out in left_out.items():
        print(f"left out: {patients_out:,} patients {reason}")
    for name, values in outcomes.items():
        print(f"{name}: of {values:,} patients, as of the latest prediction time up to the embedding's")
    print(f"written: {output}, {written:,} patients, {found.config.model.hidden_dim} numbers each")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain or experiments.finetune wrote.", required=True)
    flags.DEFINE_string("output", None, "The Parquet file to write.", required=True)
    flags.DEFINE_string("data", None, "A MEDS data set; that of the run if not given.")
    flags.DEFINE_string("at", snapshots.LAST, "Only what came strictly before this date is read; or last: all of it.")
    flags.DEFINE_enum("pooling", "mean", [*CHOICES["pooling"], *WEIGHTED], "From the states of tokens to the patient.")
    flags.DEFINE_enum("windows", "newest", list(WINDOWS), "The newest tokens that a row holds, or the whole history.")
    flags.DEFINE_list("labels", [], "Files of labels, whose values become columns.")
    _cli.run(main)
