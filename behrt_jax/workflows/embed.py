"""Embeddings of the patients of a data set, as a table."""

import collections
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
from tqdm import tqdm

from behrt_jax.data import dataset, events, prepare
from behrt_jax.data.config import DataConfig
from behrt_jax.embeddings import snapshots
from behrt_jax.exploration.export import add_outcomes, read_outcomes, split_frames
from behrt_jax.labels import follow_up
from behrt_jax.training import workdir as workdirs


def embed(
    workdir: str | Path,
    output: str | Path,
    *,
    data: str | None = None,
    at: str = snapshots.LAST,
    pooling: str = "mean",
    windows: str = "newest",
    labels: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Path:
    """Writes one embedding a patient, with age, sex, split and labels, as a Parquet file.

    Args:
      workdir: what `pretrain` or `finetune` wrote.
      output: the file to write.
      data: a MEDS data set; that of the run if None.
      at: a date, so that only what came strictly before is read; or `last`: all of it.
      pooling: from the states of tokens to the patient.
      windows: `newest`, the tokens that a row holds, or `all` of the history.
      labels: files of labels, whose values become columns.
      say: takes lines on what is going on.

    Raises:
      ValueError: something cannot be read, or no patient was alive with an event before the date.
    """
    output, date, tables, found = (
        Path(output),
        snapshots.read_date(at),
        read_outcomes([*labels]),
        workdirs.load(workdir),
    )
    with found.config.unlocked():
        found.config.data.path = data or found.config.data.path
    needed = events.SPLITS if data is None else ()
    prepared = prepare.prepare(DataConfig(**found.config.data), found.vocabulary, needed, say)
    say(prepare.describe_coverage(prepared.report, "all"))
    lives = follow_up.read_lives(found.config.data.path)
    left_out, written, known = collections.Counter(), 0, collections.Counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    number = sum(prepared.report[f"patients/{split}"] for split in events.SPLITS)
    with tempfile.TemporaryDirectory(dir=output.parent) as parts, tqdm(total=number, unit="patient") as bar:
        for split in (split for split in events.SPLITS if prepared.report[f"patients/{split}"]):
            patients = dataset.read(prepared.folder, split)
            for frame, size, without in split_frames(found, patients, split, date, lives, pooling, windows == "all"):
                frame = add_outcomes(frame, tables)
                frame.write_parquet(Path(parts) / f"{written:012d}-{split}.parquet")
                known.update({name: frame[name].count() for name in frame.columns[6:]})
                left_out.update(without)
                written += frame.height
                bar.update(size)
        if not written:
            raise ValueError(f"--at={at}: no patient of {found.config.data.path} was alive with an event before")
        scratch = Path(parts) / "all"
        pl.scan_parquet(Path(parts) / "*.parquet").sink_parquet(scratch)
        scratch.replace(output)
    for reason, patients_out in left_out.items():
        say(f"left out: {patients_out:,} patients {reason}")
    for name, values in known.items():
        say(f"{name}: of {values:,} patients, as of the latest prediction time up to the embedding's")
    say(f"written: {output}, {written:,} patients, {found.config.model.hidden_dim} numbers each")
    return output
