import numpy as np

from behrt_jax.data.hashing import hash_fraction, hash_integers

MASK = 2**64 - 1


def reference(*keys: int) -> int:
    """The same rounds of SplitMix64 in Python's own integers."""
    state = 0
    for key in keys:
        state = (key + state * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


def test_first_output_of_splitmix64():
    # The first number that the published generator gives from the seed 0.
    assert int(hash_integers(0)) == 0xE220A8397B1DCDAF


def test_agrees_with_python_integers():
    rng = np.random.default_rng(0)
    keys = rng.integers(-(2**63), 2**63, (50, 3))
    found = hash_integers(keys[:, 0], keys[:, 1], keys[:, 2])
    assert found.tolist() == [reference(*row) for row in keys.tolist()]


def test_scalars_broadcast():
    ids = np.arange(5)
    assert hash_integers(7, ids).tolist() == [reference(7, i) for i in range(5)]
    assert hash_integers(ids.astype(np.int32), 7).tolist() == [reference(i, 7) for i in range(5)]


def test_no_collisions_and_no_order():
    ids = np.arange(300_000)
    assert np.unique(hash_integers(1, ids)).size == ids.size
    assert np.unique(hash_integers(np.arange(500)[:, None], np.arange(500)[None])).size == 500 * 500


def test_each_bit_of_a_key_changes_half_of_the_hash():
    base = hash_integers(3, np.arange(2000))
    for bit in (0, 1, 17, 40, 62):
        flipped = hash_integers(3, np.arange(2000) ^ (1 << bit))
        changed = np.unpackbits((base ^ flipped).view(np.uint8)).mean()
        assert 0.49 < changed < 0.51


def test_fractions_are_uniform():
    found = np.sort(hash_fraction(11, np.arange(100_000)))
    assert 0.0 <= found[0] and found[-1] < 1.0
    # Kolmogorov and Smirnov's distance, here below its 0.1% point.
    assert np.abs(found - (np.arange(found.size) + 0.5) / found.size).max() < 1.95 / np.sqrt(found.size)
