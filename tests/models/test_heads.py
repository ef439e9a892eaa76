"""Heads: what they return, what they share with the encoder, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax.models.behrt import (
    BEHRT,
    BEHRTForMLM,
    BEHRTForNextVisitPrediction,
    BEHRTForSequenceClassification,
    encode,
)
from behrt_jax.models.heads import ClassificationHead
from tests import tiny
from tests.models.drawn import apply, parameters

PACKED = tiny.packed_batch([[5, 4, 3], [7]], 16)
PLAIN = tiny.packed_batch([[5], [16]], 16)
V, D = tiny.VOCAB_SIZE, 16
HEADS = (BEHRTForMLM, BEHRTForNextVisitPrediction, BEHRTForSequenceClassification)


pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


def causal(**overrides):
    return BEHRTForNextVisitPrediction(tiny.config(causal=True, **overrides))


def shape(model, batch, **arguments):
    call = functools.partial(model.apply, **arguments)
    return jax.eval_shape(
        lambda params: call(params, *tiny.columns(batch), **tiny.named(batch)), parameters(model)
    ).shape


def test_shapes_of_plain_rows():
    places = np.array([[0, 2, 4], [1, 15, 3]])
    assert shape(BEHRT(tiny.config()), PLAIN) == (2, 16, D)
    assert shape(BEHRTForMLM(tiny.config()), PLAIN) == (2, 16, V)
    assert shape(BEHRTForMLM(tiny.config()), PLAIN, masked_positions=places) == (2, 3, V)
    assert shape(BEHRTForNextVisitPrediction(tiny.config()), PLAIN) == (2, V)
    assert shape(causal(), PLAIN, visit_ends=places) == (2, 3, V)
    assert shape(BEHRTForSequenceClassification(tiny.config()), PLAIN) == (2, 1)
    assert shape(BEHRTForSequenceClassification(tiny.config(), 7), PLAIN) == (2, 7)


def test_shapes_of_packed_rows():
    places = np.array([[4, 8], [6, 0]])
    assert shape(BEHRTForMLM(tiny.config()), PACKED, masked_positions=places) == (2, 2, V)
    assert shape(BEHRTForNextVisitPrediction(tiny.config()), PACKED, num_patients=3) == (2, 3, V)
    assert shape(causal(), PACKED, visit_ends=places) == (2, 2, V)
    for pooling in ("cls", "mean", "max", "attention"):
        model = BEHRTForSequenceClassification(tiny.config(pooling=pooling), 4)
        assert shape(model, PACKED, num_patients=5) == (2, 5, 4)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_stands_on_the_hidden_states_of_the_encoder_alone(head):
    model = head(tiny.config())
    params = parameters(model)
    bare = {"params": params["params"]["behrt"]}
    hidden = apply(BEHRT(model.config), PACKED, bare)
    np.testing.assert_array_equal(apply(model, PACKED, method="encode"), hidden)
    found = jax.jit(functools.partial(encode, model))(params, *tiny.columns(PACKED), **tiny.named(PACKED))
    np.testing.assert_allclose(found, hidden, atol=1e-5)


def test_scores_at_masked_positions_are_those_of_the_whole_row():
    model, places = BEHRTForMLM(tiny.config()), np.array([[8, 0, 3], [1, 1, 6]])
    found = apply(model, PACKED, masked_positions=places)
    np.testing.assert_allclose(found, apply(model, PACKED)[np.arange(2)[:, None], places], atol=1e-5)


def test_scores_after_a_visit_are_those_of_a_history_that_ends_there():
    """A causal model that pools the last token of the cut history would say the same: its state has seen no more."""
    model = causal()
    batch = tiny.packed_batch([[12]], 16)
    ends = np.flatnonzero(np.diff(batch["visit_ids"][0, :12], append=99))
    assert len(ends) > 2
    found = apply(model, batch, visit_ends=ends[None])
    for number, end in enumerate(ends):
        cut = {name: values[:, : end + 1] for name, values in batch.items() if name not in ("patient_index", "first_visits")}
        cut = {name: np.pad(values, ((0, 0), (0, 15 - end))) for name, values in cut.items()}
        last = apply(model, cut, visit_ends=np.full_like(ends[None], end))
        np.testing.assert_allclose(found[0, number], last[0, 0], atol=1e-5)


@pytest.mark.parametrize("overrides", [{}, {"encoder": "hierarchical"}])
def test_visits_that_see_what_they_would_predict_are_refused(overrides):
    model = BEHRTForNextVisitPrediction(tiny.config(**overrides))
    ends = np.array([[4], [6]])
    with pytest.raises(ValueError, match="^visit_ends: this model sees the visits .* expected model.causal=True"):
        apply(model, PACKED, visit_ends=ends)


@pytest.mark.parametrize("overrides", [{"encoder": "lstm"}, {"encoder": "hierarchical", "causal": True}])
def test_other_encoders_that_do_not_see_the_future_score_after_visits(overrides):
    model = BEHRTForNextVisitPrediction(tiny.config(**overrides))
    assert apply(model, PACKED, visit_ends=np.array([[4], [6]])).shape == (2, 1, V)


@pytest.mark.parametrize("head", [BEHRTForMLM, BEHRTForNextVisitPrediction])
def test_the_output_layer_is_the_code_table(head):
    """A new row of the table moves the logit of its own code alone, as that code is not in the batch."""
    model = head(tiny.config())
    params = parameters(model)
    code = next(code for code in range(5, V) if code not in PLAIN["codes"])
    table = params["params"]["behrt"]["embedding"]["codes"]["embedding"]
    moved = jax.tree.map(lambda leaf: leaf, params)
    moved["params"]["behrt"]["embedding"]["codes"]["embedding"] = jnp.asarray(table).at[code].add(np.linspace(-1, 1, 8))
    before, after = apply(model, PLAIN), apply(model, PLAIN, moved)
    changed = (before != after).reshape(-1, V)
    np.testing.assert_array_equal(changed.any(axis=0), np.arange(V) == code)
    shapes = {leaf.shape for leaf in jax.tree.leaves(params["params"]["head"])}
    assert shapes == {(D, 8), (8,), (V,)}  # the transform, its bias and norm, and the bias of the scores


def test_the_bias_of_the_scores_is_added_to_each_code():
    model = BEHRTForNextVisitPrediction(tiny.config())
    params = parameters(model)
    moved = jax.tree.map(lambda leaf: leaf, params)
    moved["params"]["head"]["bias"] += jnp.arange(float(V))
    difference = apply(model, PLAIN, moved) - apply(model, PLAIN)
    np.testing.assert_allclose(difference, np.tile(np.arange(V), (2, 1)), atol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "attention"])
def test_a_classifier_is_linear_in_the_patient_embedding(pooling):
    model = BEHRTForSequenceClassification(tiny.config(pooling=pooling), 3)
    weights = parameters(model)["params"]["head"]["output"]
    pooled = apply(model, PACKED, num_patients=3, method="get_patient_embedding")
    expected = pooled @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])
    np.testing.assert_allclose(apply(model, PACKED, num_patients=3), expected, atol=1e-5)


def test_the_pooling_of_the_config_is_that_of_the_head():
    found = []
    for pooling in ("cls", "mean", "max"):
        model = BEHRTForSequenceClassification(tiny.config(pooling=pooling))
        found.append(apply(model, PLAIN, parameters(BEHRTForSequenceClassification(tiny.config()))))
    assert len({array.tobytes() for array in found}) == 3


@pytest.mark.parametrize("num_labels", [0, -1])
def test_a_classifier_has_labels(num_labels):
    model = BEHRTForSequenceClassification(tiny.config(), num_labels)
    with pytest.raises(ValueError, match=f"^num_labels: found {num_labels}; expected 1 or more"):
        model.init(jax.random.key(0), *tiny.columns(PLAIN), **tiny.named(PLAIN))


def test_a_head_refuses_packed_rows_without_num_patients():
    for head in (BEHRTForNextVisitPrediction, BEHRTForSequenceClassification):
        model = head(tiny.config())
        with pytest.raises(ValueError, match="attention_mask: found patients up to 3 in a row, but num_patients=None"):
            shape(model, PACKED)


def test_dropout_is_drawn_in_encoder_and_head_unless_deterministic():
    model = BEHRTForSequenceClassification(tiny.config(dropout=0.5))
    call = jax.jit(functools.partial(model.apply, deterministic=False))

    def drawn(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(call(parameters(model), *tiny.columns(PLAIN), **tiny.named(PLAIN), rngs=rngs))

    assert np.array_equal(drawn(0), drawn(0)) and not np.array_equal(drawn(0), drawn(1))
    assert not np.array_equal(drawn(0), apply(model, PLAIN))


def test_the_classifier_drops_of_the_patient_embedding():
    model = BEHRTForSequenceClassification(tiny.config(dropout=0.5))
    head, params = ClassificationHead(model.config, 1), {"params": parameters(model)["params"]["head"]}
    pooled = np.random.default_rng(0).standard_normal((200, D)).astype(np.float32)
    dropped = head.apply(params, pooled, False, rngs={"dropout": jax.random.key(0)})
    assert (np.asarray(dropped) != np.asarray(head.apply(params, pooled, True))).mean() > 0.9
