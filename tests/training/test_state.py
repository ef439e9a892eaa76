import itertools

import jax
import numpy as np
import pytest

from behrt_jax.models.pretraining import BEHRTForMLM
from behrt_jax.training.optimizer import make_optimizer
from behrt_jax.training.state import step_keys
from tests import tiny

pytestmark = pytest.mark.usefixtures("strict_jax")


def data(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_keys_differ_by_seed_step_and_stream():
    found = {(seed, step): step_keys(seed, step) for seed, step in itertools.product((0, 1, 5), range(6))}
    words = [data(key) for keys in found.values() for key in keys.values()]
    assert len(set(words)) == len(words) == 3 * 6 * 2
    assert all(set(keys) == {"masking", "dropout"} for keys in found.values())
    assert data(jax.random.key(0)) not in words  # which made the parameters


def test_keys_are_a_function_of_seed_and_step():
    first, second = (step_keys(3, np.int32(8)) for _ in range(2))
    assert {name: data(key) for name, key in first.items()} == {name: data(key) for name, key in second.items()}
    jitted = jax.jit(lambda step: step_keys(3, step))(np.int32(8))
    assert data(jitted["masking"]) == data(first["masking"])


def test_initial_parameters_are_a_function_of_the_seed():
    model, optimizer = BEHRTForMLM(tiny.config()), make_optimizer(tiny.optimizer_config(), 10)
    first, again, other = (tiny.initial_state(model, optimizer, seed) for seed in (0, 0, 1))
    leaves = [jax.tree.leaves(state.params) for state in (first, again, other)]
    assert all(np.array_equal(*pair) for pair in zip(leaves[0], leaves[1], strict=True))
    random = [(a, b) for a, b in zip(leaves[0], leaves[2], strict=True) if a.ndim > 1]
    assert random and not any(np.array_equal(*pair) for pair in random)
    assert first.step == 0 and first.step.dtype == np.int32
