"""Low-rank adaptation: the base model at first, factors alone that learn, and what is merged is what is applied."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from behrt_jax.finetuning import setup
from behrt_jax.models import lora
from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.objectives import classification
from behrt_jax.training.loop import make_train_step
from behrt_jax.training.optimizer import layer_lr_scales, make_optimizer, stop_frozen_gradients
from behrt_jax.training.state import TrainState
from tests import tiny
from tests.models.drawn import parameters

LAYERS = ("attention/output", "attention/qkv", "feedforward/input", "feedforward/output")


pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


def classifier(**overrides):
    return BEHRTForSequenceClassification(tiny.config(**overrides), num_labels=1)


def factors_of(params, rank=2, seed=0, drawn=False):
    """Factors as they begin, or drawn so that they change something."""
    factors = lora.initialize(params, rank, jax.random.key(seed))
    return tiny.scattered(factors) if drawn else factors


def assert_identical(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_dense_layer_of_the_blocks_is_adapted_and_nothing_else():
    params = parameters(classifier(num_layers=2))
    factors = flatten_dict(factors_of(params, rank=3), sep="/")
    blocks = [f"params/behrt/encoder/block_{number}/" for number in (0, 1)]
    expected = {f"{block}{layer}/kernel/lora_{x}" for block in blocks for layer in LAYERS for x in "ab"}
    assert set(factors) == expected
    assert factors["params/behrt/encoder/block_0/attention/qkv/kernel/lora_a"].shape == (16, 3)
    assert factors["params/behrt/encoder/block_0/attention/qkv/kernel/lora_b"].shape == (3, 48)


def test_it_begins_as_the_base_with_a_random_and_b_zero():
    params = parameters(classifier())
    factors = factors_of(params)
    assert_identical(jax.jit(lora.merge)(params, factors, 4.0), params)
    parts = flatten_dict(factors)
    first = [leaf for path, leaf in parts.items() if path[-1] == "lora_a"]
    assert not any(leaf.any() for path, leaf in parts.items() if path[-1] == "lora_b")
    assert np.std(np.concatenate([np.ravel(leaf) for leaf in first])) == pytest.approx(16**-0.5, rel=0.15)
    assert len({float(leaf.ravel()[0]) for leaf in first}) == len(first)  # each its own
    assert_identical(factors, factors_of(params))
    assert float(jax.tree.leaves(factors_of(params, seed=1))[0][0, 0]) != float(jax.tree.leaves(factors)[0][0, 0])


def test_merging_is_applying_both_ways():
    """x (W + scale A B) = x W + scale (x A) B, and all but the kernels stays."""
    params = parameters(classifier())
    factors = factors_of(params, drawn=True)
    merged = flatten_dict(jax.jit(lora.merge, static_argnums=2)(params, factors, 0.5), sep="/")
    before, parts = flatten_dict(params, sep="/"), flatten_dict(factors, sep="/")
    rng = np.random.default_rng(0)
    for path, kernel in before.items():
        if f"{path}/lora_a" not in parts:
            np.testing.assert_array_equal(merged[path], kernel)
            continue
        x = rng.normal(size=(5, len(kernel))).astype(np.float32)
        expected = x @ kernel + 0.5 * (x @ parts[f"{path}/lora_a"]) @ parts[f"{path}/lora_b"]
        np.testing.assert_allclose(x @ merged[path], expected, atol=1e-5)
        assert np.linalg.matrix_rank(merged[path] - kernel, tol=1e-4) == 2


@pytest.mark.parametrize("shape", [(6, 2, 4), (2, 4, 6)])
def test_kernels_of_more_axes_are_matrices_too(shape):
    params = {"dense": {"kernel": np.random.default_rng(0).normal(size=shape).astype(np.float32)}}
    factors = tiny.scattered(lora.initialize(params, 2, jax.random.key(0), "/dense/kernel$"))
    found = lora.merge(params, factors, 2.0)["dense"]["kernel"]
    a, b = factors["dense"]["kernel"]["lora_a"], factors["dense"]["kernel"]["lora_b"]
    expected = params["dense"]["kernel"].reshape(shape[0], -1) + 2.0 * a @ b
    np.testing.assert_allclose(found, expected.reshape(shape), rtol=1e-6)


@pytest.mark.slow
def test_only_the_factors_and_the_head_learn_and_the_loss_falls():
    model = classifier()
    settings = classification.ClassificationConfig("binary", "none", 0.0)
    objective = setup.adapt_objective(classification.make_objective(model, settings), scale=1.0)
    scales = functools.partial(layer_lr_scales, freeze="encoder")
    held = objective._replace(
        measure=lambda params, *rest: objective.measure(stop_frozen_gradients(params, scales(params)), *rest)
    )
    optimizer = make_optimizer(tiny.optimizer_config(learning_rate=3e-2, weight_decay=0.1), 30, scales=scales)
    base = parameters(model)
    params = {"base": base, "factors": factors_of(base)}
    begin = jax.tree.map(np.array, params)
    batch = tiny.packed_batch([[6, 5], [8]], 12)
    batch |= {"targets": np.array([[1, 0], [1, 0]], np.float32), "weights": np.array([[1, 1], [1, 0]], np.float32)}
    step = make_train_step(held, optimizer, seed=0)
    state, losses = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params)), []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["classification/loss"][0]))
    assert losses[-1] < 0.5 * losses[0]
    for path, leaf in flatten_dict(state.params, sep="/").items():
        moved = (np.asarray(leaf) != flatten_dict(begin, sep="/")[path]).any()
        assert moved == (path.startswith("factors/") or "/head/" in path), path


def test_gradients_reach_b_first():
    """With B zero nothing reaches A; with B drawn, both learn."""
    params = {"dense": {"kernel": jnp.ones((4, 3))}}
    objective = types.SimpleNamespace(
        measure=lambda params, prepared, key: (params["dense"]["kernel"] * prepared).sum(), _replace=lambda **new: new
    )
    measure = setup.adapt_objective(objective, 2.0)["measure"]
    factors = lora.initialize(params, 2, jax.random.key(0), "kernel")
    weights = jnp.arange(12.0).reshape(4, 3)

    def slope(factors):
        grads = jax.grad(lambda factors: measure({"base": params, "factors": factors}, weights, None))(factors)
        return grads["dense"]["kernel"]

    at_first, later = slope(factors), slope(tiny.scattered(factors))
    assert not at_first["lora_a"].any() and later["lora_a"].any()
    np.testing.assert_allclose(at_first["lora_b"], 2 * factors["dense"]["kernel"]["lora_a"].T @ weights, rtol=1e-5)


@pytest.mark.parametrize("rank", [0, -1, 17])
def test_a_rank_that_does_not_fit_is_named(rank):
    with pytest.raises(ValueError, match=f"lora.rank: found {rank}; expected 1 to 16, a side of the kernels"):
        factors_of(parameters(classifier()), rank)


def test_a_model_without_blocks_cannot_be_adapted():
    with pytest.raises(ValueError, match="lora: found no kernel whose path has .* an LSTM has none"):
        factors_of(parameters(classifier(encoder="lstm")))
