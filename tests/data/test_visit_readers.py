"""Preparation, with and without events that name no visit, and labels read visits by one rule."""

import datetime

import polars as pl
import pytest

from behrt_jax.data import dataset, events
from behrt_jax.data.prepare import prepare
from behrt_jax.labels import tasks, time_to_event
from behrt_jax.labels.follow_up import FollowUp
from tests.data.handmade import SUBJECTS, assert_clear

TASK = time_to_event.TimeToEventTask(
    description="",
    dates=(),
    codes=(),
    min_visits=0,
    min_age=0,
    none_before=(),
    events={"b": ("SECRET//B",)},
    follow_up=FollowUp(datetime.datetime(2010, 1, 1), False),
)
NONE = {
    "null": pl.lit(None, pl.Int64),
    "no type": pl.lit(None),
    "nan": pl.lit(float("nan")),
    "empty text": pl.lit(""),
    "text": pl.lit("None"),
    "of static rows": pl.when(pl.col("time").is_null()).then(1),
}
FILLED = pl.col("time").dt.year()  # both visits of each patient of the cohort are in 2001: one visit


def with_columns(cohort, columns: dict[str, pl.Expr], number: int | None = None):
    """Adds columns to the shards of the cohort, or to one of them."""
    for shard in events.find_shards(cohort.root)[slice(number, None if number is None else number + 1)]:
        pl.read_parquet(shard).with_columns(**columns).write_parquet(shard)
    return cohort


def read_by_all(cohort) -> list:
    """What each reader makes of a data set: visits of each token, index dates."""
    found = []
    for left_out in ("group_by_day", "leave_out"):
        prepared = prepare(cohort.config(events_without_visit=left_out))
        found += [(dataset.read(prepared.folder, split).visits.tolist()) for split in events.SPLITS]
        found.append({name: prepared.report[name] for name in ("visits", "events_without_visit")})
    made = tasks.make_labels(TASK, events.find_shards(cohort.root))
    return [*found, made.counts["index dates"]]


@pytest.mark.parametrize("name", NONE)
def test_columns_that_name_no_visit_anywhere_are_as_if_not_there(cohort, name):
    expected = read_by_all(cohort)
    assert expected[-1] == 3 * 10  # birth, and two visits
    assert read_by_all(with_columns(cohort, {"visit_id": NONE[name], "hadm_id": NONE[name]})) == expected
    assert prepare(cohort.config()).report["empty_visit_columns"] == 2


@pytest.mark.parametrize("name", NONE)
def test_a_column_that_names_visits_wins_over_an_empty_one(cohort, name):
    expected = read_by_all(with_columns(cohort, {"hadm_id": FILLED}))
    assert expected[-1] == 2 * 10  # the birth's year, and the one of both visits
    assert read_by_all(with_columns(cohort, {"visit_id": NONE[name]})) == expected
    assert prepare(cohort.config()).report["empty_visit_columns"] == 0


@pytest.mark.parametrize("name", ["nan", "no type", "no column"])
def test_a_shard_without_visits_among_others_names_none(cohort, name):
    """Its patients are not read by days where the others have visits."""
    with_columns(cohort, {"hadm_id": FILLED}, 0)
    if name != "no column":
        with_columns(cohort, {"hadm_id": NONE[name]}, 1)
    cohort.splits({subject: (*events.SPLITS, "train")[min(i, 3)] for i, subject in enumerate(SUBJECTS)})
    *_, left_out, index_dates = read_by_all(cohort)
    assert left_out == {"visits": 5, "events_without_visit": 5 * 4} and index_dates == 2 * 5


def test_a_named_column_without_any_visit_is_an_error(cohort):
    with_columns(cohort, {"ward": NONE["nan"]})
    with pytest.raises(ValueError) as error:
        prepare(cohort.config(visits="ward"))
    assert_clear(error, "data.visits: column 'ward' names no visit in any row of", cohort.root, "name another column")


def test_a_visit_column_of_lists_is_an_error_for_all_readers(cohort):
    with_columns(cohort, {"visit_id": pl.concat_list(FILLED)}, 1)
    for read in (lambda: prepare(cohort.config()), lambda: tasks.make_labels(TASK, events.find_shards(cohort.root))):
        with pytest.raises(ValueError) as error:
            read()
        assert_clear(error, "1.parquet: column 'visit_id' is List(Int32)", "convert it")
