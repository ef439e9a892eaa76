"""Every number of a profile is one that can be counted by hand."""

import polars as pl
import pytest

from behrt_jax.data import profile
from tests.data.handmade import MedsFolder, table

ROWS = [
    (1, None, "GENDER//F"),
    (1, 0, "MEDS_BIRTH"),
    (1, 400, "A", 1.0, "g"),
    (1, 400, "A", 1.0, "g"),  # an exact duplicate
    (1, 410, "A", 2.0, "mg"),
    (1, 410, "B"),
    (1, 500, "MEDS_DEATH"),
    (1, 501, "B"),  # after death
    (2, None, "GENDER//M"),
    (2, 50, "B"),  # before birth
    (2, 100, "MEDS_BIRTH"),
    (2, 900, "A", 3.0, " "),
    (2, 900, "A", float("inf"), "g"),
    (3, 10, "B"),
]
FINDINGS = {
    "all": (14, 3),
    "without a time": (2, 2),
    "that name a visit": (0, 0),
    "with a number": (4, 2),
    "with a number that is not finite": (1, 1),
    "with a text": (0, 0),
    "with a number without a unit": (1, 1),
    "exact duplicates": (1, 1),
    "before birth": (1, 1),
    "after death": (1, 1),
    "of patients without a birth": (1, 1),
    "of patients with a death": (8, 1),
    "of patients with more than one birth": (0, 0),
    "without a patient or a code": (0, 0),
}


def with_units(rows: list[tuple]) -> pl.DataFrame:
    return table([row[:4] for row in rows]).with_columns(unit=pl.Series([row[4] if row[4:] else None for row in rows]))


@pytest.fixture(scope="module", params=["sorted", "unsorted, in two shards"])
def found(tmp_path_factory, request) -> profile.Profile:
    folder = MedsFolder(tmp_path_factory.mktemp("profile"))
    folder.splits({1: "train", 2: "held_out"})
    if request.param == "sorted":
        folder.shard("0", with_units(ROWS))
    else:
        folder.shard("0", with_units(ROWS[7::-1]))
        folder.shard("1", with_units(ROWS[:7:-1]))
        folder.shard("2", [])
    return profile.profile_data(folder.config())


def values_of(found: profile.Profile, name: str) -> dict[int, tuple]:
    rows = found.spreads.filter(name=name).sort("value").select("value", "count", "lows", "highs")
    return {value: rest for value, *rest in rows.iter_rows()}


def test_events_and_patients_are_counted(found):
    assert {name: rest for name, *rest in found.findings.iter_rows()} == {k: [*v] for k, v in FINDINGS.items()}
    assert dict(found.splits.iter_rows()) == {"train": 1, "held_out": 1, None: 1}
    assert dict(found.sexes.iter_rows()) == {"F": 1, "M": 1, "": 1}
    assert found.has_units
    rows = {code: rest for code, *rest in found.codes.iter_rows()}
    assert rows["A"] == [5, 2, 4, 0, 1] and rows["B"] == [4, 3, 0, 0, 0] and rows["MEDS_BIRTH"][:2] == [2, 2]


def test_visits_ages_and_gaps_are_spread(found):
    assert values_of(found, "visits a patient") == {1: [1, 1, 1], 2: [1, 1, 1], 4: [1, 1, 1]}
    assert values_of(found, "codes a visit") == {1: [4, 3, 1], 2: [3, 0, 2]}
    assert values_of(found, "days between visits") == {1: [1, 1, 0], 10: [1, 0, 0], 90: [1, 0, 1], 850: [1, 1, 1]}
    assert values_of(found, "age at events, years") == {1: [6, 1, 1], 2: [2, 1, 1]}
    assert values_of(found, "age at the last event, years") == {1: [1, 1, 1], 2: [1, 1, 1]}
    assert values_of(found, "days from the first event to the last") == {
        0: [1, 1, 1],
        101: [1, 1, 1],
        850: [1, 1, 1],
    }
    assert values_of(found, "year of events") == {2000: [2, 2, 1], 2001: [6, 1, 1], 2002: [2, 0, 1]}


def test_numbers_are_by_code_and_unit_without_duplicates(found):
    rows = {(row["code"], row["unit"]): row for row in profile.value_quantiles(found, 1)}
    assert {key: (row["patients"], row["50%"]) for key, row in rows.items()} == {
        ("A", "g"): (1, 1.0),
        ("A", "mg"): (1, 2.0),
        ("A", ""): (1, 3.0),
    }
    assert profile.value_quantiles(found, 2) == []


def test_a_quantile_has_enough_patients_on_both_sides():
    values = pl.DataFrame({"subject_id": [1, 1, 2, 3, 4, 4], "value": [1, 9, 2, 3, 4, 50]})
    spread = profile.spread("x", values)
    assert profile.quantiles(spread, 1) == {
        "smallest": 1,
        "5%": 1,
        "25%": 2,
        "50%": 3,
        "75%": 9,
        "95%": 50,
        "largest": 50,
    }
    floored = profile.quantiles(spread, 2)  # patient 4 alone has 50, patients 1 and 4 reach 9
    assert floored == {"smallest": 2, "5%": None, "25%": 2, "50%": 3, "75%": 9, "95%": None, "largest": 9}
    assert set(profile.quantiles(spread, 5).values()) == {None}


def test_patients_with_any_code_of_a_group_are_counted_once(tmp_path):
    folder = MedsFolder(tmp_path)
    folder.shard("0", [row[:4] for row in ROWS[:8]])
    folder.shard("1", [row[:4] for row in ROWS[8:]])
    folder.shard("2", pl.DataFrame())  # without rows, a shard may lack any column
    groups = {"both": ["A", "B"], "death": ["MEDS_DEATH"], "none": []}
    assert profile.count_patients(folder.root, groups) == {"both": 3, "death": 1, "none": 0}


def test_rows_without_a_patient_or_a_code_are_counted_and_left_out(tmp_path):
    folder = MedsFolder(tmp_path)
    folder.shard("0", [(1, 10, "A"), (1, 20, None), (None, 30, "A"), (2, None, "A")])
    found = profile.profile_data(folder.config())
    counts = {name: rest for name, *rest in found.findings.iter_rows()}
    assert counts["without a patient or a code"] == [2, 2] and counts["all"] == [2, 2]
    assert values_of(found, "visits a patient") == {0: [1, 1, 1], 1: [1, 1, 1]}
    assert not found.has_units and found.samples.height == 0
