"""Writes one embedding a patient, with age, sex, split and labels, as a Parquet file: docs/embeddings.md.

python -m experiments.embed --workdir=DIR --output=FILE [--data=DIR] [--at=last|DATE] [--pooling=mean]
  [--windows=newest|all] [--labels=FILE,FILE]

With a date, what happens on it or later is not read, and patients not yet born or already dead are left out.
"""

import collections
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from absl import flags
from tqdm import tqdm

from behrt_jax import workdir
from behrt_jax.data import at_times, dataset, events
from behrt_jax.data.config import DataConfig
from behrt_jax.data.label_tables import read_label_table
from behrt_jax.data.prepare import prepare
from behrt_jax.data.sexes import sexes
from behrt_jax.models.config import CHOICES
from experiments import command, labelled, moments, outcome_data
from experiments.embeddings import WEIGHTED, embed

CHUNK = 512  # patients embedded and written at once
WINDOWS = ("newest", "all")


def split_frames(found: workdir.Loaded, patients: dataset.Patients, split: str, at, lives, pooling: str, whole: bool):
    """Yields tables of embeddings of a split, a chunk of patients each, and how many were left out and why."""
    config, tokens = found.config, found.vocabulary.tokens
    places = np.arange(len(patients))
    for start in range(0, len(patients), CHUNK):
        chunk = dataset.take(patients, (places >= start) & (places < start + CHUNK))
        moment, left_out = moments.find_moment(config, chunk, at, lives, whole)
        windows = moments.windows_of(config, moment.rows, whole)
        given = (config, found.model, found.params, moment.rows, windows, (pooling,), found.vocabulary)
        pooled = embed(*given)[pooling] if len(moment.rows) else np.zeros((0, config.model.hidden_dim), np.float32)
        sex = pl.Series(sexes(moment.histories, tokens).tolist(), dtype=pl.String)
        columns = {
            "subject_id": moment.rows.subject_ids,
            "time": moment.times,
            "embedding": pl.Series(pooled, dtype=pl.Array(pl.Float32, pooled.shape[1])),
            "age": pl.Series(at_times.ages_at(moment.histories, moment.times), dtype=pl.Float32).fill_nan(None),
            "sex": sex.replace("", None),
        }
        yield pl.DataFrame(columns).with_columns(split=pl.lit(split)), len(chunk), left_out


def read_outcomes(files: list[str]) -> list[pl.DataFrame]:
    """Reads files of labels, each with its values under the file's name.

    Raises:
      ValueError: a file cannot be read as labels, or two have one name.
    """
    names = [Path(file).stem for file in files]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"--labels: two files are named {', '.join(twice)}; columns are named by files; rename one")
    tables = []
    for file, name in zip(files, names, strict=True):
        read = read_label_table(Path(file), print)
        keys = ("subject_id", "prediction_time")
        if read.kind == "survival":
            days = (pl.col("event_time") - pl.col("prediction_time")).dt.total_seconds() / 86_400
            columns = {f"{name}_days": days, f"{name}_event": pl.col("event")}
        elif read.kind == "multiclass":
            columns = {name: pl.col("value").replace_strict(list(range(len(read.names))), list(read.names))}
        else:
            columns = {name: pl.col("value") > 0}
        tables.append(read.rows.select(*keys, **columns))
    return tables


def add_outcomes(frame: pl.DataFrame, tables: list[pl.DataFrame]) -> pl.DataFrame:
    """Adds of each file what it says of a patient at the latest prediction time up to that of the embedding."""
    for table in tables:
        earlier = frame.select("subject_id", "time").join(table, on="subject_id")
        latest = earlier.filter(pl.col("prediction_time") <= pl.col("time")).sort("prediction_time")
        latest = latest.drop("time", "prediction_time").unique("subject_id", keep="last", maintain_order=True)
        frame = frame.join(latest, on="subject_id", how="left", maintain_order="left")
    return frame


def main() -> None:
    """Runs the command."""
    folder, output, at = Path(FLAGS.workdir), Path(FLAGS.output), moments.read_date(FLAGS.at)
    tables = read_outcomes(FLAGS.labels)
    found = workdir.load(folder)
    with found.config.unlocked():
        found.config.data.path = FLAGS.data or found.config.data.path
    elsewhere = FLAGS.data is not None
    needed = () if elsewhere else events.SPLITS
    prepared = prepare(DataConfig(**found.config.data), found.vocabulary, needed, print)
    print(labelled.describe_coverage(prepared.report, "all"))
    lives = outcome_data.read_lives(found.config.data.path)
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
    flags.DEFINE_string("at", moments.LAST, "Only what came strictly before this date is read; or last: all of it.")
    flags.DEFINE_enum("pooling", "mean", [*CHOICES["pooling"], *WEIGHTED], "From the states of tokens to the patient.")
    flags.DEFINE_enum("windows", "newest", list(WINDOWS), "The newest tokens that a row holds, or the whole history.")
    flags.DEFINE_list("labels", [], "Files of labels, whose values become columns.")
    command.run(main)
