"""Attribution: axioms, what removal by hand gives, a model whose truth is planted, and that nothing else changes."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax.data.vocabulary import CLS, MASK, SEP, UNK
from behrt_jax.interpret import attribution, counterfactuals, explain, ground_truth
from behrt_jax.models.behrt import encode
from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.models.pretraining import BEHRTForPretraining
from behrt_jax.objectives.survival import SurvivalConfig, log_hazard_by, risks
from tests import tiny
from tests.models.drawn import parameters

pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")

LENGTH = 16
STEP = 1e-2
PRETRAINED = BEHRTForPretraining(tiny.config(), ("mlm", "next_visit"))
FINETUNED = BEHRTForSequenceClassification(tiny.config(), num_labels=2, num_covariates=3)


def histories(masked: bool = False) -> dict[str, np.ndarray]:
    """Three histories: [CLS], a static code, and visits that end with [SEP]; the last one short."""
    visits = [[[7, 8, 9], [10, UNK], [11]], [[12, 13], [14, 15, 16, 17]], [[18]]]
    names = ("codes", "visit_ids", "positions", "patient_ids", "in_visit", "ages", "time_deltas", "dates", "time_ranks")
    rows = {name: np.zeros((3, LENGTH), np.float32) for name in names}
    for row, own in enumerate(visits):
        tokens = [(CLS, 0, False), (5, 0, False)]
        for number, codes in enumerate(own):
            tokens += [(code, number, True) for code in [*codes, SEP]]
        for place, (code, visit, inside) in enumerate(tokens):
            values = (
                code,
                visit,
                place,
                1,
                inside,
                40 + 3 * visit + row,
                30.0 * visit,
                2 + 3 * visit,
                inside * (visit + 1),
            )
            for name, value in zip(names, values, strict=True):
                rows[name][row, place] = value
    kinds = {"in_visit": bool, "ages": np.float32, "time_deltas": np.float32, "dates": np.float32}
    rows = {name: values.astype(kinds.get(name, np.int32)) for name, values in rows.items()}
    rows["maskable"] = rows["in_visit"] & (rows["codes"] > UNK)
    if masked:
        rows["codes"][:, 2] = MASK
    return rows | {"target": np.array([20, 9, 21], np.int32), "covariates": np.ones((3, 3), np.float32)}


def outcome(model, params, columns):
    return attribution.outcome_logits(model, params, columns)[:, 1]


CASES = {
    "masked": (attribution.masked_odds, PRETRAINED, True),
    "next visit": (attribution.next_visit_odds, PRETRAINED, False),
    "outcome": (outcome, FINETUNED, False),
    "lstm": (outcome, BEHRTForSequenceClassification(tiny.config(encoder="lstm"), 2, 3), False),
}


SLOW = ("masked", "lstm")


class Asked(NamedTuple):
    """A score under jit, the histories to explain, and all that is said of them, compiled once."""

    score: Callable
    columns: dict[str, np.ndarray]
    found: dict[str, np.ndarray]


@functools.cache
def explained(name: str) -> Asked:
    score, model, masked = CASES[name]
    score, columns = functools.partial(score, model, parameters(model)), histories(masked)
    wiggled = np.ones((4, 3, LENGTH), np.float32)
    wiggled[:, 0, 4] += [STEP, -STEP, 0, 0]
    wiggled[:, 1, 5] += [0, 0, STEP, -STEP]

    @jax.jit
    def everything(columns):
        path, gap = attribution.integrated_gradients(score, columns, steps=24)
        return {
            "path": path,
            "gap": gap,
            "slopes": attribution.gradient_times_input(score, columns),
            "codes": attribution.occlusion(score, columns, attribution.code_units(columns), 16),
            "visits": attribution.occlusion(score, columns, attribution.visit_units(columns), 3),
            "wiggled": jax.lax.map(functools.partial(attribution.gated, score, columns), wiggled),
            "open": attribution.gated(score, columns, jnp.ones((3, LENGTH))),
            "closed": attribution.gated(score, columns, jnp.zeros((3, LENGTH)), 6),
        }

    return Asked(jax.jit(score), columns, jax.device_get(everything(columns)))


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES])
def asked(request):
    return explained(request.param)


def with_codes(asked: Asked, code: int) -> np.ndarray:
    """The scores of histories all of whose codes are one and the same; what is asked for stays where it is."""
    columns = asked.columns
    hidden = {**columns, "codes": np.where(attribution.is_explained(columns), code, columns["codes"])}
    if MASK not in columns["codes"] or code != MASK:
        return np.asarray(asked.score(hidden))
    params = parameters(PRETRAINED)
    chances = jax.nn.softmax(jax.jit(PRETRAINED.apply)(params, *tiny.columns(hidden), **tiny.named(hidden)))[:, 2]
    own = np.asarray(chances)[np.arange(3), columns["target"]]
    return np.log(own / (1 - own))


def test_a_gate_takes_the_value_away_with_the_code():
    model, columns = BEHRTForPretraining(tiny.config(value_encoding="film"), ("mlm", "next_visit")), histories()
    is_explained = np.asarray(attribution.is_explained(columns))
    values = np.random.default_rng(0).normal(size=is_explained.shape)
    columns["values"] = np.where(is_explained, values, np.nan).astype(np.float32)
    score = functools.partial(attribution.next_visit_odds, model, parameters(model))
    hidden = columns | {"codes": np.where(is_explained, MASK, columns["codes"]), "values": 0 * values + np.nan}
    hidden["values"] = hidden["values"].astype(np.float32)

    @jax.jit
    def everything(columns, hidden):
        gates = jnp.ones(is_explained.shape)
        found = [attribution.gated(score, columns, each) for each in (gates, 0 * gates)]
        return found, [score(columns), score(hidden)]

    found, expected = jax.device_get(everything(columns, hidden))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (np.abs(expected[0] - expected[1]) > 1e-3).all()


def test_scores_are_the_log_odds_that_the_heads_give():
    params, columns = parameters(PRETRAINED), histories(masked=True)
    ends = (columns["patient_ids"].sum(axis=1) - 1)[:, None]

    @jax.jit
    def heads(params, columns):
        given, named = tiny.columns(columns), tiny.named(columns)
        rest = {"visit_ends": ends, "method": "predict_next_visits"}
        both = [PRETRAINED.apply(params, *given, **named, **rest, causal=causal)[0] for causal in (True, False)]
        return jax.nn.softmax(PRETRAINED.apply(params, *given, **named))[:, 2], both

    chances, both = heads(params, columns)
    own = np.asarray(chances)[np.arange(3), columns["target"]]
    found = jax.jit(functools.partial(attribution.masked_odds, PRETRAINED))(params, columns)
    np.testing.assert_allclose(found, np.log(own / (1 - own)), rtol=1e-4)
    for logits, causal in zip(both, (True, False), strict=True):
        score = jax.jit(functools.partial(attribution.next_visit_odds, PRETRAINED, causal=causal))
        np.testing.assert_allclose(score(params, columns), logits[np.arange(3), 0, columns["target"]], rtol=1e-5)


def test_integrated_gradients_are_complete_and_leave_the_rest_alone(asked):
    path, is_explained = asked.found["path"], np.asarray(attribution.is_explained(asked.columns))
    change = np.asarray(asked.score(asked.columns)) - with_codes(asked, MASK)
    assert np.abs(change).max() > 0.05
    np.testing.assert_allclose(path.sum(axis=1), change, atol=2e-3)
    np.testing.assert_allclose(asked.found["gap"], change - path.sum(axis=1), atol=1e-5)
    assert not path[~is_explained].any() and path[is_explained].all()


def test_gradients_are_the_slopes_of_gates(asked):
    found, (up, down, higher, lower) = asked.found["slopes"], asked.found["wiggled"]
    np.testing.assert_allclose(found[0, 4], (up - down)[0] / (2 * STEP), rtol=0.03, atol=1e-3)
    np.testing.assert_allclose(found[1, 5], (higher - lower)[1] / (2 * STEP), rtol=0.03, atol=1e-3)


def test_open_gates_are_the_model_and_closed_ones_the_baseline(asked):
    np.testing.assert_allclose(asked.found["open"], asked.score(asked.columns), atol=1e-5)
    np.testing.assert_allclose(asked.found["closed"], with_codes(asked, 6), atol=1e-5)


def test_models_stay_the_same_to_the_bit():
    score, model, _ = CASES["next visit"]
    score, columns = functools.partial(score, model, parameters(model)), histories()
    before = np.asarray(jax.jit(lambda columns: score(columns))(columns))
    explained("next visit")
    jax.eval_shape(functools.partial(attribution.gradient_times_input, score), columns)
    np.testing.assert_array_equal(jax.jit(lambda columns: score(columns))(columns), before)


def by_hand(columns: dict, row: int, gone: list[int]) -> dict:
    """One row without some places, written anew in plain numpy."""
    kept = [place for place in range(LENGTH) if columns["patient_ids"][row, place] and place not in gone]
    found = {}
    for name, values in columns.items():
        if name in ("target", "covariates"):
            found[name] = values[row : row + 1]
            continue
        found[name] = np.zeros((1, LENGTH), values.dtype)
        found[name][0, : len(kept)] = values[row, kept]
    found["positions"][0, : len(kept)] = np.arange(len(kept))
    return found


def test_occlusion_of_codes_is_what_removal_by_hand_gives(asked):
    columns, found = asked.columns, asked.found["codes"]
    units, full = np.asarray(attribution.code_units(columns)), np.asarray(asked.score(columns))
    # A static code, and codes of visits with others: what is left needs no other numbers.
    for row, place in ((0, 1), (0, 3), (0, 4), (0, 6), (1, 3), (1, 8)):
        assert units[row, place] >= 0
        without = asked.score(by_hand(columns, row, [place]))[0]
        np.testing.assert_allclose(found[row, place], full[row] - without, atol=2e-5)
    assert not found[units < 0].any() and found[units >= 0].all()


def test_occlusion_of_visits_is_what_removal_by_hand_gives(asked):
    columns, found = asked.columns, asked.found["visits"]
    units, full = np.asarray(attribution.visit_units(columns)), np.asarray(asked.score(columns))
    last = np.flatnonzero(columns["in_visit"][0] & (columns["visit_ids"][0] == 2))
    without = asked.score(by_hand(columns, 0, list(last)))[0]
    np.testing.assert_allclose(found[0, last], full[0] - without, atol=2e-5)
    middle = np.flatnonzero(columns["in_visit"][0] & (columns["visit_ids"][0] == 1))
    without = asked.score(counterfactuals.remove_visit(columns, 1))[0]
    np.testing.assert_allclose(found[0, middle], full[0] - without, atol=2e-5)
    assert not found[units < 0].any() and (units[units >= 0] == columns["visit_ids"][units >= 0]).all()


class Planted(nn.Module):
    """A model whose truth is known: a sum of a weight for each code, read from a table that lies where BEHRT's does."""

    @nn.compact
    def __call__(self, codes):
        class Embedding(nn.Module):
            def setup(self):
                self.codes = nn.Embed(tiny.VOCAB_SIZE, 1)

            def __call__(self, codes):
                return self.codes(codes)

        return Embedding(name="embedding")(codes)[..., 0]


def test_a_planted_truth_is_found_exactly():
    weights = np.zeros((tiny.VOCAB_SIZE, 1), np.float32)
    weights[[8, 14]] = [[1.5], [-2.0]]
    params, columns = {"params": {"embedding": {"codes": {"embedding": weights}}}}, histories()

    def score(columns):
        return jnp.where(columns["patient_ids"] != 0, Planted().apply(params, columns["codes"]), 0.0).sum(axis=1)

    truth = np.where(columns["patient_ids"] != 0, weights[columns["codes"], 0], 0.0)
    path, gap = attribution.integrated_gradients(score, columns, steps=2)
    removed = attribution.occlusion(score, columns, attribution.code_units(columns), 16)
    for found in (path, removed, attribution.gradient_times_input(score, columns)):
        np.testing.assert_allclose(found, truth, atol=1e-6)
    np.testing.assert_allclose(gap, 0.0, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_rollout_goes_back_to_the_own_patient_and_sums_to_one(causal):
    batch = tiny.packed_batch([[5, 4, 3], [7]], LENGTH)
    params = parameters(PRETRAINED)
    given = (*tiny.columns(batch),)
    _, weights = encode(PRETRAINED, params, *given, capture_attention=True, **tiny.named(batch), causal=causal)
    found = np.asarray(attribution.attention_rollout(weights, batch["patient_ids"]))
    real = batch["patient_ids"] != 0
    np.testing.assert_allclose(found.sum(axis=-1)[real], 1.0, atol=1e-5)
    same = batch["patient_ids"][:, :, None] == batch["patient_ids"][:, None, :]
    assert not found[~(same & real[:, None, :])].any() and not found[~real].any()
    # By hand, for one patient of the packed row: the product of its own blocks.
    own = np.asarray(weights)[:, 0, :, 5:9, 5:9].mean(axis=1)
    expected = np.eye(4)
    for layer in own:
        expected = (layer / 2 + np.eye(4) / 2) @ expected
    np.testing.assert_allclose(found[0, 5:9, 5:9], expected, atol=1e-5)


def test_attention_to_is_read_from_where_the_head_reads():
    columns, params = histories(), parameters(PRETRAINED)
    readers = attribution.read_from(columns, attribution.last_places(columns))
    heads, rolled = attribution.attention_to(PRETRAINED, params, columns, readers, causal=True)
    np.testing.assert_allclose(heads.sum(axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(rolled.sum(axis=-1), 1.0, atol=1e-5)
    _, weights = encode(
        PRETRAINED, params, *tiny.columns(columns), capture_attention=True, causal=True, **tiny.named(columns)
    )
    ends = columns["patient_ids"].sum(axis=1) - 1
    np.testing.assert_allclose(heads, np.asarray(weights)[-1][np.arange(3), :, ends], atol=1e-6)
    everywhere = np.asarray(attribution.read_from(columns))
    np.testing.assert_allclose(everywhere, columns["patient_ids"] / columns["patient_ids"].sum(axis=1, keepdims=True))


@pytest.mark.parametrize("loss", ["piecewise", "discrete"])
def test_log_hazard_by_a_day_is_the_risk(loss):
    config = SurvivalConfig(loss, 3, (30.0, 200.0, 900.0), 2)
    logits = np.random.default_rng(0).normal(-7 if loss == "piecewise" else -1, 1, (5, 6)).astype(np.float32)
    for day in (10.0, 200.0, 800.0):
        expected = risks(logits, config, [day])[..., 0].sum(axis=1)
        found = np.asarray(jax.jit(functools.partial(log_hazard_by, config=config, day=day))(logits))
        np.testing.assert_allclose(-np.expm1(-np.exp(found)), expected, rtol=1e-4)


def test_log_hazard_of_cox_is_its_score():
    found = log_hazard_by(jnp.array([[0.3], [-1.0]]), SurvivalConfig("cox", 1, (), 1), 365.0)
    np.testing.assert_allclose(found, [0.3, -1.0], rtol=1e-6)


@pytest.mark.parametrize("num_effects", [0, 1])
def test_without_effects_no_history_is_compared(num_effects):
    truth = np.full((3, 20), np.nan)
    truth[:, :num_effects] = 1.0
    found = {"occlusion": ground_truth.agreement(truth, np.zeros((3, 20)), np.arange(3))}
    assert explain.table(found).startswith("no history to compare: expected 10 codes or more, 5 of them with an effect")
