import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax import BEHRT
from behrt_jax.models.embeddings import (
    AgeEmbedding,
    PositionalEmbedding,
    SinusoidalPositionalEncoding,
    TimeEmbedding,
    VisitEmbedding,
)
from tests import tiny
from tests.models.drawn import apply, parameters

pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


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


@pytest.mark.parametrize("dim", [2, 6, 64])
def test_sines_and_cosines_alternate_as_vaswani_wrote_them(dim):
    """PE(pos, 2i) = sin(pos / 10000^(2i/dim)) and PE(pos, 2i + 1) = cos of the same."""
    module, positions = SinusoidalPositionalEncoding(dim), np.array([[0, 1, 2, 49, 511]])
    assert not module.init(jax.random.key(0), positions)
    found = module.apply({}, positions)
    expected = np.zeros((1, 5, dim))
    for place, position in enumerate(positions[0]):
        for pair in range(dim // 2):
            angle = position / 10_000 ** (2 * pair / dim)
            expected[0, place, 2 * pair : 2 * pair + 2] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found[0, 0], [0, 1] * (dim // 2))


def test_days_fall_in_two_bins_a_doubling_and_clamp_at_both_ends():
    days = [-5.0, 0.0, 0.41, 0.42, 0.99, 1.0, 3.0, 7.0, 1e9, np.inf]
    found, table = embed(TimeEmbedding(6, 7), days)
    np.testing.assert_array_equal(found, table[[0, 0, 0, 1, 1, 2, 4, 6, 6, 6]])


def bins_of(module, days):
    """Reads the bins of days off a table whose rows are their own numbers; jitted, as training runs it, and not."""
    params = {"params": {"table": {"embedding": np.arange(module.num_bins, dtype=np.float32)[:, None]}}}
    days = np.asarray([days], np.float32)
    found, jitted = (np.asarray(apply(params, days))[0, :, 0] for apply in (module.apply, jax.jit(module.apply)))
    np.testing.assert_array_equal(found, jitted)
    return found


def test_every_whole_day_falls_in_the_logarithmic_bin_of_exact_arithmetic():
    """Bin k holds the days d with 2^k <= (1 + d)^2 < 2^(k + 1), so 2^j - 1 days begin bin 2j."""
    found = bins_of(TimeEmbedding(1, 64), range(20_000))
    np.testing.assert_array_equal(found, [((1 + day) ** 2).bit_length() - 1 for day in range(20_000)])
    assert (found[8190], found[8191]) == (25, 26)


def test_the_last_logarithmic_bin_holds_all_longer_times():
    np.testing.assert_array_equal(bins_of(TimeEmbedding(1, 28), [11_584.0, 11_585.0, 16_383.0, 1e9]), [26, 27, 27, 27])


def test_linear_bins_are_weeks_and_longer_times_share_the_last():
    days = [-7.0, -0.1, 0.0, 6.9, 7.0, 13.9, 14.0, 363.9, 364.0, 371.0, 1e5, 3e38, np.inf]
    np.testing.assert_array_equal(
        bins_of(TimeEmbedding(1, 53, 7.0), days), [0, 0, 0, 0, 1, 1, 2, 51, 52, 52, 52, 52, 52]
    )
    weeks = bins_of(TimeEmbedding(1, 53, 7.0), list(range(400)))
    np.testing.assert_array_equal(weeks, [min(day // 7, 52) for day in range(400)])


@pytest.mark.parametrize("overrides", [{}, {"time_bin_days": 7.0}])
def test_a_missing_column_is_named_with_the_key_that_asks_for_it(overrides):
    batch, model = tiny.packed_batch([[6]], 8), BEHRT(tiny.config(**overrides))
    params = parameters(model)
    given = {**tiny.named(batch), "time_deltas": None}
    with pytest.raises(ValueError, match=r"^time_deltas: found None; expected \(B, L\) .*as model\.time_bins is 12\b"):
        model.apply(params, *tiny.columns(batch), **given)


COLUMNS = ("ages", "visit_ids", "positions", "time_deltas", "dates")
READ = {
    "reference": ({"time_bins": 0}, {"ages", "visit_ids", "positions"}),
    "all": ({}, {"ages", "visit_ids", "positions", "time_deltas"}),
    "fixed": ({"position_encoding": "sinusoidal"}, {"ages", "visit_ids", "positions", "time_deltas"}),
    "none": ({"position_encoding": "none", "time_bins": 0}, {"ages", "visit_ids"}),
}


@pytest.mark.parametrize("name", READ)
def test_the_sum_reads_the_columns_that_the_config_names_and_no_other(name):
    overrides, read = READ[name]
    batch = tiny.packed_batch([[8]], 8)
    model = BEHRT(tiny.config(rotary="none", visit_bias=False, **overrides))
    before = apply(model, batch)
    for column in COLUMNS:
        moved = batch | {column: (batch[column][:, ::-1] + 1).copy()}
        after = apply(model, moved)
        assert np.array_equal(before, after) == (column not in read), column


def test_a_fixed_encoding_is_scaled_by_a_learned_number():
    batch = tiny.packed_batch([[8]], 8)
    model = BEHRT(tiny.config(position_encoding="sinusoidal", rotary="none"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *tiny.columns(batch), **tiny.named(batch))
    assert "positions" not in shapes["params"]["embedding"]
    params = parameters(model)
    embedding = params["params"]["embedding"]
    off = {"params": {**params["params"], "embedding": {**embedding, "position_scale": np.float32(0.0)}}}
    moved = batch | {"positions": batch["positions"][:, ::-1].copy()}
    assert np.array_equal(apply(model, batch, off), apply(model, moved, off))
    assert not np.array_equal(apply(model, batch, params), apply(model, moved, params))
