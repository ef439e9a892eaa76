import numpy as np
import polars as pl
import pytest

from behrt_jax.data.visits import assign_visits, check_column, name_visits, number_visits
from tests.data.handmade import table

MEDS = ["subject_id", "time", "code", "numeric_value"]


def assigned(events: pl.DataFrame, visits: str = "auto", gap_hours: float = 24.0) -> pl.DataFrame:
    return assign_visits(name_visits(events, visits), visits, gap_hours)


def grouped(events: pl.DataFrame, visits: str = "auto", gap_hours: float = 24.0) -> list[list[str]]:
    """The codes of each visit, in order."""
    found = assigned(events, visits, gap_hours)
    return found.group_by("subject_id", "visit", maintain_order=True).agg("code")["code"].to_list()


def test_a_column_that_is_not_there():
    check_column([*MEDS, "ward", "visit_id"], "ward", "some/shard.parquet")
    with pytest.raises(ValueError) as error:
        check_column([*MEDS, "visit_id"], "ward", "some/shard.parquet")
    message = str(error.value)
    assert "data.visits: column 'ward' is not in some/shard.parquet" in message
    assert ", ".join([*MEDS, "visit_id"]) in message and "use auto, day or gap" in message


def names(visits: str = "auto", **columns) -> list[str | None]:
    """The visits that two events at different times name, and a static one."""
    events = table([(1, None, "s"), (1, 1, "a"), (1, 2, "b")]).with_columns(**columns)
    return name_visits(events, visits)["visit_name"].to_list()[1:]


def test_the_first_column_that_names_a_visit_counts():
    one, two, none = (pl.Series([7, *ids], dtype=pl.Int64) for ids in ([1, 2], [3, None], [None, None]))
    assert names(hadm_id=two, visit_id=one) == ["1", "2"]
    assert names(hadm_id=two, visit_id=none) == ["3", None]  # of the empty one a static event alone has an id
    assert names(hadm_id=two, visit_id=pl.lit(None)) == ["3", None]
    assert names(hadm_id=none, ward=one) == [None, None]
    assert names("ward", hadm_id=two, ward=one) == ["1", "2"]
    assert names("day", visit_id=one) == names("gap", visit_id=one) == [None, None]


NAN = float("nan")


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        ([NAN, 5.0], pl.Float64),
        ([NAN, 5.0], pl.Float32),
        ([float("inf"), 5.0], pl.Float64),
        *[([text, "x"], pl.String) for text in ("", "  ", "nan", "NaN", "None", "NULL", "N/A", "<NA>", "NaT", "\\N")],
        (["nan", "x"], pl.Categorical),
    ],
)
def test_no_form_of_none_is_a_visit(ids, kind):
    """Events of two days whose id says none are no visit over both."""
    column = pl.Series([ids[1], ids[0], ids[0], ids[1]]).cast(kind)
    events = table([(1, 0, "a"), (1, 1, "b"), (1, 20, "c"), (1, 30, "d")]).with_columns(visit_id=column)
    assert grouped(events) == [["a", "d"], ["b"], ["c"]]
    assert names(visit_id=pl.Series([ids[1], ids[0], ids[0]]).cast(kind)) == [None, None]


def test_ids_are_numbers_text_or_dates():
    for kind in (pl.Int8, pl.UInt64, pl.Decimal(9, 0), pl.Categorical, pl.String):
        column = pl.Series(["1", "1", "2"]).cast(pl.Int64 if kind.base_type() == pl.Decimal else pl.String).cast(kind)
        assert len({*names(visit_id=column)}) == 2
    assert None not in names(visit_id=pl.col("time").dt.date())
    assert names(visit_id=pl.Series(["", " 8 ", "8"])) == ["8", "8"]


@pytest.mark.parametrize(
    "column", [pl.Series([[1], [1], [2]]), pl.struct("subject_id"), pl.lit(True), pl.lit(b"x"), pl.duration(days=1)]
)
def test_a_column_of_no_ids_is_an_error(column):
    with pytest.raises(ValueError, match=r"^the data: column 'hadm_id' is .*; expected one visit id an event.*convert"):
        names(hadm_id=column)
    assert names("day", hadm_id=column) == [None, None]
    assert names(hadm_id=pl.when(pl.lit(False)).then(column)) == [None, None]


def test_visits_by_column_are_contiguous_though_they_interleave():
    rows = [(1, 0, "a", None, 20), (1, 1, "b", None, 10), (1, 2, "c", None, 20), (1, 3, "d", None, 10)]
    assert grouped(table(rows, "visit_id")) == [["a", "c"], ["b", "d"]]
    numbered = number_visits(assigned(table(rows, "visit_id"), "visit_id"))
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
    kept = assigned(table(rows), "day").filter(~pl.col("code").is_in(["c1", "c2", "c3"]))
    found = number_visits(kept.filter(pl.col("time").dt.day() % 3 > 0))
    for _, mine in found.group_by("subject_id"):
        visits = mine["visit"].to_numpy()
        assert visits[0] == 0 and set(np.diff(visits)) <= {0, 1}
        assert len(set(visits)) == mine["time"].dt.date().n_unique()


def test_visits_are_ordered_by_what_is_left_of_them():
    # The stay begins first, but of its first day nothing is left.
    rows = [(1, 0, "dropped", None, 1), (1, 2, "outpatient", None, 2), (1, 5, "stay", None, 1)]
    kept = assigned(table(rows, "visit_id")).filter(pl.col("code") != "dropped")
    found = number_visits(kept)
    assert found["code"].to_list() == ["outpatient", "stay"] and found["visit"].to_list() == [0, 1]
