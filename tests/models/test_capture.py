"""Attention weights on request, and matrix products in bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax.data.batches import training_batches
from behrt_jax.models.behrt import BEHRT, encode
from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.inputs import device_columns
from behrt_jax.models.pretraining import BEHRTForMLM
from behrt_jax.objectives import mlm
from behrt_jax.training.loop import make_train_step
from behrt_jax.training.optimizer import make_optimizer
from tests import tiny
from tests.models.drawn import apply, parameters

BATCH = tiny.packed_batch([[5, 4, 3], [7]], 16)
REAL = BATCH["patient_ids"] != 0


pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


@functools.cache
def captured(model, params_of=None):
    params = parameters(params_of or model)
    call = jax.jit(functools.partial(encode, model, capture_attention=True))
    return tuple(np.asarray(part) for part in call(params, *tiny.columns(BATCH), **tiny.named(BATCH)))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(BEHRT(tiny.config(num_layers=3)), id="three layers"),
        pytest.param(BEHRT(tiny.config(causal=True)), id="causal", marks=pytest.mark.slow),
        pytest.param(BEHRTForMLM(tiny.config()), id="mlm", marks=pytest.mark.slow),
        pytest.param(BEHRTForSequenceClassification(tiny.config(pooling="attention")), id="classification"),
    ],
)
def test_capturing_leaves_the_states_as_they_are(model):
    method = {} if isinstance(model, BEHRT) else {"method": "encode"}
    hidden, weights = captured(model)
    np.testing.assert_allclose(hidden, apply(model, BATCH, **method), atol=1e-6)
    assert weights.shape == (model.config.num_layers, 2, 2, 16, 16) and weights.dtype == np.float32


@pytest.mark.parametrize("causal", [False, True])
def test_weights_of_a_token_sum_to_one_within_its_patient(causal):
    _, weights = captured(BEHRT(tiny.config(num_layers=3, causal=causal)))
    rows = weights.transpose(1, 3, 0, 2, 4)[REAL]  # (tokens, layers, heads, keys)
    np.testing.assert_allclose(rows.sum(axis=-1), 1.0, atol=1e-5)
    ids, visits = BATCH["patient_ids"], BATCH["visit_ids"]
    seen = (ids[:, :, None] == ids[:, None, :]) & REAL[:, None, :]
    if causal:
        seen &= visits[:, None, :] <= visits[:, :, None]
    seen = np.broadcast_to(seen[:, None], weights.shape[1:])
    inside = np.broadcast_to(REAL[:, None, :, None], weights.shape[1:])
    for layer in weights:
        assert not layer[inside & ~seen].any()
        assert (layer[inside & seen] > 0).all()


@pytest.mark.slow
def test_twelve_layers_come_in_order():
    """Layer 10 after 9, not after 1: each layer's weights are those that the layers below it would give alone."""
    model = BEHRT(tiny.config(num_layers=12))
    params = parameters(model)["params"]
    _, weights = captured(model)
    call = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    _, state = call({"params": params}, *tiny.columns(BATCH), **tiny.named(BATCH))
    blocks = state["intermediates"]["encoder"]
    for layer in range(12):
        (expected,) = blocks[f"block_{layer}"]["attention"]["weights"]
        np.testing.assert_allclose(weights[layer], expected, atol=2e-5)
    short = BEHRT(tiny.config(num_layers=11))
    cut = {**params, "encoder": {name: part for name, part in params["encoder"].items() if name != "block_11"}}
    _, first = jax.jit(functools.partial(encode, short, capture_attention=True))(
        {"params": cut}, *tiny.columns(BATCH), **tiny.named(BATCH)
    )
    np.testing.assert_allclose(weights[:11], first, atol=1e-5)
    assert min(np.abs(weights[i] - weights[j]).max() for i in range(12) for j in range(i)) > 1e-2


def test_an_lstm_has_no_weights_to_capture():
    model = BEHRT(tiny.config(encoder="lstm"))
    with pytest.raises(ValueError, match="^capture_attention: model.encoder='lstm' has no attention"):
        encode(model, parameters(model), *tiny.columns(BATCH), **tiny.named(BATCH), capture_attention=True)
    plain = encode(model, parameters(model), *tiny.columns(BATCH), **tiny.named(BATCH))
    assert plain.shape == (2, 16, 16)


def test_capture_costs_nothing_where_it_is_off():
    model = BEHRT(tiny.config(num_layers=3))
    columns, named = tiny.columns(BATCH), tiny.named(BATCH)

    def outputs(**arguments):
        call = functools.partial(encode, model, **arguments)
        (compiled,) = jax.make_jaxpr(lambda params: call(params, *columns, **named))(parameters(model)).eqns
        return compiled.params["jaxpr"]

    off, default, on = outputs(capture_attention=False), outputs(), outputs(capture_attention=True)
    assert str(off) == str(default)
    assert [value.shape for value in off.out_avals] == [(2, 16, 16)]
    assert [value.shape for value in on.out_avals] == [(2, 16, 16), (3, 2, 2, 16, 16)]
    assert len(off.eqns) < len(on.eqns)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *columns, **named)
    assert set(shapes) == {"params"}


# bfloat16.
def fifty_tokens():
    return tiny.packed_batch([[20, 25], [50]], 50)


@pytest.mark.parametrize("overrides", [{}, {"rotary": "positions", "visit_bias": True}])
def test_bfloat16_is_within_two_percent_of_float32(overrides):
    batch = fifty_tokens()
    models = [BEHRT(BEHRTConfig.small(tiny.VOCAB_SIZE, dtype=dtype, **overrides)) for dtype in ("float32", "bfloat16")]
    params = parameters(models[0])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, parameters(models[1]))
    real = batch["patient_ids"] != 0
    full, half = (apply(model, batch, params) for model in models)
    assert full.dtype == half.dtype == np.float32
    difference = np.linalg.norm((half - full)[real]) / np.linalg.norm(full[real])
    assert 1e-4 < difference < 0.02


def test_in_bfloat16_parameters_states_and_weights_are_float32():
    model = BEHRTForMLM(tiny.config(dtype="bfloat16"))
    columns, named = tiny.columns(BATCH), tiny.named(BATCH)
    params = jax.eval_shape(model.init, jax.random.key(0), *columns, **named)
    found = jax.eval_shape(functools.partial(encode, model, capture_attention=True), params, *columns, **named)
    logits = jax.eval_shape(model.apply, params, *columns, **named)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, found, logits))} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(model.apply)(params, *columns, **named))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert sum("bf16" in line for line in products) >= 4  # the blocks' products are in bfloat16


@pytest.mark.slow
def test_training_in_bfloat16_is_training_in_float32_within_noise(bundled, bundled_train):
    """200 steps on the bundled patients; noise is what the mean of the last 50 losses varies by."""
    means = {}
    for dtype in ("float32", "bfloat16"):
        sizes = {"embedding_dim": 32, "hidden_dim": 64, "num_heads": 2, "feedforward_dim": 128}
        choices = {"max_positions": 256, "visit_bias": True, "rotary": "positions", "dtype": dtype}
        model = BEHRTForMLM(BEHRTConfig(len(bundled.vocabulary), num_layers=2, **sizes, **choices))
        optimizer = make_optimizer(tiny.optimizer_config(learning_rate=4e-3), 200)
        objective = mlm.make_objective(model, tiny.objective_config(mask_rate=0.3))
        train_step = make_train_step(objective, optimizer, 0)
        state, losses = tiny.initial_state(model, optimizer), []
        for _, batch in zip(range(200), training_batches(bundled_train, 256, 4, 0), strict=False):
            state, metrics = train_step(state, device_columns(batch))
            losses.append(metrics["mlm/loss"])
        totals = np.array(jax.device_get(losses))
        means[dtype] = float(totals[-50:, 0].sum() / totals[-50:, 1].sum())
        assert means[dtype] < 0.8 * float(totals[0, 0] / totals[0, 1])
    assert means["float32"] != means["bfloat16"]
    assert abs(means["bfloat16"] - means["float32"]) < 0.05 * means["float32"]
