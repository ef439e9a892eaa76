import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from behrt_jax.models.behrt import BEHRTForMLM
from behrt_jax.optimizer import make_optimizer, make_schedule
from behrt_jax.workdir import initialize
from tests import tiny

PARAMS = {"kernel": jnp.full((2, 3), 2.0), "scale": jnp.full((3,), 2.0)}


pytestmark = pytest.mark.usefixtures("strict_jax")


def rates(num_steps, **overrides):
    schedule = make_schedule(tiny.optimizer_config(**overrides), num_steps)
    return np.array([float(schedule(step)) for step in range(num_steps)])


@pytest.mark.parametrize(("num_steps", "share", "warmup"), [(40, 0.25, 10), (7, 0.3, 2), (30, 0.9, 27)])
def test_schedule_rises_to_the_peak_and_ends_at_one_percent(num_steps, share, warmup):
    found = rates(num_steps, learning_rate=0.5, warmup_share=share)
    np.testing.assert_allclose(found[:warmup], 0.5 * np.arange(1, warmup + 1) / warmup, rtol=1e-6)
    assert found.argmax() == warmup - 1
    assert (np.diff(found[warmup - 1 :]) < 0).all()
    assert found[-1] == pytest.approx(0.005, rel=1e-5)


def test_schedule_is_a_cosine_after_the_warm_up():
    found = rates(40, learning_rate=0.5, warmup_share=0.25)
    done = np.arange(1, 31) / 30
    expected = 0.005 + (0.5 - 0.005) * (1 + np.cos(np.pi * done)) / 2
    np.testing.assert_allclose(found[10:], expected, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_shortest_runs_and_no_warm_up(num_steps):
    found = rates(num_steps, learning_rate=0.5, warmup_share=0.0)
    assert (found > 0).all() and found[-1] == pytest.approx(0.005, rel=1e-5)


def updates(params, grads, **overrides):
    optimizer = make_optimizer(tiny.optimizer_config(**overrides), 10)
    return optimizer.update(grads, optimizer.init(params), params)[0]


def test_decay_shrinks_matrices_and_leaves_vectors():
    found = updates(PARAMS, jax.tree.map(jnp.zeros_like, PARAMS), learning_rate=0.1, warmup_share=0.1, weight_decay=0.5)
    np.testing.assert_allclose(found["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-6)
    assert not found["scale"].any()


def test_decay_takes_in_every_matrix_of_the_model_and_no_vector():
    model = BEHRTForMLM(tiny.config())
    optimizer = make_optimizer(tiny.optimizer_config(weight_decay=1.0), 10)
    shapes = jax.eval_shape(functools.partial(initialize, model), jax.random.key(0))
    params, zeros = (
        jax.tree.map(lambda leaf, value=value: np.full(leaf.shape, value, np.float32), shapes) for value in (1.0, 0.0)
    )
    found, _ = jax.jit(lambda: optimizer.update(zeros, optimizer.init(params), params))()
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        is_vector = any(name in jax.tree_util.keystr(path) for name in ("'bias'", "'scale'"))
        assert bool((leaf != 0).all()) != is_vector, path


def test_large_gradients_are_clipped_to_the_norm():
    """Adam hides the length of a gradient, so two steps are compared: clipped ones count as much as their norm."""
    config = tiny.optimizer_config(clip_norm=0.5, weight_decay=0.0, learning_rate=1e-3)
    optimizer = make_optimizer(config, 10)
    direction = {"kernel": jnp.ones((2, 3)), "scale": -jnp.ones((3,))}
    unit = jax.tree.map(lambda leaf: leaf / optax.tree.norm(direction), direction)

    def moments(length):
        grads = jax.tree.map(lambda leaf: leaf * length, unit)
        _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
        return optax.tree_utils.tree_get(state, "mu")

    below, at, far = (optax.tree.norm(moments(length)) for length in (0.3, 0.5, 1e6))
    assert at == pytest.approx(0.5 * 0.1, rel=1e-5)  # the first moment takes a tenth of a gradient
    assert far == pytest.approx(float(at), rel=1e-5)
    assert below == pytest.approx(0.3 * 0.1, rel=1e-5)


def test_b2_is_the_decay_of_the_second_moment():
    optimizer = make_optimizer(tiny.optimizer_config(b2=0.75, clip_norm=1e9), 10)
    _, state = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    second = optax.tree_utils.tree_get(state, "nu")
    np.testing.assert_allclose(second["scale"], 0.25 * 2.0**2, rtol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rate": 0.0}, "optimizer.learning_rate: found 0.0; expected more than 0"),
        ({"clip_norm": -1.0}, "optimizer.clip_norm: found -1.0"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay: found -0.1"),
        ({"b2": 1.0}, "optimizer.b2: found 1.0"),
        ({"warmup_share": 1.0}, "optimizer.warmup_share: found 1.0; expected 0 or more and less than 1"),
        ({"warmup_share": -0.1}, "optimizer.warmup_share: found -0.1"),
    ],
)
def test_wrong_settings_name_key_and_value(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny.optimizer_config(**overrides)
