"""Cross-validation by patient: views of a MEDS data set that hold out each fold's patients once."""

from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import events
from behrt_jax.data.hashing import hash_fraction

FOLD_SALT, TUNING_SALT, TUNING_SHARE = 1, 2, 0.15


def write_view(data: Path, folder: Path, fold: int, folds: int) -> Path:
    """Writes a MEDS data set that links to the events of another and holds out a fold's patients.

    Args:
      data: the MEDS data set.
      folder: where to write the view, as its subfolder `data`.
      fold: number of the fold, from 0.
      folds: number of folds.
    """
    view = folder / "data"
    (view / "metadata").mkdir(parents=True, exist_ok=True)
    beside = data / "metadata"
    for target in (data / "data", *(beside.iterdir() if beside.is_dir() else ())):
        link = view / target.relative_to(data)
        if target != data / events.SPLITS_FILE and not link.exists():
            link.symlink_to(target.resolve())
    shards = [events.read_shard(shard)["subject_id"].unique() for shard in events.find_shards(str(data))]
    ids = np.sort(pl.concat(shards).to_numpy())
    is_tuning = hash_fraction(TUNING_SALT, ids) < TUNING_SHARE
    names = np.where(fold_of(ids, folds) == fold, "held_out", np.where(is_tuning, "tuning", "train"))
    pl.DataFrame({"subject_id": ids, "split": names}).write_parquet(view / events.SPLITS_FILE)
    return view


def fold_of(subject_ids: np.ndarray, folds: int) -> np.ndarray:
    """Returns the fold of each subject, determined by its id alone."""
    return np.floor(folds * hash_fraction(FOLD_SALT, subject_ids)).astype(int)
