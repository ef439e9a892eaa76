"""Folds of groups, such as hospitals, each held out as a whole."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from behrt_jax.data import events, folds
from tests.data.handmade import SUBJECTS, assert_clear

SITES = ["A", "A", "A", "B", "B", "C", "C", "D", "E", "E"]


def write_groups(folder: Path, subjects=SUBJECTS, sites=SITES) -> Path:
    file = folder / "sites.parquet"
    pl.DataFrame({"subject_id": subjects, "group": sites}).write_parquet(file)
    return file


def held_out(view: Path) -> list[int]:
    return pl.read_parquet(view / events.SPLITS_FILE).filter(split="held_out")["subject_id"].to_list()


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_group_is_on_one_side_and_folds_are_of_like_size(cohort, tmp_path, order):
    groups = write_groups(tmp_path, SUBJECTS[order], SITES[order])
    found = [held_out(folds.write_view(cohort.root, tmp_path / str(fold), fold, 3, groups)) for fold in range(3)]
    site_of = dict(zip(SUBJECTS, SITES, strict=True))
    # By hand: A (3) to fold 0, B, C and E (2) to folds 1, 2 and 1, D (1) to fold 2.
    assert [sorted({site_of[subject] for subject in each}) for each in found] == [["A"], ["B", "E"], ["C", "D"]]
    assert sorted(sum(found, [])) == sorted(SUBJECTS)


def test_each_fold_has_train_and_tuning_patients_of_other_groups(bundled_config, tmp_path):
    data = Path(bundled_config.path)
    ids = pl.read_parquet(data / events.SPLITS_FILE)["subject_id"].to_numpy()
    groups = write_groups(tmp_path, ids, (ids % 40).astype(str))
    splits = pl.read_parquet(folds.write_view(data, tmp_path, 1, 5, groups) / events.SPLITS_FILE)
    sizes = dict(splits["split"].value_counts().iter_rows())
    assert abs(sizes["held_out"] - len(ids) / 5) < 30 and sizes["tuning"] > 80
    sites = {split: set(part["subject_id"].to_numpy() % 40) for (split,), part in splits.group_by("split")}
    assert not sites["held_out"] & (sites["train"] | sites["tuning"])


@pytest.mark.parametrize(
    ("subjects", "sites", "num_folds", "message"),
    [
        (SUBJECTS[:9], SITES[:9], 3, "1 of 10 patients have no group"),
        ((*SUBJECTS, SUBJECTS[0]), [*SITES, "B"], 3, "1 rows give a patient one more"),
        (SUBJECTS, SITES, 6, "5 groups; expected one or more for each of 6 folds"),
    ],
)
def test_groups_that_do_not_fit_are_named(cohort, tmp_path, subjects, sites, num_folds, message):
    file = write_groups(tmp_path, subjects, sites)
    with pytest.raises(ValueError) as error:
        folds.write_view(cohort.root, tmp_path / "view", 0, num_folds, file)
    assert_clear(error, file, message)


def test_groups_without_a_column_are_named(cohort, tmp_path):
    file = tmp_path / "sites.parquet"
    pl.DataFrame({"subject_id": np.array(SUBJECTS), "hospital": SITES}).write_parquet(file)
    with pytest.raises(ValueError, match="column 'group' is missing"):
        folds.write_view(cohort.root, tmp_path / "view", 0, 3, file)
