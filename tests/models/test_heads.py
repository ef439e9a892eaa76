"""Heads: what they return, what they share with the encoder, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax.data import histories
from behrt_jax.models.behrt import BEHRT, encode
from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.models.config import CHOICES
from behrt_jax.models.heads import AGE_KNOTS, ClassificationHead, age_shares
from behrt_jax.models.pretraining import BEHRTForMLM, BEHRTForNextVisitPrediction, BEHRTForPretraining
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
    for pooling in CHOICES["pooling"]:
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
        cut = {name: values[:, : end + 1] for name, values in batch.items() if name != "patient_index"}
        cut = {name: np.pad(values, ((0, 0), (0, 15 - end))) for name, values in cut.items()}
        last = apply(model, cut, visit_ends=np.full_like(ends[None], end))
        np.testing.assert_allclose(found[0, number], last[0, 0], atol=1e-5)


ALL = ("mlm", "next_visit", "time_to_event")


def by_visit():
    """Patients whose visits end in known places."""
    batch = {name: values.copy() for name, values in PACKED.items()}
    batch["visit_ids"][0, :12] = [0, 0, 1, 1, 2, 0, 1, 1, 1, 0, 1, 1]
    batch["visit_ids"][1, :7] = [0, 0, 0, 1, 1, 2, 2]
    return batch


@pytest.mark.parametrize("encoder", ["transformer", "lstm"])
def test_visits_never_see_what_they_predict_whatever_the_config_says(encoder):
    """With `visit_ends` later visits change no score; with one state for the whole history they do."""
    model, batch, ends = BEHRTForNextVisitPrediction(tiny.config(encoder=encoder)), by_visit(), np.array([[3], [4]])
    later = {**batch, "codes": batch["codes"].copy()}
    later["codes"][0, 4], later["codes"][1, 5:7] = 17, 17
    before, after = (apply(model, each, visit_ends=ends) for each in (batch, later))
    np.testing.assert_array_equal(before, after)
    whole = (apply(model, each, num_patients=3) for each in (batch, later))
    assert (np.not_equal(*whole)[:, 0]).any(axis=1).all()


@pytest.mark.parametrize("encoder", ["transformer", "lstm"])
def test_causal_in_the_call_is_causal_in_the_config(encoder):
    batch = by_visit()
    plain, told = (BEHRT(tiny.config(encoder=encoder, causal=causal)) for causal in (False, True))
    params = parameters(plain)
    expected = apply(told, batch, params)
    np.testing.assert_array_equal(apply(plain, batch, params, causal=True), expected)
    np.testing.assert_array_equal(apply(told, batch, params, causal=False), apply(plain, batch, params))
    if encoder == "lstm":
        np.testing.assert_array_equal(apply(plain, batch, params), expected)
    else:
        assert not np.allclose(apply(plain, batch, params), expected, atol=1e-3)


def test_shapes_of_the_heads_of_pretraining():
    model, places = BEHRTForPretraining(tiny.config(), ALL, 4), np.array([[4, 8, 1], [6, 0, 0]])
    params = parameters(model)
    call = functools.partial(jax.eval_shape, functools.partial(model.apply, **tiny.named(PACKED)), params)
    assert call(*tiny.columns(PACKED)).shape == (2, 16, V)

    def of(method, **arguments):
        run = functools.partial(model.apply, method=method, **tiny.named(PACKED), **arguments)
        return jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype.name), jax.eval_shape(run, params, *tiny.columns(PACKED))
        )

    assert of("__call__", masked_positions=places) == ((2, 3, V), "float32")
    assert of("predict_next_visits", visit_ends=places) == (((2, 3, V), "float32"), ((2, 3), "float32"))
    assert of("predict_next_visits", visit_ends=places, causal=False)[0] == ((2, 3, V), "float32")
    assert of("predict_events", visit_ends=places) == ((2, 3, 4, V), "float32")
    assert of("score_all") == (
        ((2, 16, V), "float32"),
        (((2, 16, V), "float32"), ((2, 16), "float32")),
        ((2, 16, 4, V), "float32"),
    )


def test_a_head_of_pretraining_is_the_one_of_the_model_that_has_it_alone():
    """Masked codes as `BEHRTForMLM` scores them, next visits as `BEHRTForNextVisitPrediction` does after visits."""
    model, places = BEHRTForPretraining(tiny.config(), ALL, 2), np.array([[4, 8], [6, 0]])
    weights = parameters(model)["params"]

    def of(head):
        return {"params": {"behrt": weights["behrt"], "head": weights[head]}}

    masked = apply(model, PACKED, masked_positions=places)
    np.testing.assert_allclose(
        masked, apply(BEHRTForMLM(model.config), PACKED, of("mlm"), masked_positions=places), atol=1e-5
    )
    call = functools.partial(model.apply, method="predict_next_visits", visit_ends=places, **tiny.named(PACKED))
    codes, days = jax.jit(call)(parameters(model), *tiny.columns(PACKED))
    single = BEHRTForNextVisitPrediction(model.config)
    np.testing.assert_allclose(codes, apply(single, PACKED, of("next_visit"), visit_ends=places), atol=1e-5)
    states = apply(BEHRT(model.config), PACKED, {"params": weights["behrt"]}, causal=True)
    output = weights["next_days"]["output"]
    expected = states[np.arange(2)[:, None], places] @ output["kernel"][:, 0] + output["bias"][0]
    np.testing.assert_allclose(days, expected, atol=1e-5)


def test_a_head_that_is_not_there_is_named():
    calls = {"mlm": "__call__", "next_visit": "predict_next_visits", "time_to_event": "predict_events"}
    what = {"mlm": "codes behind masks", "next_visit": "next visits", "time_to_event": "events"}
    for missing, method in calls.items():
        others = tuple(name for name in ALL if name != missing)
        model = BEHRTForPretraining(tiny.config(), others, 2)
        ends = {} if missing == "mlm" else {"visit_ends": np.array([[4], [6]])}
        message = f"objectives: found {', '.join(others)}; expected {missing} among them to predict {what[missing]}: "
        with pytest.raises(ValueError, match=f"^{message}train with objective.name={missing} or joint"):
            model.apply(parameters(model), *tiny.columns(PACKED), **tiny.named(PACKED), **ends, method=method)


def test_gradients_reach_each_head_and_the_encoder_from_each():
    model = BEHRTForPretraining(tiny.config(), ALL, 2)
    heads = {"mlm": {"mlm"}, "next_visit": {"next_visit", "next_days"}, "time_to_event": {"time_to_event"}}

    @jax.jit
    def gradients(params):
        def loss(params, number):
            call = functools.partial(model.apply, method="score_all", **tiny.named(PACKED))
            found = jax.tree.leaves(call(params, *tiny.columns(PACKED))[number])
            return sum((leaf**2).mean() for leaf in found)

        return [jax.grad(loss)(params, number) for number in range(3)]

    for name, slopes in zip(ALL, gradients(parameters(model)), strict=True):
        assert {head for head in slopes["params"]} == {"behrt", "mlm", "next_visit", "next_days", "time_to_event"}
        for head, tree in slopes["params"].items():
            moved = [bool(np.any(leaf)) for leaf in jax.tree.leaves(tree)]
            assert all(moved) if head in heads[name] else head == "behrt" or not any(moved), (name, head)
        assert np.any(slopes["params"]["behrt"]["embedding"]["codes"]["embedding"])
        assert np.any(slopes["params"]["behrt"]["encoder"]["block_0"]["attention"]["qkv"]["kernel"])


def test_heads_begin_at_four_weeks_and_at_rare_events():
    model = BEHRTForPretraining(tiny.config(), ("next_visit", "time_to_event"), 2)
    shapes = jax.jit(functools.partial(model.init, method="score_all"))(
        jax.random.key(0), *tiny.columns(PLAIN), **tiny.named(PLAIN)
    )
    assert shapes["params"]["next_days"]["output"]["bias"] == pytest.approx(np.log(29))
    np.testing.assert_allclose(np.exp(shapes["params"]["time_to_event"]["log_rates"]), 1 / 36_525, rtol=1e-5)


@pytest.mark.slow
def test_an_lstm_scores_after_visits_though_its_config_is_not_causal():
    model = BEHRTForNextVisitPrediction(tiny.config(encoder="lstm"))
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


@pytest.mark.parametrize("pooling", CHOICES["pooling"])
def test_a_classifier_is_linear_in_the_patient_embedding(pooling):
    model = BEHRTForSequenceClassification(tiny.config(pooling=pooling), 3)
    weights = parameters(model)["params"]["head"]["output"]
    pooled = apply(model, PACKED, num_patients=3, method="get_patient_embedding")
    expected = pooled @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])
    np.testing.assert_allclose(apply(model, PACKED, num_patients=3), expected, atol=1e-5)


def test_the_pooling_of_the_config_is_that_of_the_head():
    found = []
    for pooling in ("cls", "last", "mean", "max"):
        model = BEHRTForSequenceClassification(tiny.config(pooling=pooling))
        found.append(apply(model, PLAIN, parameters(BEHRTForSequenceClassification(tiny.config()))))
    assert len({array.tobytes() for array in found}) == 4


def with_age_rates(params, seed=0):
    """The parameters with rates that rise and fall with age."""
    events = params["params"]["time_to_event"]
    drawn = np.random.default_rng(seed).standard_normal(events["age_rates"].shape)
    return {"params": {**params["params"], "time_to_event": {**events, "age_rates": drawn.astype(np.float32)}}}


def test_rates_by_age_are_linear_between_knots_and_those_of_unknown_age_have_none():
    model = BEHRTForPretraining(tiny.config(), ("time_to_event",), 3)
    params, ends = with_age_rates(parameters(model)), np.zeros((2, 1), int)
    flat = jax.tree.map(np.asarray, params)
    flat["params"]["time_to_event"]["age_rates"] = np.zeros_like(flat["params"]["time_to_event"]["age_rates"])
    table = params["params"]["time_to_event"]["age_rates"]

    def added(age):
        inputs = {**PLAIN, "ages": np.full(PLAIN["ages"].shape, age, np.float32)}
        given = {"visit_ends": ends, "method": "predict_events"}
        return apply(model, inputs, params, **given) - apply(model, inputs, flat, **given)

    none, between = 0 * table[0], 0.7 * table[4] + 0.3 * table[5]
    for age, expected in ((40, table[4]), (43, between), (130, table[10]), (np.nan, none)):
        np.testing.assert_allclose(added(age), np.broadcast_to(expected, (2, 1, 3, V)), atol=1e-5)


def test_shares_of_ages_are_those_that_the_data_counts_with():
    ages = np.array([0.0, 3.3, 10.0, 59.9, 100.0, 117.0, np.nan])
    np.testing.assert_array_equal(AGE_KNOTS, histories.AGE_KNOTS)
    np.testing.assert_allclose(age_shares(ages.astype(np.float32)), histories.age_shares(ages), atol=1e-6)


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


@pytest.mark.slow
def test_the_classifier_drops_of_the_patient_embedding():
    model = BEHRTForSequenceClassification(tiny.config(dropout=0.5))
    head, params = ClassificationHead(model.config, 1), {"params": parameters(model)["params"]["head"]}
    pooled = np.random.default_rng(0).standard_normal((200, D)).astype(np.float32)
    dropped = head.apply(params, pooled, False, rngs={"dropout": jax.random.key(0)})
    assert (np.asarray(dropped) != np.asarray(head.apply(params, pooled, True))).mean() > 0.9
