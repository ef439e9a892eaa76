import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from behrt_jax.models.dropout import Dropout, hash_bits

SIZE = 1 << 16
RATE = 0.1


pytestmark = pytest.mark.usefixtures("strict_jax")


def kept(key, rate=RATE, shape=(SIZE,)):
    return np.asarray(Dropout(rate).apply({}, jnp.ones(shape), False, rngs={"dropout": key})) > 0


def correlation(first, second):
    return abs(np.corrcoef(first.astype(float), second.astype(float))[0, 1])


def keys_nearby():
    base = jax.random.key(0)
    return [jax.random.fold_in(base, step) for step in range(8)]


def test_bits_are_uniform_in_every_byte():
    words = np.stack([hash_bits(key, SIZE) for key in keys_nearby()])
    for shift in (0, 8, 16, 24):
        counts = np.stack([np.bincount((row >> shift) & 255, minlength=256) for row in words])
        assert scipy.stats.chisquare(counts.sum(axis=0)).pvalue > 1e-4
        assert scipy.stats.kstest(scipy.stats.chisquare(counts, axis=1).pvalue, "uniform").pvalue > 1e-4


def test_pairs_of_neighbouring_bits_are_uniform():
    words = np.asarray(hash_bits(jax.random.key(1), SIZE))
    for distance in (1, 2, 16, 64, 128, 256):
        pairs = (words[:-distance] >> 28) * 16 + (words[distance:] >> 28)
        assert scipy.stats.chisquare(np.bincount(pairs, minlength=256)).pvalue > 1e-4


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_share_of_kept_elements_has_the_mean_and_variance_of_a_fair_coin(rate):
    share = np.array([kept(jax.random.fold_in(jax.random.key(2), i), rate, (1024,)).mean() for i in range(200)])
    spread = np.sqrt(rate * (1 - rate) / 1024)
    assert abs(share.mean() - (1 - rate)) < 4 * spread / np.sqrt(200)
    assert 0.8 < share.std() / spread < 1.2


def test_no_correlation_between_neighbours_or_columns():
    mask = kept(jax.random.key(3), shape=(512, 128))
    bound = 5 / np.sqrt(SIZE)
    for axis, distance in ((0, 1), (0, 2), (1, 1), (1, 2), (1, 64)):
        rolled = np.roll(mask, distance, axis=axis)
        assert correlation(mask.ravel(), rolled.ravel()) < bound


def test_no_correlation_between_keys_next_to_each_other():
    masks = [kept(key) for key in keys_nearby()]
    for first in range(len(masks)):
        for second in range(first):
            assert correlation(masks[first], masks[second]) < 5 / np.sqrt(SIZE)
            # Nor is one a shifted copy of the other, as counters with two starts might give.
            assert correlation(masks[first][1:], masks[second][:-1]) < 5 / np.sqrt(SIZE)


def test_layers_of_one_step_draw_different_masks():
    class TwoLayers(nn.Module):
        @nn.compact
        def __call__(self, x):
            shared = Dropout(0.5)
            return shared(x, False), shared(x, False), Dropout(0.5)(x, False)

    masks = TwoLayers().apply({}, jnp.ones(SIZE), rngs={"dropout": jax.random.key(4)})
    flat = [np.asarray(mask) > 0 for mask in masks]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert correlation(flat[first], flat[second]) < 5 / np.sqrt(SIZE)


def test_kept_elements_are_scaled_so_that_the_mean_stays():
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, SIZE), jnp.float32)
    dropped = np.asarray(Dropout(0.25).apply({}, x, False, rngs={"dropout": jax.random.key(5)}))
    survivors = dropped != 0
    np.testing.assert_allclose(dropped[survivors], np.asarray(x)[survivors] / 0.75, rtol=1e-6)
    assert abs(dropped.mean() / float(x.mean()) - 1) < 0.02


def test_same_key_same_mask_and_other_key_other_mask():
    assert np.array_equal(kept(jax.random.key(6)), kept(jax.random.key(6)))
    assert not np.array_equal(kept(jax.random.key(6)), kept(jax.random.key(7)))


def test_deterministic_and_rate_zero_are_the_identity():
    x = jnp.arange(8.0)
    assert Dropout(0.9).apply({}, x, True) is x
    assert Dropout(0.0).apply({}, x, False) is x
