"""Integer hashes, which make splits, shuffles and windows deterministic functions of (seed, epoch, patient)."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_integers(*keys: np.ndarray | int) -> np.ndarray:
    """Hashes integer arrays (broadcast together) to uint64.

    Each key goes through one round of the SplitMix64 finaliser (Steele, Lea and Flood 2014), so equal keys give equal
    hashes on every machine and the order of the keys matters.
    """
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for key in keys:
            state = np.asarray(key).astype(np.int64).view(np.uint64) + state * _GOLDEN + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)


def hash_fraction(*keys: np.ndarray | int) -> np.ndarray:
    """Hashes integer arrays to float64 in [0, 1), uniform over keys."""
    return (hash_integers(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53
