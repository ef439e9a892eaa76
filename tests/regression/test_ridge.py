"""Ridge regressions on blocks: against scikit-learn, patients left out against fitting anew, and the average."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, PoissonRegressor

from behrt_jax.regression import ridge
from behrt_jax.regression.ridge import Outcome


def made(size: int, patients: int, seed: int = 0, width: int = 6) -> tuple[np.ndarray, Outcome, Outcome]:
    """Inputs whose first column matters, a binary outcome of it, and times to an event that it hastens."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(size, width))
    owners = np.sort(rng.integers(patients, size=size))
    ill = rng.random(size) < 1 / (1 + np.exp(-2 * inputs[:, 0]))
    days = 1 + rng.exponential(100 * np.exp(-inputs[:, 0]))
    return inputs, Outcome(ill, None, owners), Outcome(rng.random(size) < 0.7, days, owners)


@pytest.mark.parametrize("factor", [0.3, 2.0])
def test_a_binary_outcome_is_fitted_as_scikit_learn_fits_it(factor):
    inputs, ill, _ = made(90, 40)
    blocks = {"a": inputs[:, :2], "b": inputs[:, 2:]}
    found = ridge.fit(blocks, ill, [{"a": factor, "b": factor}])
    model = LogisticRegression(C=factor**2, tol=1e-10, max_iter=2000).fit(inputs, ill.happened)
    np.testing.assert_allclose(found(blocks), model.decision_function(inputs), atol=1e-3)
    np.testing.assert_allclose(found.shares, [1.0])


def test_times_to_an_event_are_fitted_as_rates_over_the_hazard_of_all():
    inputs, _, event = made(120, 50)
    days = np.asarray(event.days)
    hazard = ridge.cumulative_hazard(days, event.happened)
    rising = np.argsort(days)
    by_hand = np.cumsum(event.happened[rising] / np.arange(120, 0, -1))
    np.testing.assert_allclose(hazard[rising], by_hand)
    found = ridge.fit({"a": inputs}, event, [{"a": 1.5}])
    model = PoissonRegressor(alpha=1 / 1.5**2 / hazard.sum(), tol=1e-9, max_iter=2000)
    model.fit(inputs, event.happened / hazard, hazard)
    np.testing.assert_allclose(found.weights["a"], model.coef_, atol=1e-3)


@pytest.mark.parametrize("kind", ["binary", "survival"])
def test_leaving_a_patient_out_by_one_step_is_nearly_fitting_anew_without(kind):
    inputs, ill, event = made(60, 20, width=30)
    happened, days, owners = ill if kind == "binary" else event
    exposure = None if days is None else ridge.cumulative_hazard(days, happened)
    data = ridge.Data(happened.astype(float), exposure, inputs[:, 1])
    inputs = np.column_stack([0.3 * inputs, np.ones(60)])
    found, hessian = ridge._minimize(inputs, data)
    quick = ridge._leave_out(inputs, found, hessian, data, ridge._group(owners))
    exact = np.zeros(60)
    for owner in np.unique(owners):
        kept = owners != owner
        rate = None if exposure is None else exposure[kept]
        part = ridge.Data(data.happened[kept], rate, data.offset[kept])
        exact[~kept] = data.offset[~kept] + inputs[~kept] @ ridge._minimize(inputs[kept], part)[0]
    np.testing.assert_allclose(quick, exact, atol=0.15)
    assert np.corrcoef(quick, exact)[0, 1] > 0.998
    assert np.abs(quick - data.offset - inputs @ found).max() > 0.2  # a patient's own rows do count


def test_without_much_to_learn_from_weights_stay_where_they_are_expected():
    inputs, ill, _ = made(60, 60)
    expected = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    still = ridge.fit({"a": inputs}, ill, [{"a": 1e-3}], expected={"a": expected})
    np.testing.assert_allclose(still.weights["a"], expected, atol=1e-3)
    found = ridge.fit({"a": inputs}, ill, [{"a": 1.0}], expected={"a": expected})
    signs = np.where(ill.happened, 1.0, -1.0)
    slope = inputs.T @ (signs / (1 + np.exp(signs * found({"a": inputs}))))
    np.testing.assert_allclose(slope, found.weights["a"] - expected, atol=1e-3)  # the ridge draws to what is expected


def test_a_block_that_says_nothing_counts_little_and_one_that_says_all_counts():
    inputs, ill, _ = made(200, 200, width=40)
    blocks = {"signal": inputs[:, :1], "noise": inputs[:, 1:]}
    found = ridge.fit(blocks, ill, [{"signal": 2.0}, {"noise": 2.0}, {}])
    assert found.shares[0] > 0.999 and found.shares.sum() == pytest.approx(1)
    swayed = ridge.fit(blocks, ill, [{"signal": 2.0}, {"noise": 2.0}, {}], [1e-300, 1.0, 1.0])
    assert swayed.shares[0] < 1e-9


def test_the_average_of_settings_is_one_linear_score_and_rows_may_be_in_any_order():
    inputs, ill, _ = made(50, 25)
    settings = [{"a": 0.1}, {"a": 0.3}, {}]
    found = ridge.fit({"a": inputs}, ill, settings)
    alone = [ridge.fit({"a": inputs}, ill, [setting])({"a": inputs}) for setting in settings]
    np.testing.assert_allclose(found({"a": inputs}), found.shares @ np.stack(alone), atol=1e-8)
    order = np.random.default_rng(1).permutation(50)
    mixed = ridge.fit({"a": inputs[order]}, Outcome(ill.happened[order], None, ill.owners[order]), settings)
    np.testing.assert_allclose(mixed({"a": inputs}), found({"a": inputs}), atol=1e-5)
