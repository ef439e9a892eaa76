import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.models.embeddings import CODE_TABLE
from behrt_jax.models.pretraining import BEHRTForMLM
from behrt_jax.training.checkpoints import Checkpoints
from behrt_jax.training.optimizer import (
    count_trained,
    layer_lr_scales,
    make_optimizer,
    make_schedule,
    stop_frozen_gradients,
)
from behrt_jax.training.state import TrainState
from behrt_jax.training.workdir import initialize
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


def classifier(encoder):
    return BEHRTForSequenceClassification(tiny.config(num_layers=3, pooling="attention", encoder=encoder), 2)


def small(names=("embedding", "encoder/block_0", "encoder/block_1", "encoder/norm", "attention_pooling")):
    """Parameters of a few layers, as a model with a head names them."""
    paths = [*(f"behrt/{name}" for name in names), "head"]
    rng = np.random.default_rng(0)
    flat = {f"params/{path}/kernel": rng.normal(size=(3, 2)).astype(np.float32) for path in paths}
    return unflatten_dict({**flat, "params/head/bias": np.ones(2, np.float32)}, sep="/")


@pytest.mark.parametrize("encoder", ["transformer", "lstm"])
def test_the_rate_falls_from_the_head_to_the_embeddings(encoder):
    shapes = jax.eval_shape(functools.partial(initialize, classifier(encoder)), jax.random.key(0))
    found = flatten_dict(layer_lr_scales(shapes, decay=0.5), sep="/")
    expected = {"head": 1, "attention_pooling": 1, "encoder/norm": 1, "embedding": 0.5**4}
    expected |= {f"{name}_{n}": 0.5 ** (3 - n) for name in ("block", "layer") for n in range(3)}
    for path, scale in found.items():
        (matching,) = {value for part, value in expected.items() if f"/{part}/" in path}
        assert scale == matching, path
    assert set(found.values()) == {1, 0.5, 0.25, 0.125, 0.0625}


def test_without_decay_all_rates_are_the_same():
    assert set(jax.tree.leaves(layer_lr_scales(small()))) == {1.0}


def test_a_frozen_encoder_leaves_the_head_the_pooling_and_factors_to_learn():
    factors = {"params": {"behrt": {"encoder": {"block_0": {"kernel": {"lora_a": np.ones((2, 2))}}}}}}
    found = flatten_dict(layer_lr_scales({"base": small(), "factors": factors}, 0.5, "encoder"), sep="/")
    expected = {path: float("head" in path or "pooling" in path) for path in found}
    assert found == {**expected, "factors/params/behrt/encoder/block_0/kernel/lora_a": 0.25}
    assert sum(expected.values()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 0.0}, "layer_decay: found 0.0; expected more than 0 and at most 1"),
        ({"decay": 1.5}, "layer_decay: found 1.5"),
        ({"freeze": "blocks"}, "freeze: found 'blocks'; expected one of none, encoder"),
    ],
)
def test_wrong_scales_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        layer_lr_scales(PARAMS, **arguments)


def run(scales, params, **overrides):
    """Parameters and optimizer state after three updates with gradients of 1."""
    optimizer = make_optimizer(tiny.optimizer_config(**overrides), 10, scales=scales)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state)
    return params, state


def test_frozen_parameters_are_bit_identical_after_updates_and_have_no_moments():
    after, state = run(functools.partial(layer_lr_scales, freeze="encoder"), small(), weight_decay=0.5)
    flat = flatten_dict(after, sep="/")
    trained = [path for path in flat if "/head/" in path or "/attention_pooling/" in path]
    for path, leaf in flatten_dict(small(), sep="/").items():
        same = np.asarray(flat[path]) == leaf
        assert not same.any() if path in trained else same.all(), path
    assert len(jax.tree.leaves(optax.tree_utils.tree_get(state, "mu"))) == len(trained) == 3


def test_gradients_of_frozen_parameters_do_not_count_in_clipping():
    optimizer = make_optimizer(
        tiny.optimizer_config(clip_norm=10.0), 10, scales=functools.partial(layer_lr_scales, freeze="encoder")
    )
    params = small(("embedding",))
    grads = jax.tree.map(jnp.ones_like, params)
    grads["params"]["behrt"]["embedding"]["kernel"] *= 1e6
    _, state = optimizer.update(grads, optimizer.init(params), params)
    for moment in jax.tree.leaves(optax.tree_utils.tree_get(state, "mu")):
        np.testing.assert_allclose(moment, 0.1, rtol=1e-6)


def test_updates_are_scaled_after_adam_and_decay():
    """What adam would do, times the scale; with none of it the optimizer is the plain one."""
    params, grads = small(), tiny.scattered(jax.tree.map(np.zeros_like, small()))
    scales = functools.partial(layer_lr_scales, decay=0.5)

    def updates(**arguments):
        optimizer = make_optimizer(tiny.optimizer_config(weight_decay=0.3), 10, **arguments)
        return jax.jit(lambda: optimizer.update(grads, optimizer.init(params), params)[0])()

    plain, scaled = updates(), updates(scales=scales)
    jax.tree.map(lambda a, b, scale: np.testing.assert_allclose(b, a * scale, rtol=1e-6), plain, scaled, scales(params))


@pytest.mark.usefixtures("no_messages")
def test_a_frozen_run_is_saved_and_restored(tmp_path):
    params, opt_state = run(functools.partial(layer_lr_scales, freeze="encoder"), small())
    state = TrainState(jnp.asarray(3, jnp.int32), params, opt_state)
    checkpoints = Checkpoints(tmp_path / "checkpoints", "loss")
    checkpoints.save(state, {"loss": 1.0})
    found = checkpoints.restore_newest(jax.eval_shape(lambda: state))
    checkpoints.close()
    assert jax.tree.structure(found) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, found, state)


def test_held_parameters_get_no_gradient_and_the_others_theirs():
    scales = {"kernel": 0.0, "scale": 0.3}

    def loss(params):
        held = stop_frozen_gradients(params, scales)
        return (held["kernel"] ** 2).sum() + (held["scale"] ** 2).sum()

    found = jax.grad(loss)(PARAMS)
    assert not found["kernel"].any()
    np.testing.assert_array_equal(found["scale"], 2 * PARAMS["scale"])


def with_codes():
    """Parameters of a few layers and a code table of six rows."""
    params = small()
    params["params"]["behrt"]["embedding"]["codes"] = {"embedding": np.full((6, 2), 3.0, np.float32)}
    return params


@pytest.mark.parametrize("freeze", ["none", "encoder"])
def test_added_rows_of_the_code_table_learn_though_the_encoder_is_frozen(freeze):
    """Nothing else of the encoder moves, neither by decay nor where it has a gradient."""
    scales = functools.partial(layer_lr_scales, decay=0.5, freeze=freeze, num_new_codes=2)
    found = flatten_dict(scales(with_codes()), sep="/")[f"params{CODE_TABLE}"]
    np.testing.assert_array_equal(np.broadcast_to(found, (6, 1))[:, 0], [0.125 * (freeze == "none")] * 4 + [0.125] * 2)
    after, _ = run(scales, with_codes(), weight_decay=0.5)
    moved = flatten_dict(jax.tree.map(lambda a, b: np.asarray(a) != b, after, with_codes()), sep="/")
    for path, leaf in moved.items():
        learns = np.full(leaf.shape, freeze == "none" or "/head/" in path or "/attention_pooling/" in path)
        if path.endswith(CODE_TABLE):
            learns[4:] = True
        np.testing.assert_array_equal(leaf, learns, path)
    sizes = jax.tree.map(count_trained, with_codes(), scales(with_codes()))
    assert sum(jax.tree.leaves(sizes)) == sum(part.sum() for part in moved.values())


def test_no_gradient_reaches_held_rows():
    scales = {"kernel": np.array([[0.0], [0.5]]), "scale": 0.0}
    found = jax.grad(lambda params: sum((leaf**2).sum() for leaf in stop_frozen_gradients(params, scales).values()))(
        PARAMS
    )
    np.testing.assert_array_equal(found["kernel"], [[0, 0, 0], [4, 4, 4]])
    assert not found["scale"].any()
