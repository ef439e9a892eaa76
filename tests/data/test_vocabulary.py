import json

import numpy as np
import polars as pl
import pytest

from behrt_jax.data import vocabulary
from behrt_jax.data.vocabulary import UNK, Vocabulary
from tests.data.handmade import table

SAMPLE = Vocabulary(("LAB//1//Q2", "B", "Ü"), (9, 4, 4), (5, 4, 4), {"LAB//1": (0.5, 1.25)})


def counted(rows: list[tuple]) -> pl.DataFrame:
    return vocabulary.count_tokens(table(rows).with_columns(token=pl.col("code")))


def edges_of(shards: list[list[tuple]], num_bins: int, min_patients: int = 1, digits: int = 0) -> dict:
    samples = [vocabulary.sample_values(table(rows)) for rows in shards]
    return vocabulary.fit_value_edges(samples, num_bins, min_patients, digits)


def tokens_of(rows: list[tuple], edges: dict) -> list[str]:
    return vocabulary.add_tokens(table(rows), edges)["token"].to_list()


def test_special_tokens_come_first():
    assert SAMPLE.tokens == ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "LAB//1//Q2", "B", "Ü")
    assert [SAMPLE.ids[token] for token in SAMPLE.tokens] == list(range(8)) and len(SAMPLE) == 8


def test_unknown_tokens_are_counted_as_unk():
    assert SAMPLE.encode(pl.Series(["B", "nothing", "LAB//1//Q2", "LAB//1"])).to_list() == [6, UNK, 5, UNK]


def test_ids_fall_by_count_over_shards_and_ties_by_name():
    shards = [[(1, 0, "b"), (1, 1, "c"), (2, 0, "a")], [(3, 0, "a"), (3, 1, "c"), (3, 2, "c"), (4, 0, "b")]]
    found = vocabulary.fit_vocabulary([counted(rows) for rows in shards], {}, 1)
    assert found.codes == ("c", "a", "b") and found.counts == (3, 2, 2) and found.patients == (2, 2, 2)


def test_minimum_is_of_patients_not_of_occurrences():
    rows = [*[(1, day, "often in one") for day in range(50)], (1, 60, "two"), (2, 0, "two"), (3, 0, "one")]
    assert vocabulary.fit_vocabulary([counted(rows)], {}, 2).codes == ("two",)
    assert vocabulary.fit_vocabulary([counted(rows)], {}, 1).codes == ("often in one", "two", "one")


def test_all_codes_below_the_minimum():
    with pytest.raises(ValueError) as error:
        vocabulary.fit_vocabulary([counted([(1, 0, "SECRET"), (2, 0, "SECRET"), (2, 1, "OTHER")])], {}, 3)
    message = str(error.value)
    assert "data.min_patients: none of the 2 codes" in message and "the most frequent: 2" in message
    assert "lower it, or check data.codes_include" in message and "SECRET" not in message


def test_round_trip(tmp_path):
    SAMPLE.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded == SAMPLE and loaded.fingerprint == SAMPLE.fingerprint


def test_fingerprint_changes_with_each_part():
    others = [
        Vocabulary(("B", "LAB//1//Q2", "Ü"), SAMPLE.counts, SAMPLE.patients, SAMPLE.value_edges),
        Vocabulary(SAMPLE.codes, (9, 4, 3), SAMPLE.patients, SAMPLE.value_edges),
        Vocabulary(SAMPLE.codes, SAMPLE.counts, (5, 4, 3), SAMPLE.value_edges),
        Vocabulary(SAMPLE.codes, SAMPLE.counts, SAMPLE.patients, {"LAB//1": (0.5, 1.5)}),
    ]
    assert len({other.fingerprint for other in (SAMPLE, *others)}) == 5


def test_an_edited_file_is_refused(tmp_path):
    file = tmp_path / "vocabulary.json"
    SAMPLE.save(file)
    content = json.loads(file.read_text(encoding="utf-8"))
    content["codes"][0], content["codes"][1] = content["codes"][1], content["codes"][0]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="changed since it was written.*restore the original") as error:
        Vocabulary.load(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"codes": []}', '{"codes": [["a", 1]], "value_edges": {}}'])
def test_a_broken_file_is_refused(tmp_path, content):
    file = tmp_path / "vocabulary.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="not a vocabulary file.*prepare the data again"):
        Vocabulary.load(file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a vocabulary file"):
        Vocabulary.load(tmp_path / "vocabulary.json")


def test_bins_by_hand():
    # Quartiles of 1..8; a value equal to an edge belongs to the bin below it.
    rows = [(1, 0, "x", float(value)) for value in (8, 3, 1, 6, 2, 7, 5, 4)]
    edges = edges_of([rows], 4)
    assert edges == {"x": (2.75, 4.5, 6.25)}
    assert tokens_of(rows, edges) == [f"x//Q{bin}" for bin in (4, 2, 1, 3, 1, 4, 3, 2)]
    assert tokens_of([(1, 0, "x", 2.75), (1, 0, "x", 2.7500002)], edges) == ["x//Q1", "x//Q2"]
    assert tokens_of([(1, 0, "x", -1e9), (1, 0, "x", 1e9)], edges) == ["x//Q1", "x//Q4"]


def test_bins_hold_equal_shares():
    values = np.random.default_rng(0).lognormal(size=5000)
    rows = [(i, 0, "x", float(value)) for i, value in enumerate(values)]
    shares = pl.Series(tokens_of(rows, edges_of([rows], 10))).value_counts()["count"] / len(rows)
    assert len(shares) == 10 and shares.min() > 0.098 and shares.max() < 0.102


def test_few_distinct_values_have_few_bins():
    rows = [(i, 0, "x", float(i % 2)) for i in range(100)]
    edges = edges_of([rows], 10)
    assert len(edges["x"]) <= 3
    zero, one = (set(tokens_of([row for row in rows if row[3] == value], edges)) for value in (0.0, 1.0))
    assert len(zero) == len(one) == 1 and zero != one


def test_missing_and_infinite_values_keep_the_plain_code():
    edges = {"x": (1.0, 2.0)}
    rows = [(1, 0, "x", value) for value in (None, float("nan"), float("inf"), float("-inf"), 1.5)]
    assert tokens_of([*rows, (1, 0, "y", 5.0)], edges) == ["x", "x", "x", "x", "x//Q2", "y"]
    assert edges_of([rows], 4) == {"x": (1.5,)}


def test_static_values_and_codes_without_values_have_no_bins():
    assert edges_of([[(1, None, "x", 4.0), (1, 0, "y")]], 4) == {}


def test_few_patients_give_no_bins():
    rows = [*[(1, day, "x", float(day)) for day in range(100)], *[(i, 0, "y", float(i)) for i in range(3)]]
    assert set(edges_of([rows], 4, min_patients=3)) == {"y"}
    more = [(9, 0, "x", 1.0), (10, 0, "x", 2.0)]
    assert set(edges_of([rows, more], 4, min_patients=3)) == {"x", "y"}


def test_rounded_edges_are_no_value_of_a_patient_and_rest_on_ten_patients_a_bin():
    """Eleven patients with a value each: exact edges are their values; rounded ones part too few to be kept."""
    values = [100.0 + 3.1 * number for number in range(11)]
    few = [(number, 0, "few", value) for number, value in enumerate(values)]
    assert len(set(edges_of([few], 10)["few"]) & set(np.float32(values).tolist())) == 9
    assert edges_of([few], 10, digits=2) == {}
    # One patient has a hundred values in the middle; the others are even from 1 to 50.
    rows = [(number, 0, "x", 1.04 + 0.98 * number) for number in range(50)]
    rows += [(99, day, "x", 25.03 + day / 1000) for day in range(100)]
    (edges,) = edges_of([rows], 10, digits=2).values()
    assert len(edges) >= 2 and all(edge == float(f"{edge:.2g}") for edge in edges)
    for digits, fewest in ((2, 10), (2, 20)):
        (edges,) = edges_of([rows], 10, min_patients=fewest, digits=digits).values()
        bins = np.searchsorted(edges, [row[3] for row in rows])
        assert min(len({row[0] for row, own in zip(rows, bins, strict=True) if own == each}) for each in bins) >= fewest
    assert edges_of([rows[:25], rows[25:]], 10, digits=2) == edges_of([rows], 10, digits=2)


def test_a_value_equal_to_a_rounded_edge_is_in_the_bin_below_whatever_its_digits():
    """As float32, 0.7 is a little less and 0.81 a little more than the decimal numbers."""
    rows = [(number, 0, "x", value) for number, value in enumerate((0.7, 0.71, 0.81, 0.82))]
    assert tokens_of(rows, {"x": (0.7, 0.81)}) == ["x//Q1", "x//Q2", "x//Q2", "x//Q3"]


def test_below_two_bins_values_are_left_out():
    rows = [(1, 0, "x", 1.0), (2, 0, "x", 2.0)]
    assert edges_of([rows], 1) == edges_of([rows], 0) == {} == edges_of([], 4)
    assert tokens_of(rows, {}) == ["x", "x"]


def test_quantiles_of_many_values_are_near_the_true_ones():
    rng = np.random.default_rng(0)
    values = rng.gamma(2.0, size=60_000)
    table_of = {
        "subject_id": rng.integers(0, 500, values.size),
        "time": np.arange(values.size),
        "numeric_value": values,
    }
    events = pl.DataFrame(table_of).with_columns(
        pl.col("time").cast(pl.Datetime("us")), pl.col("numeric_value").cast(pl.Float32), code=pl.lit("x")
    )
    sample = vocabulary.sample_values(events)
    assert len(sample["values"][0]) == 10_000 and sample["patients"].to_list() == [500]
    whole, halves = [sample], [vocabulary.sample_values(part) for part in (events[:45_000], events[45_000:])]
    edges = vocabulary.fit_value_edges(whole, 10, 1)["x"]
    ranks = np.searchsorted(np.sort(values), edges) / values.size
    assert np.abs(ranks - np.arange(0.1, 1.0, 0.1)).max() < 0.015
    # The same values are drawn however the data is cut to shards, and however often samples are merged.
    assert vocabulary.fit_value_edges(halves, 10, 1)["x"] == edges
    assert vocabulary.fit_value_edges([vocabulary.merge_samples(halves)], 10, 1)["x"] == edges
    merged = vocabulary.merge_samples(halves)
    assert merged["values"].list.len().to_list() == [10_000]


def test_order_of_events_is_kept():
    rows = [(1, day, f"c{day % 7}", float(day)) for day in range(200)]
    found = vocabulary.add_tokens(table(rows), {"c3": (50.0,), "c5": (1.0, 9.0, 90.0)})
    assert found["code"].to_list() == [row[2] for row in rows]
    assert found.columns == [*table([]).columns, "token"]
