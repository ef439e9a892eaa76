"""Reliability curves of probabilities and of risks, and their privacy floor."""

import numpy as np
import pytest

from behrt_jax.evaluation import outcomes, reliability
from behrt_jax.evaluation.small_cells import MIN_PATIENTS, drop_small
from behrt_jax.finetuning.predict import ClassPredictions, SurvivalPredictions
from behrt_jax.labels.labels import Labels


def column(curve: list[dict], name: str) -> np.ndarray:
    return np.array([point[name] for point in curve])


def labels_of(kind: str, names, patients, values=None, days=None, events=None) -> Labels:
    times = np.repeat(np.datetime64("2020-01-01", "us"), len(patients))
    return Labels(kind, names, patients, times, values, days, events)


def test_curves_of_many_codes_are_those_of_sorted_bins():
    rng = np.random.default_rng(8)
    probabilities = rng.permutation(np.linspace(0.001, 0.999, 30 * 60)).reshape(60, 30).astype(np.float32)
    targets = rng.uniform(size=probabilities.shape) < probabilities**2
    (curve,) = reliability.of_probabilities(probabilities, targets, np.arange(60) // 2)
    bins = np.split(np.argsort(probabilities, axis=None), 15)
    expected = {"predicted": probabilities, "value": targets, "n": np.full((60, 30), 120)}
    for name, cells in expected.items():
        np.testing.assert_allclose(column(curve, name), [cells.ravel()[each].mean() for each in bins], rtol=1e-5)
    owners = np.repeat(np.arange(60) // 2, 30)
    assert column(curve, "patients").tolist() == [len(np.unique(owners[each])) for each in bins]
    assert (column(curve, "low") <= column(curve, "value")).all()
    assert (column(curve, "value") <= column(curve, "high")).all()
    even = np.full((5, 4), 0.25, np.float32), np.eye(5, 4, dtype=bool), np.arange(5)
    ((point,),) = reliability.of_probabilities(*even)
    assert (point["predicted"], point["value"], point["n"], point["patients"]) == (0.25, 0.2, 20, 5)


def test_points_shown_of_real_patients_are_of_enough():
    """One patient has a third of the predictions, and the highest ones: alone in bins of rows."""
    rng = np.random.default_rng(0)
    owners = np.concatenate([np.arange(100), np.full(50, 100)])
    said = np.concatenate([rng.uniform(0.1, 0.4, 100), rng.uniform(0.9, 0.91, 50)]).astype(np.float32)[:, None]
    came = rng.random(said.shape) < said
    finest, coarse = curves = reliability.of_probabilities(said, came, owners)
    assert column(finest, "predicted").max() > 0.9
    assert column(coarse, "patients").min() >= MIN_PATIENTS and len(coarse) < len(finest)
    assert 0 < column(coarse, "predicted").max() < 0.9 and column(coarse, "n").sum() == 150
    few = reliability.of_probabilities(said[:9], came[:9], owners[:9])
    result = {"metrics": {}, "baselines": {}, "versus": {}, "patients": 101}
    result |= {"reliability": {"many": curves, "few": few}, "precision_recall": {"many": {}}}
    shown, dropped = drop_small(result, MIN_PATIENTS)
    assert shown["reliability"] == {"many": [coarse]} and "precision_recall" not in shown and dropped == 2
    assert drop_small(result, 1) == (result, 0)
    risks = reliability.of_risks(said[:, 0], np.full(150, 9.0), came[:, 0].astype(int), owners, 10.0, 1)
    assert [column(each, "predicted").max() > 0.9 for each in risks] == [True, False]
    assert column(risks[1], "patients").min() >= MIN_PATIENTS


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_curves_of_classes_are_those_of_their_predictions(kind):
    rng = np.random.default_rng(0)
    names = ("ill",) if kind == "binary" else ("ill", "well")
    said = rng.random((900, len(names)))
    came = rng.random(said.shape) < said**2  # overconfident
    if kind == "multiclass":
        came[:, 1] = ~came[:, 0]
    values = came[:, 1:].astype(float) if kind == "multiclass" else came.astype(float)
    labels = labels_of(kind, names, np.arange(900) // 3, values)
    predictions = ClassPredictions(said[:, 0] if kind == "binary" else said)
    found = outcomes.find_reliability(predictions, labels, names, ())
    assert list(found) == list(names)
    for place, (curve, *_) in enumerate(found.values()):
        assert column(curve, "n").sum() == 900 and np.ptp(column(curve, "n")) <= 1
        for point, rows in zip(curve, np.array_split(np.argsort(said[:, place]), len(curve)), strict=True):
            assert point["predicted"] == pytest.approx(said[rows, place].mean(), abs=5e-3)
            assert point["value"] == pytest.approx(came[rows, place].mean(), abs=0.05)
        if kind != "multiclass":
            ideal = column(curve, "predicted") ** 2
            inside = (column(curve, "low") <= ideal + 0.02) & (ideal - 0.02 <= column(curve, "high"))
            assert inside.mean() > 0.7


def test_exact_incidences_of_competing_events_lie_on_the_diagonal():
    rng, horizon = np.random.default_rng(3), 1825.0
    x = rng.normal(size=6000)
    rates = np.stack([np.exp(x), 2 * np.exp(0.5 * x)]) / horizon
    until, censored = rng.exponential(1 / rates), rng.uniform(horizon / 2, 3 * horizon, 6000)
    days = np.minimum(until.min(axis=0), censored)
    events = np.where(days == censored, 0, 1 + until.argmin(axis=0))
    total = rates.sum(axis=0)

    def risks(times):
        return np.moveaxis((rates / total)[..., None] * -np.expm1(-total[:, None] * times), 0, 1)

    labels = labels_of("survival", ("a", "b", "never"), np.arange(6000), days=days, events=events)
    found = outcomes.find_reliability(SurvivalPredictions(rates.T, risks), labels, labels.names, (365.0, horizon))
    assert list(found) == ["a within 1825 days", "b within 1825 days"]
    for (curve,) in found.values():
        np.testing.assert_allclose(column(curve, "value"), column(curve, "predicted"), atol=0.06)
        inside = (column(curve, "low") <= column(curve, "predicted")) & (
            column(curve, "predicted") <= column(curve, "high")
        )
        assert inside.mean() > 0.7
