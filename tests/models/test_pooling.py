"""From tokens to patients: each pooling against a loop, and in the model against each patient alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax.models.behrt import BEHRT
from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.models.pooling import POOLS, AttentionPooling, membership
from behrt_jax.models.pretraining import BEHRTForMLM
from tests import tiny
from tests.models.drawn import apply, parameters

POOLINGS = ("cls", "last", "mean", "max", "attention")
# Two rows for three patients: the first holds 1, 2 and 3 with padding between, the second 2 alone, the third nothing.
PATIENT_IDS = np.array([[1, 1, 1, 0, 2, 3, 3, 0], [0, 0, 2, 2, 2, 0, 0, 0], [0] * 8])


pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


def states(seed=0, width=5):
    return np.random.default_rng(seed).standard_normal((*PATIENT_IDS.shape, width)).astype(np.float32) - 1.0


def pool(name, hidden, num_patients=3, patient_ids=PATIENT_IDS):
    """Pools by name; returns (B, P, D) and the scores that attention learned (zeros for the others)."""
    members = membership(jnp.asarray(patient_ids), num_patients)
    if name == "attention":
        module = AttentionPooling()
        params = tiny.scattered(module.init(jax.random.key(0), hidden, members), scale=1.0)
        scores = hidden @ np.asarray(params["params"]["scores"]["kernel"])[:, 0]
        return np.asarray(module.apply(params, hidden, members)), scores
    return np.asarray(POOLS[name](jnp.asarray(hidden), members)), np.zeros(hidden.shape[:2])


def by_loop(name, hidden, scores, num_patients=3):
    pooled = np.zeros((len(hidden), num_patients, hidden.shape[-1]))
    for row in range(len(hidden)):
        for patient in range(1, num_patients + 1):
            own = hidden[row][PATIENT_IDS[row] == patient]
            if not len(own):
                continue
            weights = np.exp(scores[row][PATIENT_IDS[row] == patient])
            pooled[row, patient - 1] = {
                "cls": own[0],
                "last": own[-1],
                "mean": own.mean(axis=0),
                "max": own.max(axis=0),
                "attention": weights @ own / weights.sum(),
            }[name]
    return pooled


def test_members_by_hand():
    found = np.asarray(membership(jnp.array([[1, 0, 3, 3]]), 3))
    np.testing.assert_array_equal(found, [[[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]])
    assert found.dtype == bool


@pytest.mark.parametrize("name", POOLINGS)
def test_each_pooling_equals_a_loop_over_patients(name):
    hidden = states()
    found, scores = pool(name, hidden)
    np.testing.assert_allclose(found, by_loop(name, hidden, scores), atol=1e-6)


def test_attention_weighs_by_its_scores():
    hidden = states()
    found, _ = pool("attention", hidden)
    assert np.abs(found - pool("mean", hidden)[0]).max() > 0.1


@pytest.mark.parametrize("name", POOLINGS)
def test_patients_without_tokens_and_rows_of_padding_give_zeros(name):
    found, _ = pool(name, states(), num_patients=4)
    assert not found[0, 3].any() and not found[1, [0, 2, 3]].any() and not found[2].any()
    assert found[0, :3].any(axis=-1).all() and found[1, 1].any()


@pytest.mark.parametrize("name", POOLINGS)
def test_a_constant_sequence_pools_to_the_constant(name):
    constant = np.array([-3.0, 0.0, 2.5, 1e-3, 40.0], np.float32)
    hidden = np.where((PATIENT_IDS != 0)[..., None], constant, 7.0).astype(np.float32)
    found, _ = pool(name, hidden)
    real = np.array([[1, 1, 1], [0, 1, 0], [0, 0, 0]], bool)
    np.testing.assert_allclose(found[real], np.broadcast_to(constant, (4, 5)), rtol=1e-6)


@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooled_patient_is_its_own_tokens_alone(name):
    hidden = states()
    moved = np.where((PATIENT_IDS == 2)[..., None], hidden, 1e3 * states(1)).astype(np.float32)
    before, after = (pool(name, each)[0] for each in (hidden, moved))
    np.testing.assert_array_equal(before[[0, 1], 1], after[[0, 1], 1])
    assert not np.array_equal(before[0, 0], after[0, 0])


@pytest.mark.parametrize("name", POOLINGS)
def test_a_gradient_through_rows_of_padding_is_finite(name):
    members = membership(jnp.asarray(PATIENT_IDS), 4)
    module = AttentionPooling()
    params = module.init(jax.random.key(0), states(), members)
    functions = {**POOLS, "attention": functools.partial(module.apply, params)}
    grads = jax.grad(lambda hidden: functions[name](hidden, members).sum())(jnp.asarray(states()))
    assert np.isfinite(grads).all() and not np.asarray(grads)[PATIENT_IDS == 0].any()


# In the model.
@functools.cache
def model_of(**overrides):
    model = BEHRT(tiny.config(**overrides))
    return model, parameters(model, "attention")


def embedder(pooling, num_patients, **overrides):
    model, params = model_of(**overrides)
    method = {"method": "get_patient_embedding", "pooling": pooling}
    method |= {"num_patients": num_patients} if num_patients else {}
    return lambda batch: apply(model, batch, params, **method)


def alone(batch, row, patient):
    """Returns one patient of a packed batch as a row of its own, padded to the same length."""
    own = batch["patient_ids"][row] == patient
    single = {name: np.zeros((1, own.size), values.dtype) for name, values in batch.items() if name != "patient_index"}
    for name, values in single.items():
        values[0, : own.sum()] = batch[name][row, own]
    return single | {"patient_ids": (single["patient_ids"] > 0).astype(np.int32)}


@pytest.mark.parametrize(
    ("pooling", "overrides"),
    [
        *((pooling, {}) for pooling in POOLINGS),
        ("mean", {"encoder": "lstm"}),
        ("attention", {"causal": True}),
    ],
)
def test_embeddings_of_packed_patients_equal_those_of_each_alone(pooling, overrides):
    batch = tiny.packed_batch([[5, 4, 3], [7]], 16)
    packed = embedder(pooling, 3, **overrides)(batch)
    assert packed.shape == (2, 3, 16)
    for row, patient in ((0, 1), (0, 2), (0, 3), (1, 1)):
        single = embedder(pooling, None, **overrides)(alone(batch, row, patient))
        assert single.shape == (1, 16)
        np.testing.assert_allclose(packed[row, patient - 1], single[0], atol=1e-5)
    assert not packed[1, 1:].any()


@pytest.mark.parametrize("pooling", tiny.slow_but(["mean", "attention"], POOLINGS))
def test_one_patient_a_row_is_the_same_with_and_without_num_patients(pooling):
    batch = tiny.packed_batch([[5], [16], []], 16)
    plain, packed = embedder(pooling, None)(batch), embedder(pooling, 1)(batch)
    assert plain.shape == (3, 16) and packed.shape == (3, 1, 16)
    np.testing.assert_allclose(plain, packed[:, 0], atol=1e-6)
    assert not plain[2].any() and plain[0].any()


def test_the_model_pools_its_own_hidden_states():
    model, params = model_of()
    batch = tiny.packed_batch([[5, 4, 3], [7]], 16)
    hidden = apply(model, batch, params)
    own = hidden[0, 5:9]
    expected = {"cls": own[0], "last": own[-1], "mean": own.mean(axis=0), "max": own.max(axis=0)}
    for pooling, values in expected.items():
        np.testing.assert_allclose(embedder(pooling, 3)(batch)[0, 1], values, atol=1e-5)


def embed(model, params, batch, **arguments):
    """Calls the model on values that it can read, and computes nothing from them."""
    call = functools.partial(model.apply, method="get_patient_embedding", **arguments)
    return jax.eval_shape(lambda params: call(params, *tiny.columns(batch), **tiny.named(batch)), params)


def test_an_unknown_pooling_lists_the_poolings():
    with pytest.raises(ValueError, match="^pooling: found 'median'; expected one of cls, last, mean, max, attention"):
        embed(*model_of(), tiny.packed_batch([[4]], 8), pooling="median")


@pytest.mark.parametrize("overrides", [{"causal": True}, {"encoder": "lstm"}])
def test_a_first_token_that_sees_no_later_visit_is_no_patient(overrides):
    with pytest.raises(ValueError, match="pooling: found 'cls', but the first token of a causal model .* use mean"):
        embed(*model_of(**overrides), tiny.packed_batch([[4]], 8), pooling="cls")


def test_attention_pooling_needs_weights_that_were_learned():
    batch = tiny.packed_batch([[4]], 8)
    model, params = model_of()
    without = {"params": {name: part for name, part in params["params"].items() if name != "attention_pooling"}}
    message = "pooling: found 'attention', but the parameters hold no weights for it; .* model.pooling='attention'"
    with pytest.raises(ValueError, match=message):
        embed(model, without, batch, pooling="attention")
    plain = BEHRTForMLM(tiny.config())
    with pytest.raises(ValueError, match=message):
        embed(plain, parameters(plain), batch, pooling="attention")


def test_packed_rows_need_num_patients():
    batch = tiny.packed_batch([[4, 3], [2]], 8)
    for num_patients in (None, 1):
        message = (
            f"attention_mask: found patients up to 2 in a row, but num_patients={num_patients}; expected .*=2 or more"
        )
        with pytest.raises(ValueError, match=message):
            embed(*model_of(), batch, num_patients=num_patients)


@pytest.mark.parametrize("pooling", tiny.slow_but(["cls", "mean"], POOLINGS))
def test_models_with_a_head_embed_by_the_pooling_of_their_config(pooling):
    batch = tiny.packed_batch([[4, 3], [2]], 8)
    model = BEHRTForSequenceClassification(tiny.config(pooling=pooling))
    params, bare, other = parameters(model), BEHRT(model.config), "max" if pooling == "mean" else "mean"
    arguments = {"num_patients": 2, "method": "get_patient_embedding"}
    found, chosen = apply(model, batch, **arguments), apply(model, batch, **arguments, pooling=other)
    for name, pooled in ((pooling, found), (other, chosen)):
        expected = apply(bare, batch, {"params": params["params"]["behrt"]}, **arguments, pooling=name)
        np.testing.assert_allclose(pooled, expected, atol=1e-6)
    assert not np.allclose(found, chosen)
