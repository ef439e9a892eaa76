"""Cross-validation by patient or by group: views of a MEDS data set that hold out each fold's patients once."""

from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import events, files
from behrt_jax.data.hashing import hash_fraction

FOLD_SALT, TUNING_SALT, TUNING_SHARE = 1, 2, 0.15


def write_view(data: Path, folder: Path, fold: int, folds: int, groups: Path | None = None) -> Path:
    """Writes a MEDS data set that links to the events of another and holds out a fold's patients.

    Args:
      data: the MEDS data set.
      folder: where to write the view, as its subfolder `data`.
      fold: number of the fold, from 0.
      folds: number of folds.
      groups: a table of `subject_id` and `group`, such as a hospital. No group is split between folds.

    Raises:
      ValueError: the table of groups does not fit the data or the number of folds.
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
    fold_numbers = fold_of(ids, folds) if groups is None else _folds_of_groups(ids, groups, folds)
    names = np.where(fold_numbers == fold, "held_out", np.where(is_tuning, "tuning", "train"))
    splits, file = pl.DataFrame({"subject_id": ids, "split": names}), view / events.SPLITS_FILE
    if not file.exists() or not pl.read_parquet(file).equals(splits):  # a newer file would be prepared anew
        splits.write_parquet(file)
    return view


def fold_of(subject_ids: np.ndarray, folds: int) -> np.ndarray:
    """Returns the fold of each subject, determined by its id alone."""
    return np.floor(folds * hash_fraction(FOLD_SALT, subject_ids)).astype(int)


def _folds_of_groups(ids: np.ndarray, file: Path, folds: int) -> np.ndarray:
    """Returns the fold of each subject: groups, from the largest, go to the fold with the fewest subjects so far."""
    table = files.read_table(file)
    if missing := {"subject_id", "group"} - set(table.columns):
        raise ValueError(f"{file}: column '{min(missing)}' is missing; expected subject_id and group")
    table = table.select(pl.col("subject_id").cast(pl.Int64), pl.col("group").cast(pl.String)).unique()
    found = pl.DataFrame({"subject_id": ids}).join(table.drop_nulls(), on="subject_id", how="left")
    without, repeated = found["group"].null_count(), found.height - len(ids)
    if without or repeated:
        raise ValueError(
            f"{file}: {without:,} of {len(ids):,} patients have no group, {repeated:,} rows give a patient one more; "
            "expected one group for each patient of the data"
        )
    sizes = found.group_by("group").len().sort("len", "group", descending=[True, False])
    if sizes.height < folds:
        raise ValueError(f"{file}: {sizes.height} groups; expected one or more for each of {folds} folds")
    totals, fold_of_group = np.zeros(folds, int), {}
    for group, size in sizes.iter_rows():
        fold_of_group[group] = int(totals.argmin())
        totals[fold_of_group[group]] += size
    return found.sort("subject_id")["group"].replace_strict(fold_of_group, return_dtype=pl.Int64).to_numpy()
