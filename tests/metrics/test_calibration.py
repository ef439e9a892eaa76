import json

import numpy as np
import pytest
import sklearn.metrics
from scipy.special import expit, logit, softmax
from sklearn.isotonic import IsotonicRegression

from behrt_jax.metrics import calibration


def simulate(seed=0, rows=4000, labels=3, factor=2.5):
    """Logits that are a known factor too extreme."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1, (rows, labels))
    return expit(factor * logits), rng.uniform(size=logits.shape) < expit(logits)


def simulate_classes(seed=1, rows=4000, factor=2.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (rows, 4))
    targets = (softmax(logits, axis=1).cumsum(axis=1) < rng.uniform(size=(rows, 1))).sum(axis=1)
    return softmax(factor * logits, axis=1), np.minimum(targets, 3)


def test_a_temperature_recovers_how_much_too_extreme_each_label_is():
    probabilities, targets = simulate()
    probabilities[:, 2] = expit(logit(probabilities[:, 2]) / 5)  # this one is now too mild by half
    calibrate, parameters = calibration.fit(probabilities, targets, "temperature")
    np.testing.assert_allclose(parameters["labels"], [2.5, 2.5, 0.5], rtol=0.1)
    expected = expit(logit(probabilities) / parameters["labels"])
    np.testing.assert_allclose(calibrate(probabilities), expected, rtol=1e-6)
    alone, one = calibration.fit(probabilities[:, 0], targets[:, 0], "temperature")
    assert one["labels"] == parameters["labels"][:1]
    np.testing.assert_array_equal(alone(probabilities[:, 0]), calibrate(probabilities)[:, 0])


def test_the_temperature_is_the_best_there_is():
    probabilities, targets = simulate(labels=1, rows=500)
    (temperature,) = calibration.fit(probabilities[:, 0], targets[:, 0], "temperature")[1]["labels"]

    def loss(value):
        return sklearn.metrics.log_loss(targets[:, 0], expit(logit(probabilities[:, 0]) / value))

    assert loss(temperature) < min(loss(0.97 * temperature), loss(1.03 * temperature))


def test_one_temperature_for_classes_keeps_their_order_and_sums():
    probabilities, targets = simulate_classes()
    calibrate, parameters = calibration.fit(probabilities, targets, "temperature")
    assert parameters["temperature"] == pytest.approx(2, rel=0.1)
    found = calibrate(probabilities)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_array_equal(found.argmax(axis=1), probabilities.argmax(axis=1))
    assert sklearn.metrics.log_loss(targets, found) < sklearn.metrics.log_loss(targets, probabilities) - 0.05


def test_isotonic_is_that_of_scikit_learn_kept_off_zero_and_one():
    probabilities, targets = simulate(rows=300)
    probabilities[:9, 0], targets[:9, 0] = 0.001, False
    calibrate, _ = calibration.fit(probabilities, targets, "isotonic")
    for label in range(3):
        expected = IsotonicRegression().fit_transform(probabilities[:, label], targets[:, label])
        np.testing.assert_allclose(calibrate(probabilities)[:, label], expected.clip(1 / 302, 301 / 302))
    found = calibrate(np.tile(np.linspace(0, 1, 300)[:, None], 3))
    assert found.min() == pytest.approx(1 / 302) and (np.diff(found, axis=0) >= 0).all()


@pytest.mark.parametrize("method", calibration.METHODS)
def test_new_rows_are_better_calibrated_and_parameters_survive_json(method):
    calibrate, parameters = calibration.fit(*simulate(2, labels=2), method)
    again = calibration.from_dict(json.loads(json.dumps(parameters)))
    probabilities, targets = simulate(3, labels=2)
    found = calibrate(probabilities)
    np.testing.assert_array_equal(again(probabilities), found)
    assert found.shape == probabilities.shape and found.dtype == np.float64
    for label in range(2):
        before, after = (sklearn.metrics.log_loss(targets[:, label], each[:, label]) for each in (probabilities, found))
        assert after < before - 0.1
    with pytest.raises(ValueError, match="3 labels were given; the calibration is of 2"):
        again(np.ones((1, 3)))


def test_parameters_of_classes_survive_json():
    probabilities, targets = simulate_classes()
    calibrate, parameters = calibration.fit(probabilities, targets, "temperature")
    again = calibration.from_dict(json.loads(json.dumps(parameters)))
    np.testing.assert_array_equal(again(probabilities[:9]), calibrate(probabilities[:9]))


def test_probabilities_of_zero_and_one_stay_finite():
    calibrate, _ = calibration.fit(np.array([0.0, 1, 0, 1]), np.array([0, 1, 1, 0]), "temperature")
    assert ((calibrate(np.array([0.0, 1])) > 0) & (calibrate(np.array([0.0, 1])) < 1)).all()


@pytest.mark.parametrize("method", calibration.METHODS)
def test_what_tuning_cannot_tell_stays_as_it_is(method):
    probabilities, targets = simulate(rows=50)
    targets[:, 1] = True
    calibrate, parameters = calibration.fit(probabilities, targets, method)
    assert [found is None for found in parameters["labels"]] == [False, True, False]
    found = calibration.from_dict(json.loads(json.dumps(parameters)))(probabilities)
    np.testing.assert_array_equal(found[:, 1], probabilities[:, 1])
    assert (found[:, 0] != probabilities[:, 0]).any()
    np.testing.assert_array_equal(calibrate(probabilities), found)
    classes, _ = simulate_classes(rows=20)
    calibrate, _ = calibration.fit(classes, np.full(20, 2), "temperature")
    np.testing.assert_allclose(calibrate(classes), classes, atol=1e-6)


def test_classes_that_few_rows_part_fully_do_not_make_predictions_sure():
    calibrate, _ = calibration.fit(np.array([0.4, 0.6]), np.array([False, True]), "temperature")
    assert calibrate(np.array([0.6]))[0] < 0.9


def test_what_cannot_be_calibrated_is_said():
    probabilities, targets = simulate(rows=20)
    with pytest.raises(ValueError, match="'platt'; expected one of temperature, isotonic"):
        calibration.fit(probabilities, targets, "platt")
    with pytest.raises(ValueError, match="by method='temperature' alone"):
        calibration.fit(*simulate_classes(rows=20), "isotonic")
    probabilities[0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 60 probabilities are NaN"):
        calibration.fit(probabilities, targets, "isotonic")
