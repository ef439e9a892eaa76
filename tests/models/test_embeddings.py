import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax import AgeEmbedding, PositionalEmbedding, TimeEmbedding, VisitEmbedding
from tests import tiny


@pytest.fixture(autouse=True)
def _strict():
    with tiny.strict_jax():
        yield


def embed(module, values):
    """Embeds a list of values, (n, dim), by a table of distinct rows."""
    values = jnp.asarray([values])
    params = module.init(jax.random.key(0), values)
    return np.asarray(module.apply(params, values))[0], np.asarray(params["params"]["table"]["embedding"])


def same(first, second):
    return np.array_equal(first, second)


def test_ages_in_one_bin_are_equal_and_bins_differ_at_the_border():
    found, table = embed(AgeEmbedding(6, 100.0, 5.0), [0.0, 4.999, 5.0, 9.999, 10.0, 99.9, 100.0])
    assert same(found[0], found[1]) and same(found[2], found[3])
    assert len({row.tobytes() for row in found}) == 5  # 0-5, 5-10, 10-15, 95-100, 100 and older
    assert table.shape == (22, 6)


def test_ages_beyond_the_ends_share_the_bins_at_the_ends():
    found, _ = embed(AgeEmbedding(6, 100.0, 5.0), [-3.0, 0.0, 100.0, 104.9, 105.0, 3e38, np.inf, -np.inf])
    assert same(found[0], found[1]) and same(found[7], found[1])
    assert all(same(row, found[2]) for row in found[3:7])
    assert not same(found[1], found[2])


def test_an_unknown_age_has_a_row_of_its_own():
    known = [float(age) for age in range(-5, 130)]
    found, table = embed(AgeEmbedding(6, 100.0, 5.0), [np.nan, *known])
    assert np.isfinite(found).all()
    assert all(not same(found[0], row) for row in found[1:])
    assert len({row.tobytes() for row in found}) == len(table)


def test_age_bins_that_do_not_divide_the_maximum():
    found, table = embed(AgeEmbedding(6, 100.0, 30.0), [0.0, 29.0, 30.0, 89.0, 90.0, 500.0])
    assert same(found[0], found[1]) and same(found[4], found[5])
    assert not same(found[3], found[4]) and not same(found[1], found[2])
    assert len(table) == 5


@pytest.mark.parametrize("module", [VisitEmbedding(6, 4), PositionalEmbedding(6, 4)])
def test_visits_and_positions_clamp_at_the_ends_of_the_table(module):
    found, table = embed(module, [-1, 0, 1, 2, 3, 4, 10_000])
    assert same(found[1:5], table)
    assert same(found[0], table[0])
    assert same(found[5], table[3]) and same(found[6], table[3])


def test_days_fall_in_two_bins_a_doubling_and_clamp_at_both_ends():
    days = [-5.0, 0.0, 0.41, 0.42, 0.99, 1.0, 3.0, 7.0, 1e9, np.inf]
    found, table = embed(TimeEmbedding(6, 7), days)
    np.testing.assert_array_equal(found, table[[0, 0, 0, 1, 1, 2, 4, 6, 6, 6]])
