"""Every choice of the model, and each head, against plain numpy in float64 (reference.py)."""

import functools

import jax
import numpy as np
import pytest

from behrt_jax.models.config import CHOICES
from tests import tiny
from tests.models import reference, variants

BATCH = variants.awkward_batch()
REAL = BATCH["patient_ids"] > 0
ROWS = np.arange(3)[:, None]
WITH_HEADS = ("one head", "causal, months", "lstm")
QUICK = (*WITH_HEADS, "current recipe")


pytestmark = pytest.mark.usefixtures("strict_jax")


@functools.cache
def found(name):
    config, weights = variants.config_of(name, num_layers=2), weights_of(name)

    def run(weights, batch):
        found = {"hidden": variants.encode(config, weights, batch)}
        poolings = variants.poolings(config) if name in WITH_HEADS else [config.pooling]
        found |= {pooling: variants.pool(config, weights, batch, pooling) for pooling in poolings}
        if name in WITH_HEADS:
            found |= {head: variants.score(config, weights, batch, head) for head in variants.HEADS}
            places = batch["places"]
            found["masked"] = variants.score(config, weights, batch, "codes", masked_positions=places)
            if not config.sees_future:
                found["each visit"] = variants.score(config, weights, batch, "next visit", visit_ends=places)
        return found

    return jax.device_get(variants.compiled(run, weights, BATCH)(weights, BATCH))


@functools.cache
def weights_of(name):
    return variants.drawn(variants.config_of(name, num_layers=2), tuple(variants.HEADS) if name in WITH_HEADS else ())


@functools.cache
def exact(name):
    """Weights in float64 and hidden states of the reference."""
    weights = jax.tree.map(lambda leaf: leaf.astype(np.float64), weights_of(name))
    return weights, reference.encode(weights["behrt"], variants.config_of(name, num_layers=2), BATCH)


def exact_pool(name, pooling=None):
    weights, hidden = exact(name)
    pooling = pooling or variants.config_of(name).pooling
    return reference.pool(hidden, BATCH, pooling, variants.PATIENTS, weights["behrt"]["attention_pooling"])


def exact_scores(name, head, states):
    weights, _ = exact(name)
    return reference.score_codes(states, weights[head], weights["behrt"]["embedding"]["codes"]["embedding"])


def assert_equal(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", tiny.slow_but(QUICK, variants.CONFIGS))
def test_hidden_states(name):
    assert_equal(found(name)["hidden"][REAL], exact(name)[1][REAL])


@pytest.mark.parametrize("name", tiny.slow_but(QUICK, variants.CONFIGS))
def test_patient_embeddings(name):
    config = variants.config_of(name)
    for pooling in variants.poolings(config) if name in WITH_HEADS else [config.pooling]:
        assert_equal(found(name)[pooling], exact_pool(name, pooling))


@pytest.mark.parametrize("name", WITH_HEADS)
def test_scores_of_hidden_codes(name):
    expected = exact_scores(name, "codes", exact(name)[1])
    assert_equal(found(name)["codes"][REAL], expected[REAL])
    assert_equal(found(name)["masked"], expected[ROWS, BATCH["places"]])


@pytest.mark.parametrize("name", WITH_HEADS)
def test_scores_of_the_next_visit(name):
    assert_equal(found(name)["next visit"], exact_scores(name, "next visit", exact_pool(name)))


@pytest.mark.parametrize("name", [name for name in WITH_HEADS if not variants.config_of(name).sees_future])
def test_scores_of_the_visit_after_each_visit(name):
    expected = exact_scores(name, "next visit", exact(name)[1][ROWS, BATCH["places"]])
    assert_equal(found(name)["each visit"], expected)


@pytest.mark.parametrize("name", WITH_HEADS)
@pytest.mark.parametrize("head", ["label", "labels"])
def test_scores_of_patients(name, head):
    weights, _ = exact(name)
    assert_equal(found(name)[head], reference.dense(exact_pool(name), weights[head]["output"]))


def test_the_models_have_every_choice_between_them():
    configs = [variants.config_of(name) for name in variants.CONFIGS]
    for key, choices in CHOICES.items():
        if key != "dtype":
            assert {getattr(config, key) for config in configs} == set(choices), key
    for key in ("causal", "visit_bias"):
        assert {getattr(config, key) for config in configs} == {True, False}
    assert {(config.time_bins > 0, config.time_bin_days > 0) for config in configs} >= {(True, True), (True, False)}
    assert {variants.config_of(name).encoder for name in WITH_HEADS} == set(CHOICES["encoder"])
