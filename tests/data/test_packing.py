import time

import numpy as np
import pytest

from behrt_jax.data import batches, windows
from behrt_jax.data.packing import pack

DISTRIBUTIONS = {
    "uniform": lambda rng, size, most: rng.integers(1, most + 1, size),
    "short": lambda rng, size, most: rng.integers(1, max(2, most // 8), size),
    "just over half": lambda rng, size, most: rng.integers(most // 2, most // 2 + 3, size),
    "just over a third": lambda rng, size, most: rng.integers(most // 3, most // 3 + 3, size),
    "geometric": lambda rng, size, most: np.minimum(rng.geometric(4 / most, size), most),
    "few and full": lambda rng, size, most: rng.choice([1, 2, most - 1, most], size),
}


def rows_of(plan) -> list[np.ndarray]:
    return [plan.members[start:stop] for start, stop in zip(plan.offsets[:-1], plan.offsets[1:], strict=True)]


def first_fit_decreasing(lengths, row_length) -> int:
    free = np.zeros(0, np.int64)
    for length in -np.sort(-lengths):
        fits = np.flatnonzero(free >= length)
        if fits.size:
            free[fits[0]] -= length
        else:
            free = np.append(free, row_length - length)
    return len(free)


def best_fit_decreasing(lengths, row_length) -> int:
    free = np.zeros(0, np.int64)
    for length in -np.sort(-lengths):
        fits = np.flatnonzero(free >= length)
        if fits.size:
            free[fits[np.argmin(free[fits])]] -= length
        else:
            free = np.append(free, row_length - length)
    return len(free)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("seed", range(6))
def test_rows_hold_each_sequence_once_and_are_no_more_than_needed(name, seed):
    rng = np.random.default_rng(seed)
    row_length = int(rng.choice([9, 50, 64, 100]))
    lengths = DISTRIBUTIONS[name](rng, int(rng.integers(1, 300)), row_length)
    plan = pack(lengths, row_length)
    assert np.sort(plan.members).tolist() == list(range(len(lengths)))
    sums = [lengths[row].sum() for row in rows_of(plan)]
    assert min(sums) >= 1 and max(sums) <= row_length
    assert len(plan) == best_fit_decreasing(lengths, row_length)
    assert len(plan) <= first_fit_decreasing(lengths, row_length)
    assert pack(lengths, row_length).members.tolist() == plan.members.tolist()


def test_finds_the_perfect_packing_of_pairs():
    lengths = np.concatenate([np.arange(1, 50), 100 - np.arange(1, 50)])
    assert len(pack(lengths, 100)) == 49


def test_known_small_case():
    assert [row.tolist() for row in rows_of(pack(np.array([4, 8, 1, 4, 2, 1]), 10))] == [[1, 4], [0, 2, 3, 5]]


def test_no_sequences():
    assert len(pack(np.array([], np.int64), 8)) == 0


@pytest.mark.parametrize("lengths", [[0, 3], [3, 9]])
def test_refuses_lengths_that_no_row_holds(lengths):
    with pytest.raises(ValueError, match="expected 1 to row_length=8"):
        pack(np.array(lengths), 8)


def test_a_million_sequences_take_seconds():
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / 60, 1_000_000), 256)
    began = time.perf_counter()
    plan = pack(lengths, 256)
    assert time.perf_counter() - began < 5
    assert lengths.sum() / (len(plan) * 256) > 0.995


def test_fill_of_the_bundled_patients(bundled_train):
    index = windows.index_visits(bundled_train, 256)
    for epoch in range(3):
        assert batches.training_epoch(bundled_train, index, 0, epoch).fill / 256 >= 0.98
