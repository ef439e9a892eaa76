"""Tables of patient embeddings with age, sex and labels."""

from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import dataset, histories
from behrt_jax.data.sexes import sexes
from behrt_jax.embeddings import snapshots
from behrt_jax.embeddings.patients import embed
from behrt_jax.labels.label_tables import read_label_table
from behrt_jax.training import workdir
from behrt_jax.training.recipe import has_prediction_token

CHUNK = 512  # patients embedded and written at once
WINDOWS = ("newest", "all")


def split_frames(
    found: workdir.LoadedRun, patients: dataset.Patients, split: str, at, lives, pooling: str, whole: bool
):
    """Yields for each chunk of a split's patients: a table of embeddings, its size, and exclusions by reason."""
    recipe = found.recipe
    rows = (recipe.data.row_length, has_prediction_token(recipe), whole)
    for start in range(0, len(patients), CHUNK):
        offsets = patients.offsets[start : start + CHUNK + 1]
        part, tokens = slice(start, start + CHUNK), slice(offsets[0], offsets[-1])
        chunk = dataset.gather(patients, part, np.diff(offsets), tokens)  # `take` would read all patients each time
        snapshot, left_out = snapshots.take_snapshot(chunk, at, lives, *rows)
        windows = snapshots.windows_of(recipe.data, snapshot.model_inputs, whole)
        size = recipe.evaluation.batch_size
        arguments = (recipe.data, found.model, found.params, snapshot.model_inputs, size, windows)
        pooled = (
            embed(*arguments, (pooling,), found.vocabulary)[pooling]
            if len(snapshot.model_inputs)
            else np.zeros((0, recipe.model.hidden_dim), np.float32)
        )
        sex = pl.Series(sexes(snapshot.histories, found.vocabulary.tokens).tolist(), dtype=pl.String)
        columns = {
            "subject_id": snapshot.model_inputs.subject_ids,
            "time": snapshot.times,
            "embedding": pl.Series(pooled, dtype=pl.Array(pl.Float32, pooled.shape[1])),
            "age": pl.Series(histories.ages_at(snapshot.histories, snapshot.times), dtype=pl.Float32).fill_nan(None),
            "sex": sex.replace("", None),
        }
        yield pl.DataFrame(columns).with_columns(split=pl.lit(split)), len(chunk), left_out


def read_outcomes(files: list[str]) -> list[pl.DataFrame]:
    """Reads label files as tables; names their value columns after the files.

    Raises:
      ValueError: a file cannot be read as labels, or two files have the same name.
    """
    names = [Path(file).stem for file in files]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"--labels: two files are named {', '.join(duplicates)}; columns are named by files; rename one"
        )
    tables = []
    for file, name in zip(files, names, strict=True):
        labels = read_label_table(Path(file))
        keys = ("subject_id", "prediction_time")
        if labels.kind == "survival":
            days = (pl.col("event_time") - pl.col("prediction_time")).dt.total_seconds() / 86_400
            columns = {f"{name}_days": days, f"{name}_event": pl.col("event")}
        elif labels.kind == "multiclass":
            columns = {name: pl.col("value").replace_strict(list(range(len(labels.names))), list(labels.names))}
        else:
            columns = {name: pl.col("value") > 0}
        tables.append(labels.rows.select(*keys, **columns))
    return tables


def add_outcomes(frame: pl.DataFrame, tables: list[pl.DataFrame]) -> pl.DataFrame:
    """Adds each table's values at the patient's latest prediction time up to the time of the embedding."""
    for table in tables:
        earlier = frame.select("subject_id", "time").join(table, on="subject_id")
        latest = earlier.filter(pl.col("prediction_time") <= pl.col("time")).sort("prediction_time")
        latest = latest.drop("time", "prediction_time").unique("subject_id", keep="last", maintain_order=True)
        frame = frame.join(latest, on="subject_id", how="left", maintain_order="left")
    return frame
