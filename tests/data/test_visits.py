import numpy as np
import polars as pl
import pytest

from behrt_jax.data.visits import assign_visits, number_visits, visit_column
from tests.data.handmade import table

MEDS = ["subject_id", "time", "code", "numeric_value"]


def grouped(events: pl.DataFrame, visits: str = "auto", gap_hours: float = 24.0) -> list[list[str]]:
    """The codes of each visit, in order."""
    found = assign_visits(events, visits, gap_hours)
    return found.group_by("subject_id", "visit", maintain_order=True).agg("code")["code"].to_list()


def test_auto_takes_the_first_known_column():
    assert visit_column([*MEDS, "hadm_id", "visit_id"], "auto") == "visit_id"
    assert visit_column([*MEDS, "hadm_id"], "auto") == "hadm_id"
    assert visit_column([*MEDS, "ward"], "auto") is None


def test_a_named_column_day_and_gap():
    assert visit_column([*MEDS, "ward", "visit_id"], "ward") == "ward"
    assert visit_column([*MEDS, "visit_id"], "day") is None
    assert visit_column([*MEDS, "visit_id"], "gap") is None


def test_a_column_that_is_not_there():
    with pytest.raises(ValueError) as error:
        visit_column([*MEDS, "visit_id"], "ward", "some/shard.parquet")
    message = str(error.value)
    assert "data.visits: column 'ward' is not in some/shard.parquet" in message
    assert ", ".join([*MEDS, "visit_id"]) in message and "use auto, day or gap" in message


def test_visits_by_column_are_contiguous_though_they_interleave():
    rows = [(1, 0, "a", None, 20), (1, 1, "b", None, 10), (1, 2, "c", None, 20), (1, 3, "d", None, 10)]
    assert grouped(table(rows, "visit_id")) == [["a", "c"], ["b", "d"]]
    numbered = number_visits(assign_visits(table(rows, "visit_id"), "visit_id", 24.0))
    assert numbered["code"].to_list() == ["a", "c", "b", "d"]
    assert numbered["visit"].to_list() == [0, 0, 1, 1]


def test_rows_without_a_visit_id_are_grouped_by_day():
    rows = [
        (1, 0.1, "a", None, None),
        (1, 0.2, "b", None, 5),
        (1, 0.9, "c", None, None),
        (1, 1.1, "d", None, None),
        (1, 9.0, "e", None, 5),
        (2, 1.1, "f", None, None),
    ]
    assert grouped(table(rows, "hadm_id")) == [["a", "c"], ["b", "e"], ["d"], ["f"]]


def test_one_id_in_two_subjects_is_two_visits():
    rows = [(1, 0, "a", None, 5), (2, 0, "b", None, 5)]
    assert grouped(table(rows, "visit_id")) == [["a"], ["b"]]


def test_auto_falls_back_to_days():
    rows = [(1, 0.1, "a"), (1, 0.9, "b"), (1, 1.0, "c"), (2, 1.0, "d")]
    assert grouped(table(rows), "auto") == grouped(table(rows), "day") == [["a", "b"], ["c"], ["d"]]


def test_day_ignores_the_visit_column():
    rows = [(1, 0.1, "a", None, 1), (1, 0.9, "b", None, 2)]
    assert grouped(table(rows, "visit_id"), "day") == [["a", "b"]]


def test_gaps():
    rows = [(1, 0, "a"), (1, 0.5, "b"), (1, 1.0, "c"), (1, 1.505, "d"), (2, 1.6, "e"), (2, 9, "f")]
    assert grouped(table(rows), "gap", 12.0) == [["a", "b", "c"], ["d"], ["e"], ["f"]]
    assert grouped(table(rows), "gap", 13.0) == [["a", "b", "c", "d"], ["e"], ["f"]]


def test_static_rows_are_left_out():
    assert grouped(table([(1, None, "s"), (1, 0, "a")])) == [["a"]]


def test_numbers_have_no_holes_after_a_filter():
    rng = np.random.default_rng(0)
    rows = sorted((int(s), float(d), f"c{c}") for s, d, c in rng.integers(0, (20, 40, 9), (2000, 3)))
    kept = assign_visits(table(rows), "day", 24.0).filter(~pl.col("code").is_in(["c1", "c2", "c3"]))
    found = number_visits(kept.filter(pl.col("time").dt.day() % 3 > 0))
    for _, mine in found.group_by("subject_id"):
        visits, moments = mine["visit"].to_numpy(), mine["moment"].to_numpy()
        assert visits[0] == moments[0] == 0
        assert set(np.diff(visits)) <= {0, 1} and set(np.diff(moments)) <= {0, 1}
        assert len(set(visits)) == mine["time"].dt.date().n_unique()


def test_a_moment_is_one_time_of_one_visit():
    rows = [(1, 0, "a", None, 1), (1, 0, "b", None, 2), (1, 0, "c", None, 1), (1, 0.5, "d", None, 1)]
    found = number_visits(assign_visits(table(rows, "visit_id"), "auto", 24.0))
    by_code = {row["code"]: (row["visit"], row["moment"]) for row in found.iter_rows(named=True)}
    assert by_code == {"a": (0, 0), "c": (0, 0), "d": (0, 1), "b": (1, 2)}


def test_visits_are_ordered_by_what_is_left_of_them():
    # The stay begins first, but of its first day nothing is left.
    rows = [(1, 0, "dropped", None, 1), (1, 2, "outpatient", None, 2), (1, 5, "stay", None, 1)]
    kept = assign_visits(table(rows, "visit_id"), "auto", 24.0).filter(pl.col("code") != "dropped")
    found = number_visits(kept)
    assert found["code"].to_list() == ["outpatient", "stay"] and found["visit"].to_list() == [0, 1]
