import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from behrt_jax import cox
from behrt_jax.data.outcomes import simulate_outcomes
from tests import survival_reference


def population(seed=0, rows=3000):
    """Counts of 30 codes, one of them of heavy tails, one constant and one of a single row; then age and sex."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(1, 1, 30), (rows, 30)).astype(float)
    counts[:, 0] = rng.pareto(1, rows)
    counts[:, 1], counts[:, 2] = 3, np.arange(rows) == 7
    return np.column_stack([counts, rng.uniform(20, 90, rows), rng.integers(0, 2, rows)])


def concordance(outcomes, scores):
    return survival_reference.concordance(outcomes.events, outcomes.days, scores)


def test_a_cox_model_recovers_the_coefficients_and_no_score_is_above_the_oracle():
    outcomes = simulate_outcomes(population(), seed=1, num_columns=5, num_interactions=2)
    weights = cox.fit_ridge(outcomes.terms, outcomes.days, outcomes.events, 1e-6)
    np.testing.assert_allclose(weights, outcomes.coefficients, atol=0.1)
    assert np.abs(outcomes.coefficients).max() > 0.4
    oracle, rng = concordance(outcomes, outcomes.log_hazard), np.random.default_rng(0)
    assert oracle > 0.7
    without_pairs = outcomes.terms[:, :5] @ outcomes.coefficients[:5]
    others = [without_pairs, *(outcomes.log_hazard + rng.normal(0, spread, 3000) for spread in (0.2, 1, 5))]
    found = [concordance(outcomes, scores) for scores in others]
    assert oracle > max(found) and found[1] > found[2] > found[3] and abs(found[3] - 0.5) < 0.1


def test_the_log_hazard_is_the_sum_of_its_terms_and_of_the_spread_asked_for():
    features = population()
    outcomes = simulate_outcomes(features, seed=2, spread=0.7)
    assert outcomes.log_hazard.mean() == pytest.approx(0, abs=1e-9) and outcomes.log_hazard.std() == pytest.approx(0.7)
    np.testing.assert_allclose(outcomes.terms @ outcomes.coefficients, outcomes.log_hazard)
    own = features[:, outcomes.columns]
    own = own.clip(*np.quantile(own, [0.01, 0.99], axis=0))
    scaled = ((own - own.mean(axis=0)) / own.std(axis=0)).clip(-3, 3)
    products = scaled[:, outcomes.pairs[:, 0]] * scaled[:, outcomes.pairs[:, 1]]
    expected = np.concatenate([scaled, products], axis=1)
    np.testing.assert_allclose(outcomes.terms, expected - expected.mean(axis=0), atol=1e-9)
    assert not {1, 2} & {*outcomes.columns} and len(set(outcomes.columns)) == 10
    assert (outcomes.pairs[:, 0] < outcomes.pairs[:, 1]).all() and len({*map(tuple, outcomes.pairs)}) == 3


@pytest.mark.parametrize(("censored", "shape"), [(0.0, 1.0), (0.3, 0.7), (0.8, 2.0)])
def test_censoring_is_of_the_share_asked_for_and_tells_nothing(censored, shape):
    outcomes = simulate_outcomes(population(), seed=3, censored=censored, shape=shape)
    assert 1 - outcomes.events.mean() == pytest.approx(censored, abs=0.03)
    if censored:  # by the time they were followed, rows are as often censored at any hazard
        rate = (~outcomes.events).sum() / outcomes.days.sum()
        high = outcomes.log_hazard > np.median(outcomes.log_hazard)
        for rows in (high, ~high):
            expected = rate * outcomes.days[rows].sum()
            assert (~outcomes.events[rows]).sum() == pytest.approx(expected, abs=4 * np.sqrt(expected))


def test_survival_is_the_truth():
    """The survival at the own time of each row is uniform."""
    outcomes = simulate_outcomes(population(), seed=4, censored=0, shape=1.5, scale=700)
    order = np.argsort(outcomes.days)
    curves = outcomes.survival(outcomes.days[order[::100]])
    own = np.exp(-np.exp(outcomes.log_hazard) * (outcomes.days / 700) ** 1.5)
    np.testing.assert_allclose(curves[order[::100], np.arange(30)], own[order[::100]])
    assert scipy.stats.kstest(own, "uniform").pvalue > 0.01


def test_all_is_a_function_of_the_arguments_and_sparse_tables_are_the_same():
    features = population(rows=400)
    first, again = (simulate_outcomes(features, seed=5) for _ in range(2))
    for table in (scipy.sparse.csr_array(features), scipy.sparse.coo_array(features)):
        sparse = simulate_outcomes(table, seed=5)
        for one, other, third in zip(first, again, sparse, strict=True):
            np.testing.assert_array_equal(one, other)
            np.testing.assert_allclose(one, third)
    other = simulate_outcomes(features, seed=6)
    assert (other.days != first.days).all() and list(other.columns) != list(first.columns)
    milder = simulate_outcomes(features, seed=5, spread=0.5)  # of the same draws
    np.testing.assert_allclose(milder.log_hazard * 2, first.log_hazard)


def test_nothing_foretells_outcomes_without_spread():
    outcomes = simulate_outcomes(population(), seed=7, spread=0, num_interactions=0)
    np.testing.assert_array_equal(outcomes.log_hazard, 0)
    weights = cox.fit_ridge(outcomes.terms, outcomes.days, outcomes.events, 1e-3)
    assert np.abs(weights).max() < 0.12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"censored": 1.0}, "censored is 1.0; expected 0 or more and below 1"),
        ({"spread": -1}, "spread is -1"),
        ({"scale": 0}, "scale is 0; expected above 0 days"),
        ({"shape": np.nan}, "shape is nan"),
        ({"num_columns": 0}, "num_columns is 0"),
        ({"num_columns": 3, "num_interactions": 4}, "num_interactions is 4; expected 0 to 3"),
        ({"num_columns": 31}, r"num_columns is 31, but 2\d of 32 features differ in 5% of 400 rows"),
    ],
)
def test_what_cannot_be_drawn_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        simulate_outcomes(population(rows=400), seed=0, **change)
    with pytest.raises(ValueError, match="2 of them are not finite"):
        simulate_outcomes(scipy.sparse.csr_array([[np.nan, 1.0], [0, np.inf]]), seed=0)
