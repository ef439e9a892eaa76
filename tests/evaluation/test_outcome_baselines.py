"""The regression on codes without an encoder, put through what follows a model."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import spearmanr

from behrt_jax.data.dataset import Patients
from behrt_jax.data.events import SPLITS
from behrt_jax.evaluation.outcome_baselines import predict_without_encoder
from behrt_jax.finetuning import setup
from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.finetuning.predict import ClassPredictions, SurvivalPredictions
from behrt_jax.labels.labels import Labels
from behrt_jax.training.recipe import with_facts
from configs import classification, survival

NOBODY = Patients(*(np.zeros(0, int) for _ in range(8)))
TIMES = np.repeat(np.datetime64("2020-01-01", "us"), 12000)


def splits_of(kind, log_risks, values, days, events):
    """Each split has a third of the labels, in turn; none has histories, which are not to be read."""
    found, everyone = {}, Labels(kind, ("came",), np.arange(12000), TIMES, values, days, events)
    for place, name in enumerate(SPLITS):
        rows = np.arange(12000) % 3 == place
        found[name] = LabeledHistories(everyone.take(rows), NOBODY, NOBODY, log_risks[rows, None].astype(np.float32))
    return found


def recipe_of(config, splits):
    """The recipe of a config, with what the labels of train say."""
    recipe = setup.read(config.to_dict())
    return with_facts(recipe, setup.find_facts(recipe, splits["train"].labels, vocab_size=10))


@pytest.mark.parametrize("loss", ["cox", "piecewise"])
def test_risks_of_times_to_an_event_are_those_of_the_regression(loss):
    """Times are exponential with the rate that the regression says, but for a factor that is to be found."""
    rng = np.random.default_rng(0)
    log_risks = rng.normal(size=12000)
    days = rng.exponential(1000 / np.exp(log_risks))
    splits = splits_of("survival", log_risks, np.zeros((12000, 0)), days.clip(max=2000), (days < 2000).astype(np.int32))
    config = survival.get_config()
    config.survival.loss = loss
    recipe = recipe_of(config, splits)
    said, _ = predict_without_encoder(recipe, splits)
    own = log_risks[np.arange(12000) % 3 == SPLITS.index("held_out")]
    assert isinstance(said, SurvivalPredictions)
    assert spearmanr(said.scores[:, 0], own).statistic > 1 - 1e-6
    horizons = np.array([200.0, 1000.0])
    expected = -np.expm1(-np.exp(own)[:, None] * horizons / 1000)
    np.testing.assert_allclose(said.risks(horizons)[:, 0], expected, atol=0.06)


def test_probabilities_are_those_of_the_regression():
    rng = np.random.default_rng(0)
    log_odds = rng.normal(size=12000)
    values = (rng.random(12000) < expit(log_odds - 1))[:, None].astype(np.float32)
    splits = splits_of("binary", log_odds, values, np.full(12000, np.nan), np.zeros(12000, np.int32))
    config = classification.get_config()
    config.evaluation.calibration = "none"
    recipe = recipe_of(config, splits)
    said, fitted = predict_without_encoder(recipe, splits)
    own = log_odds[np.arange(12000) % 3 == SPLITS.index("held_out")]
    assert isinstance(said, ClassPredictions) and 0 < fitted["threshold"] < 1
    np.testing.assert_allclose(said.probabilities, expit(own - 1), atol=0.06)
