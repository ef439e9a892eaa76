"""Samples labelled patients, and their labels, by seed or by hash."""

import numpy as np
import polars as pl

from behrt_jax.data import dataset
from behrt_jax.data.hashing import hash_integers
from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.labels.labels import Labels


def draw_rows(labels: Labels, size: int, *seeds: int, where: str = "train") -> np.ndarray:
    """Samples the rows of `size` patients (all if there are no more) so that each outcome occurs at least twice.

    Args:
      labels: binary, or times to an event.
      size: number of patients.
      seeds: of the random draw.
      where: name of the labels, for the error.

    Raises:
      ValueError: 1,000 draws gave no such patients.
    """
    patients = np.unique(labels.subject_ids)
    if size >= len(patients):
        return np.arange(len(labels))
    outcome = labels.events > 0 if labels.kind == "survival" else labels.values[:, 0] > 0
    for attempt in range(1000):
        sample = np.random.default_rng([*seeds, attempt]).choice(patients, size, replace=False)
        rows = np.flatnonzero(np.isin(labels.subject_ids, sample))
        if 1 < outcome[rows].sum() < len(rows) - 1:
            return rows
    raise ValueError(f"--sizes: no {size} patients of {where} with two of each outcome were found; name larger sizes")


def draw_splits(splits: dict[str, LabeledHistories], size: int, *seeds: int) -> dict[str, LabeledHistories]:
    """Samples the labelled histories of `size` patients of train, and of as many of tuning."""
    parts = {name: splits[name] for name in ("train", "tuning")}
    return {name: take(part, draw_rows(part.labels, size, *seeds, where=name)) for name, part in parts.items()}


def take(found: LabeledHistories, rows: np.ndarray) -> LabeledHistories:
    """Selects labelled histories by (m,) ascending indices."""
    chosen = np.isin(np.arange(len(found.labels)), rows)
    histories, model_rows = (dataset.take(each, chosen) for each in (found.histories, found.model_inputs))
    return LabeledHistories(found.labels.take(chosen), histories, model_rows, found.covariates[chosen])


def cap(labels: Labels, most: int) -> np.ndarray:
    """Returns the rows of at most `most` labels per patient and outcome, chosen by a hash of their time."""
    rank = hash_integers(labels.subject_ids, labels.prediction_times.astype(np.int64))
    rows = {"subject": labels.subject_ids, "outcome": labels.outcomes()[:, 0], "rank": rank, "row": range(len(rank))}
    return pl.DataFrame(rows).sort("rank").group_by("subject", "outcome").head(most)["row"].sort().to_numpy()
