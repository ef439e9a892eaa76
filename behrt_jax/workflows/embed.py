"""Embeddings of the patients of a data set, as a table."""

import collections
import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from tqdm import tqdm

from behrt_jax.data import dataset, events, prepare
from behrt_jax.embeddings import snapshots
from behrt_jax.exploration.export import add_outcomes, read_outcomes, split_frames
from behrt_jax.labels import follow_up
from behrt_jax.training import workdir as workdirs

logger = logging.getLogger(__name__)


def embed(
    workdir: str | Path,
    output: str | Path,
    *,
    data: str | None = None,
    at: str = snapshots.LAST,
    pooling: str = "mean",
    windows: str = "newest",
    labels: Sequence[str] = (),
) -> Path:
    """Writes one embedding per patient, with age, sex, split and labels, as a Parquet file.

    Args:
      workdir: written by `pretrain` or `finetune`.
      output: the file to write.
      data: a MEDS data set; the run's own if None.
      at: a date, to read only events strictly before it; or `last`, to read all events.
      pooling: how token states are pooled into the patient embedding.
      windows: `newest`, the tokens that fit in a row, or `all`, the whole history.
      labels: files of labels, whose values become columns.

    Raises:
      ValueError: something cannot be read, or no patient was alive with an event before the date.
    """
    output, date, tables, run = (
        Path(output),
        snapshots.read_date(at),
        read_outcomes([*labels]),
        workdirs.load(workdir),
    )
    path = data or run.recipe.data.path
    splits = events.SPLITS if data is None else ()
    prepared = prepare.prepare(dataclasses.replace(run.recipe.data, path=path), run.vocabulary, splits)
    prepare.log_coverage(prepared.report, "all")
    lives = follow_up.read_lives(path)
    left_out, num_written, label_counts = collections.Counter(), 0, collections.Counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    number = sum(prepared.report[f"patients/{split}"] for split in events.SPLITS)
    with tempfile.TemporaryDirectory(dir=output.parent) as parts, tqdm(total=number, unit="patient") as bar:
        for split in (split for split in events.SPLITS if prepared.report[f"patients/{split}"]):
            patients = dataset.read(prepared.folder, split)
            for frame, size, exclusions in split_frames(run, patients, split, date, lives, pooling, windows == "all"):
                frame = add_outcomes(frame, tables)
                frame.write_parquet(Path(parts) / f"{num_written:012d}-{split}.parquet")
                label_counts.update({name: frame[name].count() for name in frame.columns[6:]})
                left_out.update(exclusions)
                num_written += frame.height
                bar.update(size)
        if not num_written:
            raise ValueError(f"--at={at}: no patient of {path} was alive with an event before")
        scratch = Path(parts) / "all"
        pl.scan_parquet(Path(parts) / "*.parquet").sink_parquet(scratch)
        scratch.replace(output)
    for reason, num_patients in left_out.items():
        logger.info(f"left out: {num_patients:,} patients {reason}")
    for name, values in label_counts.items():
        logger.info(f"{name}: of {values:,} patients, as of the latest prediction time up to the embedding's")
    logger.info(f"written: {output}, {num_written:,} patients, {run.recipe.model.hidden_dim} numbers each")
    return output
