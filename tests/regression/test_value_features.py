"""Features of the last day: counts within it and before it, and the values within it, of nothing later."""

import dataclasses

import numpy as np
import pytest

from behrt_jax.data import histories as data_histories
from behrt_jax.regression import value_features
from tests.data.handmade import patients_of

DAY = 1440
TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "GENDER//F", "A", "B")
F, A, B = 5, 6, 7


def read(*later: tuple[int, int, float]):
    """Features at day 10 of A with values 3, -1 and 0 in the last day, 9 before, and later codes with their values."""
    rows = [(A, 10 * DAY - 1500, 9.0), (A, 10 * DAY - 1440, 3.0), (A, 10 * DAY - 2, -1.0), (B, 10 * DAY - 2, np.nan)]
    rows += [(A, 10 * DAY - 1, 0.0), *later]
    patients = patients_of({"static": [F], "visits": [[row[:2] for row in rows]]})
    values = np.array([np.nan, *(row[2] for row in rows)], np.float32)
    times = np.array(["2000-01-11"], "datetime64[us]")
    known, _, _ = data_histories.histories_at(dataclasses.replace(patients, values=values), np.array([1]), times)
    return known, value_features.read(known, times, TOKENS, days=1.0)


def test_counts_and_values_of_the_last_day_and_counts_before_it():
    known, inputs = read()
    recent, before, static, last, lowest, highest, mean = inputs.codes.toarray().reshape(7, len(TOKENS))
    assert np.expm1(recent[[A, B]]) == pytest.approx([3, 1]) and np.expm1(before[[A, B]]) == pytest.approx([1, 0])
    assert np.flatnonzero(static).tolist() == [F]
    assert not recent[:A].any() and not before[:A].any()  # static and special tokens are of no time
    assert [each[A] for each in (last, lowest, highest, mean)] == pytest.approx([0, -1, 3, 2 / 3], abs=1e-6)
    assert last[A] != 0 and not any(each[B] for each in (last, lowest, highest, mean))
    without = value_features.read(
        dataclasses.replace(known, values=None), np.array(["2000-01-11"], "M8[us]"), TOKENS, 1
    )
    assert without.codes.shape == (1, 3 * len(TOKENS))


def test_nothing_at_or_after_the_prediction_time_is_read():
    _, inputs = read()
    _, with_later = read((A, 10 * DAY, 50.0), (B, 10 * DAY + 1, 7.0))
    assert (inputs.codes != with_later.codes).nnz == 0 and np.array_equal(inputs.basic, with_later.basic)
