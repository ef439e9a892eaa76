import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import PoissonRegressor, RidgeCV

from behrt_jax.data.dataset import Patients
from behrt_jax.data.windows import MINUTES_PER_DAY
from behrt_jax.regression import outcome_features
from behrt_jax.simulation.hazards import AGE_YEARS, KINDS, MIN_SHARE, ORDER_DAYS, Rule, evaluate_rule, simulate_outcomes
from tests import survival_reference

TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "GENDER//F", *(f"C//{place:02d}" for place in range(30)))
BORN = np.datetime64("1950-01-01", "us")


def histories(codes, days, ages=0.0):
    """Patients with a static token and then a visit for each code; lists of code numbers and of days since birth."""
    sizes = np.array([len(own) for own in codes])
    visits = np.concatenate([np.arange(-1, size) for size in sizes])
    minutes = np.concatenate([[0, *np.asarray(own) * MINUTES_PER_DAY] for own in days]).astype(np.int32)
    return Patients(
        subject_ids=np.arange(len(sizes)),
        has_birth=np.ones(len(sizes), bool),
        origins=np.full(len(sizes), (BORN - np.datetime64("2000-01-01", "us")) // np.timedelta64(1, "m"), np.int32),
        offsets=np.append(0, np.cumsum(sizes + 1)),
        codes=np.concatenate([[5, *(6 + code for code in own)] for own in codes]).astype(np.int32),
        visits=visits.astype(np.int32),
        minutes=minutes,
        microseconds=np.zeros_like(minutes),
    )


def population(rows=3000, seed=0):
    """Histories of 4 to 30 codes in about ten years, common codes and rare ones; and a time after the last of each."""
    rng = np.random.default_rng(seed)
    chances = np.geomspace(0.3, 0.003, 30)
    codes = [rng.choice(30, rng.integers(4, 31), p=chances / chances.sum()) for _ in range(rows)]
    days = [np.sort(rng.uniform(0, 3650, len(own))) + 365 * rng.uniform(10, 60) for own in codes]
    now = [own[-1] + rng.uniform(1, 700) for own in days]
    return histories(codes, days), BORN + (np.array(now) * 86_400e6).astype("timedelta64[us]"), TOKENS


PEOPLE = population()


def concordance(outcomes, scores):
    return survival_reference.concordance(outcomes.events, outcomes.days, scores)


def by_definition(rule, codes, days, now):
    """The value of a rule for one history, event by event."""
    names = [f"C//{code:02d}" for code in codes]
    first, second = ([day for name, day in zip(names, days, strict=True) if name in group] for group in rule[1:3])
    if rule.kind == "order":
        return float(bool(first and second) and 0 < min(second) - min(first) <= rule.high)
    if rule.kind == "age":
        return np.log1p(sum(rule.low <= day / 365.25 < rule.high for day in first))
    return float(bool(first) and rule.low <= now - max(first) < rule.high)


def test_rules_are_what_they_say():
    rng = np.random.default_rng(1)
    codes = [rng.integers(0, 6, rng.integers(1, 12)) for _ in range(400)]
    days = [np.sort(rng.integers(0, 16, len(own))) * 100 for own in codes]  # often the same day, at times a bound
    now = np.array([own[-1] + rng.integers(1, 9) * 50 for own in days])
    patients, times = histories(codes, days), BORN + now.astype("timedelta64[D]")
    groups = ("C//00", "C//03"), ("C//01", "C//99")
    for rule in (
        Rule("order", *groups, 0.0, 300.0),
        Rule("age", groups[0], (), 1.0, 2.5),
        Rule("recency", groups[1], (), 100.0, 400.0),
    ):
        expected = [by_definition(rule, *row) for row in zip(codes, days, now, strict=True)]
        np.testing.assert_allclose(evaluate_rule(rule, patients, times, TOKENS), expected)
        assert 0.05 < np.mean(np.array(expected) > 0) < 0.9


def test_order_is_in_no_table_of_counts():
    """The same codes at the same times, but for the order of two of them, half a year apart and long ago."""
    codes, days = [[0, 1, 2, 3], [1, 0, 2, 3]], [[4000, 4180, 9000, 9001]] * 2
    patients, times = histories(codes, days), np.repeat(BORN + np.timedelta64(9500, "D"), 2)
    rule = Rule("order", ("C//00",), ("C//01",), 0.0, ORDER_DAYS)
    assert evaluate_rule(rule, patients, times, TOKENS).tolist() == [1.0, 0.0]
    tables = outcome_features.features(patients, times, TOKENS)
    np.testing.assert_allclose(*tables.codes.toarray(), atol=0.01)
    np.testing.assert_allclose(*tables.basic)


def test_a_regression_on_counts_misses_part_of_the_hazard():
    """Told the true log hazard of 2,000 people, without noise, it does not know that of the others."""
    truth = simulate_outcomes(*PEOPLE, seed=1, num_rules=6, spread=1.0)
    tables = outcome_features.features(*PEOPLE)
    table = np.hstack([tables.basic, tables.codes.toarray()])
    table = table[:, table.std(axis=0) > 1e-3]
    table = (table - table.mean(axis=0)) / table.std(axis=0)
    fitted = RidgeCV(np.geomspace(1, 1e4, 9)).fit(table[:2000], truth.log_hazard[:2000]).predict(table[2000:])
    assert 0.1 < np.corrcoef(fitted, truth.log_hazard[2000:])[0, 1] ** 2 < 0.7


def test_a_regression_on_the_rules_recovers_the_coefficients_and_no_score_is_above_the_oracle():
    truth = simulate_outcomes(*PEOPLE, seed=1, num_rules=6, spread=1.0)
    hazard = truth.hazard
    terms = np.stack([evaluate_rule(rule, *PEOPLE) for rule in hazard.rules], axis=1)
    terms = (terms - terms.mean(axis=0)) / terms.std(axis=0)
    model = PoissonRegressor(alpha=0, tol=1e-8).fit(terms, truth.events / truth.days, truth.days)
    np.testing.assert_allclose(model.coef_, hazard.coefficients, atol=0.12)
    assert model.intercept_ == pytest.approx(-np.log(truth.scale), abs=0.15)
    oracle, rng = concordance(truth, truth.log_hazard), np.random.default_rng(0)
    assert oracle > 0.7
    others = [terms[:, :-1] @ hazard.coefficients[:-1]]
    others += [truth.log_hazard + rng.normal(0, spread, 3000) for spread in (0.3, 1, 5)]
    found = [concordance(truth, scores) for scores in others]
    assert oracle > max(found) and found[1] > found[2] > found[3] and abs(found[3] - 0.5) < 0.1


def test_the_log_hazard_is_of_the_spread_asked_for_and_its_rules_vary():
    truth = simulate_outcomes(*PEOPLE, seed=2, spread=0.7, num_rules=7, group_size=3)
    assert truth.log_hazard.mean() == pytest.approx(0, abs=1e-9) and truth.log_hazard.std() == pytest.approx(0.7)
    rules = truth.hazard.rules
    assert [rule.kind for rule in rules] == [KINDS[number % 3] for number in range(7)]
    for rule in rules:
        assert len(rule.first) == 3 and len(rule.second) == 3 * (rule.kind == "order")
        assert not {*rule.first} & {*rule.second} and {*rule.first, *rule.second} <= {*TOKENS[6:]}
        values = evaluate_rule(rule, *PEOPLE)
        assert np.unique(values, return_counts=True)[1].max() <= (1 - MIN_SHARE) * len(values)
        assert rule.kind != "age" or rule.high - rule.low == pytest.approx(AGE_YEARS)
    again = truth.hazard.log_hazard(*PEOPLE)
    np.testing.assert_allclose(again, truth.log_hazard)


@pytest.mark.parametrize(("censored", "shape"), [(0.0, 1.0), (0.3, 0.7), (0.8, 2.0)])
def test_censoring_is_of_the_share_asked_for_and_tells_nothing(censored, shape):
    truth = simulate_outcomes(*PEOPLE, seed=3, censored=censored, shape=shape)
    assert 1 - truth.events.mean() == pytest.approx(censored, abs=0.03)
    if censored:  # by the time they were followed, rows are as often censored at any hazard
        rate = (~truth.events).sum() / truth.days.sum()
        high = truth.log_hazard > np.median(truth.log_hazard)
        for rows in (high, ~high):
            expected = rate * truth.days[rows].sum()
            assert (~truth.events[rows]).sum() == pytest.approx(expected, abs=4 * np.sqrt(expected))


def test_survival_is_the_truth():
    """The survival at the own time of each row is uniform."""
    truth = simulate_outcomes(*PEOPLE, seed=4, censored=0, shape=1.5, scale=700)
    order = np.argsort(truth.days)
    curves = truth.survival(truth.days[order[::100]])
    own = np.exp(-np.exp(truth.log_hazard) * (truth.days / 700) ** 1.5)
    np.testing.assert_allclose(curves[order[::100], np.arange(30)], own[order[::100]])
    assert scipy.stats.kstest(own, "uniform").pvalue > 0.01


def test_all_is_a_function_of_the_arguments():
    first, again, other = (simulate_outcomes(*PEOPLE, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.days, again.days)
    assert first.hazard.rules == again.hazard.rules != other.hazard.rules and (other.days != first.days).all()
    milder = simulate_outcomes(*PEOPLE, seed=5, spread=0.5)  # of the same draws
    np.testing.assert_allclose(milder.log_hazard * 3, first.log_hazard)
    np.testing.assert_array_equal(simulate_outcomes(*PEOPLE, seed=5, spread=0).log_hazard, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"censored": 1.0}, "censored is 1.0; expected 0 or more and below 1"),
        ({"spread": -1}, "spread is -1"),
        ({"scale": 0}, "scale is 0; expected above 0 days"),
        ({"shape": np.nan}, "shape is nan"),
        ({"num_rules": 0}, "num_rules is 0"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": 15}, r"group_size is 15, but 2\d codes are in 5% to 90% of 3,000 histories; expected 30"),
    ],
)
def test_what_cannot_be_drawn_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        simulate_outcomes(*PEOPLE, seed=0, **change)


def test_histories_that_are_too_short_for_an_order_are_said(monkeypatch):
    monkeypatch.setattr("behrt_jax.simulation.hazards.MAX_TRIES", 20)
    codes = [[place % 8] for place in range(80)]
    patients, times = histories(codes, [[5000]] * 80), np.repeat(BORN + np.timedelta64(6000, "D"), 80)
    with pytest.raises(ValueError, match="no rule of order differs in 15% of 80 histories .* raise group_size"):
        simulate_outcomes(patients, times, TOKENS, seed=0, group_size=1)
