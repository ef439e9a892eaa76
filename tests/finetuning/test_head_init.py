"""Heads that begin at what age and sex say: known rates are recovered, and base rates kept."""

import numpy as np
import pytest

from behrt_jax.finetuning import head_init
from behrt_jax.objectives import classification, survival
from behrt_jax.objectives.classification import ClassificationConfig
from behrt_jax.objectives.survival import SurvivalConfig


def settings(loss="piecewise", num_causes=1):
    return SurvivalConfig(loss, 3, (300.0, 1000.0, 4000.0), num_causes)


@pytest.mark.parametrize("loss", survival.LOSSES)
def test_a_survival_head_begins_at_the_rates_of_groups(loss):
    rng = np.random.default_rng(0)
    sex = rng.integers(2, size=4000)
    covariates = np.eye(2)[sex]
    until = rng.exponential(np.where(sex == 1, 800.0, 2400.0))
    days, events = np.minimum(until, 3000.0), (until < 3000.0).astype(int)
    kernel, bias = head_init.init_survival_head(covariates, days, events, settings(loss))
    assert kernel.shape == (2, len(bias)) and kernel.dtype == bias.dtype == np.float32
    np.testing.assert_allclose(kernel[1] - kernel[0], np.log(3), atol=0.15)
    if loss == "piecewise":  # as many events are expected as there were
        logits = (covariates @ kernel + bias).reshape(len(days), 3)
        spent = np.diff(np.minimum(days[:, None], [0.0, 300.0, 1000.0, np.inf]), axis=1)
        assert (np.exp(logits) * spent).sum() == pytest.approx(events.sum(), rel=0.02)


def test_causes_have_rates_of_their_own():
    rng = np.random.default_rng(1)
    sex = rng.integers(2, size=4000)
    waits = rng.exponential(np.stack([np.where(sex == 1, 500.0, 2000.0), np.where(sex == 1, 2000.0, 500.0)], axis=1))
    days, events = waits.min(axis=1), 1 + waits.argmin(axis=1)
    kernel, _ = head_init.init_survival_head(np.eye(2)[sex], days, events, settings(num_causes=2))
    ratio = (kernel[1] - kernel[0]).reshape(2, 3)
    np.testing.assert_allclose(ratio, np.log([[4.0] * 3, [0.25] * 3]), atol=0.2)


def test_without_traits_it_is_the_base_rate():
    rng = np.random.default_rng(2)
    days, events = rng.uniform(1, 4000, 500), rng.integers(2, size=500)
    kernel, bias = head_init.init_survival_head(np.zeros((500, 0), np.float32), days, events, settings())
    assert kernel.shape == (0, 3)
    np.testing.assert_array_equal(bias, survival.initial_bias(days, events, settings()))
    config = ClassificationConfig("binary", "none", 0.0)
    kernel, bias = head_init.init_classification_head(np.zeros((500, 0)), events, config, 2)
    assert kernel.shape == (0, 1)
    np.testing.assert_array_equal(bias, classification.initial_bias(events, "binary"))


@pytest.mark.parametrize(("weights", "mean"), [("none", 0.2), ("balanced", 0.5)])
def test_a_binary_head_begins_at_the_odds_of_groups(weights, mean):
    sex = np.repeat([0, 1], 1000)
    targets = np.concatenate([np.arange(1000) < 100, np.arange(1000) < 300]).astype(float)
    config = ClassificationConfig("binary", weights, 0.0)
    kernel, bias = head_init.init_classification_head(np.eye(2)[sex], targets, config, 2)
    odds = np.log((300 / 700) / (100 / 900))
    assert (kernel[1] - kernel[0]).item() == pytest.approx(odds, abs=0.05)
    said = classification.probabilities(np.eye(2)[sex] @ kernel + bias, "binary")
    share = classification.balanced_weights(targets)[targets.astype(int)] if weights == "balanced" else None
    assert np.average(said, weights=share) == pytest.approx(mean, abs=0.01)


def test_classes_and_labels_begin_at_theirs():
    covariates, classes = np.eye(3)[np.arange(900) % 3], np.arange(900) % 3
    kernel, bias = head_init.init_classification_head(
        covariates, classes, ClassificationConfig("multi_class", "none", 0.0), 3
    )
    assert ((covariates @ kernel + bias).argmax(axis=1) == classes).all()
    labels = np.stack([classes == 0, np.ones(900), np.where(classes == 1, np.nan, classes == 2)], axis=1)
    config = ClassificationConfig("multi_label", "none", 0.0)
    kernel, bias = head_init.init_classification_head(covariates, labels, config, 2)
    logits = covariates @ kernel + bias
    assert ((logits[:, 0] > 0) == (classes == 0)).all()
    assert (kernel[:, 1] == 0).all() and (logits[:, 1] > 5).all()  # everybody has it: nothing to tell apart
    assert (logits[classes == 2, 2] > 0).all() and (logits[classes == 0, 2] < 0).all()
