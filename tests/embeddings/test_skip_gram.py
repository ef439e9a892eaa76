"""Skip-gram: pairs come from visits, codes that share visits get like embeddings, and all is a function of the seed."""

import numpy as np
import pytest

from behrt_jax.data import windows
from behrt_jax.data.dataset import Patients
from behrt_jax.data.vocabulary import NUM_SPECIAL, UNK
from behrt_jax.embeddings import codes, skip_gram
from tests.data.handmade import patients_of, random_patients

TOPICS, SIZE = 6, 8
STATIC = NUM_SPECIAL + TOPICS * SIZE
ALONE, UNSEEN = STATIC + 1, STATIC + 2
VOCAB_SIZE = STATIC + 3


def topical_patients(num_patients: int = 80, seed: int = 0) -> Patients:
    """Patients with a static code and visits of five codes of one topic and an unknown one, or of a lonely code."""
    rng = np.random.default_rng(seed)

    def visit(number):
        if number == 3:
            return [(ALONE, 3)]
        drawn = NUM_SPECIAL + rng.integers(TOPICS) * SIZE + rng.permutation(SIZE)[:5]
        return [(int(code), number) for code in (*drawn, UNK)]

    return patients_of(*({"static": [STATIC], "visits": [visit(n) for n in range(8)]} for _ in range(num_patients)))


def train(patients, seed=0, dim=16, num_steps=250):
    index = windows.index_visits(patients, 64)
    return skip_gram.train(patients, index, VOCAB_SIZE, dim, seed, num_steps)


@pytest.fixture(scope="module")
def trained():
    return train(topical_patients())


def test_codes_that_share_visits_become_neighbours(trained):
    groups = np.full(VOCAB_SIZE, -1)
    groups[NUM_SPECIAL:STATIC] = np.repeat(np.arange(TOPICS), SIZE)
    found = codes.agreement(np.nan_to_num(trained), groups, SIZE - 1).values["precision"]
    assert found.mean() > 0.95


def test_what_shares_no_visit_has_no_row(trained):
    assert trained.shape == (VOCAB_SIZE, 16) and trained.dtype == np.float32
    known = np.isfinite(trained)
    assert (known.all(axis=1) == known.any(axis=1)).all()
    assert set(np.flatnonzero(known[:, 0])) == {*range(NUM_SPECIAL, STATIC)}
    lonely = patients_of({"visits": [[(ALONE, 0)], [(ALONE, 9)]]})
    assert np.isnan(train(lonely)).all()


def test_it_is_a_function_of_seed_and_patients(trained):
    np.testing.assert_array_equal(train(topical_patients()), trained)
    other_seed, other_patients = train(topical_patients(), seed=1), train(topical_patients(seed=1))
    assert not np.array_equal(other_seed, trained, equal_nan=True)
    assert not np.array_equal(other_patients, trained, equal_nan=True)


def test_pairs_are_of_different_codes_of_one_visit_and_all_such_pairs_are_drawn_alike():
    patients = random_patients(0, 20)
    index = windows.index_visits(patients, 48)
    contexts = skip_gram.find_contexts(patients, index)
    able = contexts.last - contexts.first > 1
    pairs = skip_gram.draw_pairs(contexts, np.cumsum(able) / able.sum(), 200_000, np.random.default_rng(0))
    expected = np.zeros((patients.codes.max() + 1,) * 2)
    for start, stop in zip(*index.starts, strict=True):
        held = [code for code in patients.codes[start:stop] if code >= NUM_SPECIAL]
        for place, code in enumerate(held):
            for other in held[:place] + held[place + 1 :]:
                expected[code, other] += 1 / (len(held) - 1)
    drawn = np.zeros_like(expected)
    np.add.at(drawn, tuple(pairs), 1)
    assert not drawn[expected == 0].any()
    expected *= len(pairs[0]) / expected.sum()
    assert np.abs(drawn - expected).max() < 6 * np.sqrt(expected.max())
    likely = expected > 20
    assert ((drawn - expected)[likely] ** 2 / expected[likely]).mean() < 1.3
