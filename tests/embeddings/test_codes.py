"""Neighbours of codes, their agreement with groups, and what is fitted on shared visits."""

import numpy as np
import polars as pl
import pytest
import scipy.sparse
from sklearn.neighbors import NearestNeighbors

from behrt_jax.data import metadata
from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary
from behrt_jax.embeddings import codes
from behrt_jax.metrics import bootstrap

CODES = ("CONDITION//1", "MEDICATION//2", "LAB//9//Q1", "CONDITION//3")
VOCABULARY = Vocabulary(CODES, (9, 8, 7, 6), (5, 5, 5, 5), {"LAB//9": (1.0,)})


def planted(num_groups: int, size: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A table of codes around the middle of their group, and the groups."""
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.full(NUM_SPECIAL, -1), rng.permutation(np.repeat(np.arange(num_groups), size))])
    middle = rng.standard_normal((num_groups, 64))
    return middle[groups] + noise * rng.standard_normal((len(groups), 64)), groups


def precision(table, groups, k=5):
    return codes.agreement(table, groups, k).values["precision"]


def test_neighbours_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((3000, 8)).astype(np.float32)
    table *= rng.lognormal(size=(3000, 1)).astype(np.float32)  # lengths tell nothing
    found, cosines = codes.nearest(table, np.arange(NUM_SPECIAL, 3000), 7)
    search = NearestNeighbors(metric="cosine", algorithm="brute").fit(table[NUM_SPECIAL:])
    distances, expected = search.kneighbors(n_neighbors=7)
    np.testing.assert_array_equal(found, expected + NUM_SPECIAL)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-5)


def test_neighbours_are_of_those_allowed_and_never_special_tokens_or_the_code_itself():
    table = np.ones((12, 4), np.float32)
    found, _ = codes.nearest(table, [6, 11], 20)
    assert found.shape == (2, 6)
    assert found.min() >= NUM_SPECIAL and 6 not in found[0] and 11 not in found[1]
    found, _ = codes.nearest(table, [6], 2, among=np.array([6, 8, 9]))
    assert set(found[0]) == {8, 9}


def test_planted_groups_agree_and_random_tables_are_at_chance():
    table, groups = planted(num_groups=8, size=12, noise=0.1)
    assert precision(table, groups).mean() == 1.0
    noisy = precision(planted(8, 12, noise=3.0)[0], groups).mean()
    rng, expected = np.random.default_rng(1), codes.chance(groups).values["precision"].mean()
    drawn = [precision(rng.standard_normal(table.shape), groups).mean() for _ in range(40)]
    assert expected == pytest.approx(11 / 95)
    assert abs(np.mean(drawn) - expected) < 4 * np.std(drawn) / np.sqrt(len(drawn))
    assert expected + 0.1 < noisy < 0.9


def test_the_interval_of_a_random_table_holds_chance_and_that_of_planted_groups_does_not():
    table, groups = planted(num_groups=20, size=6, noise=1.0)
    random = np.random.default_rng(2).standard_normal(table.shape)
    for given, holds in ((random, True), (table, False)):
        pairs = codes.agreement(given, groups, 5), codes.chance(groups)
        difference = bootstrap.paired(*pairs, "codes")["codes/precision"]
        assert (difference["low"] <= 0 <= difference["high"]) == holds


def test_small_groups_can_reach_one_and_what_has_no_group_or_is_alone_in_it_takes_no_part():
    axis = np.eye(4)
    table = np.concatenate([np.zeros((NUM_SPECIAL, 4)), axis[[0, 0, 1, 1, 1, 2, 0]]])
    groups = np.array([-1] * NUM_SPECIAL + [0, 0, 1, 1, 1, 2, -1])
    found = codes.agreement(table, groups, 10)
    np.testing.assert_array_equal(found.patients, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(found.values["precision"], 1.0)
    np.testing.assert_allclose(codes.chance(groups).values["precision"], [1 / 4, 1 / 4, 0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match="expected two groups with two or more codes each"):
        codes.agreement(table, np.where(groups == 1, -1, groups), 10)


def test_descriptions_and_codes_are_found_by_words(tmp_path):
    assert metadata.read_descriptions(tmp_path, VOCABULARY) == [""] * len(VOCABULARY)
    (tmp_path / "metadata").mkdir()
    file = tmp_path / "metadata" / "codes.parquet"
    said = {"CONDITION//1": "Type 2 Diabetes", "LAB//9": "Glucose in diabetes", "CONDITION//3": None, "X": "unused"}
    pl.DataFrame({"code": [*said], "description": [*said.values()]}).write_parquet(file)
    found = metadata.read_descriptions(tmp_path, VOCABULARY)
    assert found[NUM_SPECIAL:] == ["Type 2 Diabetes", "", "Glucose in diabetes (Q1)", ""]

    def find(query):
        return [VOCABULARY.tokens[code] for code in codes.find_codes(query, VOCABULARY, found)]

    assert find("DIABETES") == ["CONDITION//1", "LAB//9//Q1"]
    assert find("diabetes type") == ["CONDITION//1"] and find("medication") == ["MEDICATION//2"]
    assert find("CONDITION//1") == ["CONDITION//1"]
    for query in ("asthma", " ", "MASK"):
        with pytest.raises(ValueError, match="no code of the vocabulary has these words"):
            find(query)
    file.write_bytes(b"broken")
    with pytest.raises(ValueError, match="codes.parquet: not a readable parquet file"):
        metadata.read_descriptions(tmp_path, VOCABULARY)


def visits_of(topics: int, size: int, visits: int, seed: int = 0) -> scipy.sparse.csr_array:
    """Visits that hold half of the codes of one topic each, and codes of any now and then."""
    rng = np.random.default_rng(seed)
    topic = np.repeat(np.arange(topics), size)
    held = rng.random((visits, topics * size)) < np.where(topic == rng.integers(topics, size=(visits, 1)), 0.5, 0.02)
    return scipy.sparse.csr_array(np.concatenate([np.zeros((visits, NUM_SPECIAL), bool), held], axis=1))


def test_codes_that_share_visits_become_neighbours_by_ppmi():
    groups = np.concatenate([np.full(NUM_SPECIAL, -1), np.repeat(np.arange(6), 8)])
    table = codes.ppmi_svd(visits_of(6, 8, 600), 16)
    assert table.shape == (len(groups), 16) and not table[:NUM_SPECIAL].any()
    assert precision(table, groups, 7).mean() > 0.95
    wide = codes.ppmi_svd(visits_of(2, 3, 200), 32)
    assert wide.shape == (11, 32) and np.isfinite(wide).all()


def test_ppmi_is_that_of_its_definition():
    held = visits_of(2, 3, 300)
    together = (held.T.astype(float) @ held.astype(float)).toarray()
    np.fill_diagonal(together, 0)
    smooth = together.sum(axis=0) ** 0.75
    expected = np.zeros_like(together)
    for code, context in zip(*np.nonzero(together), strict=True):
        chance = together[code].sum() * smooth[context] / smooth.sum()
        expected[code, context] = max(np.log(together[code, context] / chance), 0)
    left, values, _ = np.linalg.svd(expected)
    table = codes.ppmi_svd(held, 3)
    np.testing.assert_allclose(table @ table.T, (left[:, :3] * values[:3]) @ left[:, :3].T, atol=1e-5)
