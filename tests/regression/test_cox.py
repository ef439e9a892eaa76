import lifelines.statistics
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from behrt_jax.regression import cox


def population(seed=0, size=200, features=6, apart=1.0):
    """Times to an event, of which many tie, and features that matter for it, of which every other one does."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(size, features)) * (rng.random((size, features)) < 0.5)
    effects = np.where(np.arange(features) % 2, 0.0, 0.8)
    until, censored = rng.exponential(30 * np.exp(-inputs @ effects)), rng.uniform(5, 60, size)
    days = np.maximum(np.ceil(np.minimum(until, censored) / apart), 1) * apart
    return inputs, days, until <= censored


def efron(log_risks, days, events) -> float:
    """Minus the log partial likelihood, day by day."""
    total = 0.0
    for day in np.unique(days[events]):
        risks, tied = np.exp(log_risks[days >= day]).sum(), events & (days == day)
        for place in range(tied.sum()):
            total += np.log(risks - place / tied.sum() * np.exp(log_risks[tied]).sum())
        total -= log_risks[tied].sum()
    return total


@pytest.mark.parametrize("apart", [1e-6, 5.0])
def test_the_likelihood_and_its_gradient_are_those_of_efron(apart):
    inputs, days, events = population(apart=apart, size=60)
    log_risks = inputs @ np.random.default_rng(1).normal(size=6) + 300
    value, gradient = cox.PartialLikelihood(days, events)(log_risks)
    assert value == pytest.approx(efron(log_risks - 300, days, events), rel=1e-9)
    numeric = scipy.optimize.approx_fprime(log_risks - 300, efron, 1e-6, days, events)
    np.testing.assert_allclose(gradient, numeric, atol=1e-4)


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array])
def test_weights_without_a_penalty_are_those_of_lifelines(kind):
    inputs, days, events = population()
    assert len(np.unique(days[events])) < events.sum() / 2
    fitter = lifelines.CoxPHFitter().fit(pd.DataFrame(inputs).assign(days=days, events=events), "days", "events")
    np.testing.assert_allclose(cox.fit_ridge(kind(inputs), days, events, 1e-9), fitter.params_, atol=1e-4)
    value, _ = cox.PartialLikelihood(days, events)(inputs @ fitter.params_.to_numpy())
    assert value == pytest.approx(-fitter.log_likelihood_)


def test_a_ridge_is_paid_for_by_the_likelihood():
    inputs, days, events = population()
    weights = cox.fit_ridge(inputs, days, events, 20.0)
    slopes = scipy.optimize.approx_fprime(weights, lambda each: efron(inputs @ each, days, events), 1e-6)
    np.testing.assert_allclose(slopes, -20.0 * weights, atol=1e-3)
    assert np.abs(weights).max() < np.abs(cox.fit_ridge(inputs, days, events, 0.1)).max()


@pytest.mark.parametrize("ratio", [0.1, 0.9])
def test_a_path_meets_the_conditions_of_its_minimum(ratio):
    """The slope of a feature that is used is its penalty; that of another is below the L1 penalty (KKT)."""
    inputs, days, events = population(features=40)
    found = list(cox.fit_path(inputs, days, events, ratio, [1.001, 0.3, 0.03]))
    assert not found[0][1].any() and 0 < np.count_nonzero(found[1][1]) < np.count_nonzero(found[2][1])
    for penalty, weights in found[1:]:
        value = scipy.optimize.approx_fprime(weights, lambda each: efron(inputs @ each, days, events), 1e-6)
        slopes, used = -value / len(days) - (1 - ratio) * penalty * weights, weights != 0
        np.testing.assert_allclose(slopes[used], (ratio * penalty * np.sign(weights))[used], atol=2e-5)
        assert np.abs(slopes[~used]).max(initial=0) < ratio * penalty * 1.002


def test_nothing_happened():
    inputs, days, events = population()
    none = np.zeros_like(events)
    assert not cox.fit_ridge(inputs, days, none, 1.0).any()
    assert not any(weights.any() for _, weights in cox.fit_path(inputs, days, none, 0.5, [1.0, 0.1]))


@pytest.mark.parametrize("groups", [2, 3])
def test_log_rank_is_that_of_lifelines(groups):
    _, days, events = population(apart=5.0)
    group = np.random.default_rng(2).integers(0, groups, len(days))
    expected = lifelines.statistics.multivariate_logrank_test(days, group, events)
    assert cox.log_rank(days, events, group) == pytest.approx((expected.test_statistic, expected.p_value))
    assert cox.log_rank(np.where(group == 0, days / 5, days), events, group)[1] < 0.01
