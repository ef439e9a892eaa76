"""Times to events: losses and curves against lifelines, plain definitions, closed forms and cases worked by hand."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import lifelines
import numpy as np
import pandas as pd
import pytest
import scipy.optimize

from behrt_jax.objectives import survival
from behrt_jax.objectives.survival import SurvivalConfig
from tests import survival_reference, tiny

try:
    from jax import enable_x64
except ImportError:  # in JAX 0.5
    from jax.experimental import enable_x64


EDGES = (10.0, 30.0, 80.0, 365.0)


pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


def config(loss, num_causes=1, edges=EDGES):
    return SurvivalConfig(loss=loss, num_bins=4, edges=edges, num_causes=num_causes)


def population(size, num_causes=1, seed=0, mean=60.0, whole=None):
    """Exponential times with two covariates, ended by causes or by censoring; `whole` rounds days up to multiples."""
    rng = np.random.default_rng(seed)
    covariates = rng.normal(size=(size, 2))
    rates = np.exp(covariates @ np.array([0.8, -0.5])) / mean
    times = rng.exponential(1 / rates)
    censoring = rng.exponential(1.5 * mean, size)
    days = np.minimum(times, censoring)
    days = np.ceil(days / whole) * whole if whole else days
    events = np.where(times <= censoring, rng.integers(1, num_causes + 1, size), 0)
    return covariates, days.astype(np.float32), events.astype(np.int32)


@functools.cache
def total_loss(settings):
    """Value and gradient of the loss of (N, K) logits, summed over labelled patients."""

    @jax.jit
    @jax.value_and_grad
    def loss(logits, days, events, labelled):
        row = (logits[None], days[None], events[None], labelled[None])
        return survival.survival_losses(*row, settings).sum()

    return lambda logits, days, events: loss(logits, days, events, np.ones(len(days), bool))


@functools.cache
def each_loss(settings):
    return jax.jit(functools.partial(survival.survival_losses, config=settings))


def by_hand(settings, logits, days, events):
    row = (np.asarray(logits, np.float32)[None], np.asarray(days, np.float32)[None], np.asarray(events)[None])
    return np.asarray(each_loss(settings)(*row, np.ones((1, len(days)), bool)))[0]


def log_odds(share):
    return math.log(share / (1 - share))


# ---- discrete hazards
def test_a_discrete_loss_by_hand():
    """Hazards 0.2 and 0.5 of bins that end on day 10 and day 20."""
    settings = config("discrete", edges=(10.0, 20.0))
    days = [4, 10, 15, 20, 10, 5, 12, 20, 50, 50]
    events = [1, 1, 1, 1, 0, 0, 0, 0, 0, 1]
    expected = [
        0.2,
        0.2,  # an edge belongs to the bin that it closes
        0.8 * 0.5,
        0.8 * 0.5,
        0.8,  # censored at an edge: has survived whole bins
        1 - 0.5 * 0.2,  # censored half-way
        0.8 * (1 - 0.2 * 0.5),
        0.8 * 0.5,
        0.8 * 0.5,
        0.8 * 0.5,  # an event beyond the edges is not seen
    ]
    logits = np.tile([log_odds(0.2), log_odds(0.5)], (len(days), 1))
    np.testing.assert_allclose(np.exp(-by_hand(settings, logits, days, events)), expected, rtol=1e-5)


def test_discrete_causes_by_hand():
    """Causes of hazards 0.2 and 0.3, against which 0.5 survive the bin."""
    settings = config("discrete", num_causes=2, edges=(10.0,))
    logits = np.tile(np.log([0.2 / 0.5, 0.3 / 0.5]), (4, 1))
    found = np.exp(-by_hand(settings, logits, [5, 5, 10, 4], [1, 2, 0, 0]))
    np.testing.assert_allclose(found, [0.2, 0.3, 0.5, 1 - 0.4 * 0.5], rtol=1e-5)


def survival_curve(logits, settings, days, baseline=None):
    """The probability of no event by each day, (N, T)."""
    return 1.0 - survival.risks(logits, settings, days, baseline).sum(axis=1)


@pytest.mark.parametrize("loss", ["discrete", "piecewise"])
@pytest.mark.parametrize("num_causes", [1, 3])
def test_the_loss_of_the_censored_is_minus_the_log_of_their_curve(loss, num_causes):
    settings = config(loss, num_causes)
    rng = np.random.default_rng(0)
    logits = rng.normal(-4 if loss == "piecewise" else -1, 1, (40, settings.num_logits)).astype(np.float32)
    days = rng.uniform(1, 360, 40).astype(np.float32)
    curves = np.diagonal(survival_curve(logits, settings, days))
    np.testing.assert_allclose(
        np.exp(-by_hand(settings, logits, days, np.zeros(40, int))), curves, rtol=2e-4, atol=1e-7
    )


def test_discrete_hazards_without_covariates_are_a_life_table():
    """With all times at the ends of bins, curves are Kaplan-Meier's, and the loss is lowest there."""
    _, days, events = population(400, whole=25.0)
    edges = (25.0, 50.0, 75.0, 100.0, 125.0, 150.0)
    settings = config("discrete", edges=edges)
    bias = survival.initial_bias(days, events, settings)
    expected = lifelines.KaplanMeierFitter().fit(days, events).predict(list(edges)).to_numpy()
    np.testing.assert_allclose(survival_curve(bias[None], settings, edges)[0], expected, rtol=1e-5)
    _, slope = total_loss(settings)(np.tile(bias, (400, 1)), days, events)
    np.testing.assert_allclose(np.asarray(slope).sum(axis=0), 0, atol=1e-3)


def fit(settings, days, events):
    """The logits without covariates at which the loss is lowest."""

    def objective(bias):
        value, slope = total_loss(settings)(np.tile(bias.astype(np.float32), (len(days), 1)), days, events)
        return float(value), np.asarray(slope, np.float64).sum(axis=0)

    begin = survival.initial_bias(days, events, settings)
    return scipy.optimize.minimize(objective, begin.astype(np.float64), jac=True, method="L-BFGS-B").x


def test_planted_hazards_are_found_where_many_are_censored_within_bins():
    """Events even within bins of hazards 0.3 and 0.4: to count whole bins alone would find 0.39 and 0.5."""
    rng = np.random.default_rng(2)
    size, hazards = 40_000, (0.3, 0.4)
    bins = np.where(rng.random(size) < hazards[0], 0, np.where(rng.random(size) < hazards[1], 1, 2))
    times = 10.0 * bins + rng.uniform(0, 10, size)
    censoring = rng.uniform(0, 25, size)
    days, events = np.minimum(times, censoring).astype(np.float32), (times <= censoring).astype(np.int32)
    found = 1 / (1 + np.exp(-fit(config("discrete", edges=(10.0, 20.0)), days, events)))
    np.testing.assert_allclose(found, hazards, atol=0.012)


def test_cumulative_incidence_is_that_of_aalen_and_johansen():
    _, days, events = population(600, num_causes=2, whole=20.0)
    edges = (20.0, 40.0, 60.0, 80.0, 100.0)
    settings = config("discrete", 2, edges)
    found = survival.risks(survival.initial_bias(days, events, settings)[None], settings, edges)[0]
    times, expected = survival_reference.aalen_johansen(days, events, 2)
    np.testing.assert_allclose(found, expected[:, np.searchsorted(times, edges)], rtol=1e-5)
    # What it is not: 1 - Kaplan-Meier with the other cause censored, which is more.
    naive = 1 - lifelines.KaplanMeierFitter().fit(days, events == 1).predict(list(edges)).to_numpy()
    assert (found[0, 1:] < naive[1:] - 0.01).all()


def test_cumulative_incidence_of_rates_is_near_that_of_lifelines():
    _, days, events = population(3000, num_causes=2)
    settings = config("piecewise", 2, survival.fit_edges(days, events, 20))
    horizons = [5, 20, 60, 150]
    found = survival.risks(survival.initial_bias(days, events, settings)[None], settings, horizons)[0]
    for cause in (1, 2):
        fitter = lifelines.AalenJohansenFitter(calculate_variance=False).fit(days, events, cause)
        table = fitter.cumulative_density_.iloc[:, 0]
        expected = table.to_numpy()[np.searchsorted(table.index, horizons, side="right") - 1]
        np.testing.assert_allclose(found[cause - 1], expected, atol=0.006)


# ---- piecewise rates
def test_the_best_rates_are_those_of_lifelines():
    _, days, events = population(800)
    settings = config("piecewise")
    fitter = lifelines.PiecewiseExponentialFitter(list(EDGES[:-1])).fit(days, events)
    rates = 1 / fitter.params_.to_numpy()  # its lambdas are the means
    bias = survival.initial_bias(days, events, settings)
    np.testing.assert_allclose(np.exp(bias), rates, rtol=1e-3)
    _, slope = total_loss(settings)(np.tile(bias, (800, 1)), days, events)
    np.testing.assert_allclose(np.asarray(slope).sum(axis=0), 0, atol=2e-3)
    found = survival_curve(bias[None], settings, [5, 50, 400])[0]
    np.testing.assert_allclose(found, fitter.survival_function_at_times([5, 50, 400]), rtol=2e-3)


def test_cumulative_incidence_of_rates_is_the_integral_of_rate_times_survival():
    settings = config("piecewise", 2)
    logits = np.random.default_rng(0).normal(-4, 1, (1, 8))
    rates = np.exp(logits.reshape(2, 4))

    def density(day, cause):
        bin_ = np.searchsorted(EDGES[:-1], day)
        return rates[cause, bin_] * survival_curve(logits, settings, [day])[0, 0]

    found = survival.risks(logits, settings, [200.0])[0]
    for cause in (0, 1):
        parts = [(0, 10), (10, 30), (30, 80), (80, 200)]
        expected = sum(scipy.integrate.fixed_quad(np.vectorize(density), *part, (cause,), n=8)[0] for part in parts)
        np.testing.assert_allclose(found[cause, 0], expected, rtol=1e-4)


# ---- Cox
def test_efron_ties_by_hand():
    """Hazards 1 to 5; the first two have events on day 3, another is censored then, one has an event on day 8."""
    scores, days, events = np.log([[1.0], [2.0], [3.0], [4.0], [5.0]]), [3, 3, 3, 8, 9], [1, 1, 0, 1, 0]
    found = by_hand(config("cox"), scores, days, events)
    # Of the two on day 3, one finds all 15 at risk, and one finds half of their own 3 gone.
    expected = [math.log(15) - math.log(1), math.log(15 - 1.5) - math.log(2), 0, math.log(9) - math.log(4), 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_the_partial_likelihood_is_that_of_lifelines_and_its_so_are_its_best_coefficients():
    covariates, days, events = population(300, whole=10.0)
    assert len(np.unique(days)) < 60  # many ties
    frame = pd.DataFrame(covariates, columns=["a", "b"]).assign(days=days, events=events)
    fitter = lifelines.CoxPHFitter().fit(frame, "days", "events")
    best = fitter.params_.to_numpy()
    with enable_x64():

        @jax.jit
        @jax.value_and_grad
        def loss(coefficients):
            return survival.cox_losses(
                jnp.asarray(covariates) @ coefficients, jnp.asarray(days), jnp.asarray(events > 0), jnp.ones(300, bool)
            ).sum()

        value, _ = loss(best)
        assert float(value) == pytest.approx(-fitter.log_likelihood_, rel=1e-8)
        found = scipy.optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    np.testing.assert_allclose(found, best, rtol=1e-4)


def test_other_causes_are_censored_in_each_partial_likelihood():
    covariates, days, events = population(200, num_causes=2, whole=5.0)
    both = by_hand(config("cox", 2), covariates, days, events)
    one, two = (by_hand(config("cox"), covariates[:, c : c + 1], days, events == c + 1) for c in (0, 1))
    np.testing.assert_allclose(both, one + two, rtol=1e-6)
    assert not both[events == 0].any() and both[events > 0].all()


def test_the_baseline_and_the_curves_of_cox_are_those_of_lifelines():
    covariates, days, events = population(300, whole=10.0)
    frame = pd.DataFrame(covariates, columns=["a", "b"]).assign(days=days, events=events)
    fitter = lifelines.CoxPHFitter().fit(frame, "days", "events")
    scores = (covariates @ fitter.params_.to_numpy())[:, None]
    baseline = survival.breslow(scores, days, events)
    horizons = np.array([10.0, 40.0, 120.0])
    curves = fitter.predict_survival_function(frame, times=horizons).to_numpy().T
    np.testing.assert_allclose(survival_curve(scores, config("cox"), horizons, baseline), curves, rtol=1e-6)
    np.testing.assert_array_equal(survival.risk_scores(scores, config("cox")), scores)


def test_risks_of_cox_without_covariates_are_near_aalen_and_johansen():
    _, days, events = population(3000, num_causes=2)
    baseline = survival.breslow(np.zeros((3000, 2)), days, events)
    horizons = [5, 20, 60, 150]
    found = survival.risks(np.zeros((1, 2)), config("cox", 2), horizons, baseline)[0]
    times, expected = survival_reference.aalen_johansen(days, events, 2)
    np.testing.assert_allclose(found, expected[:, np.searchsorted(times, horizons, side="right") - 1], atol=1e-3)


def test_cox_has_no_curve_without_a_baseline():
    with pytest.raises(ValueError, match="baseline: found None"):
        survival.risks(np.zeros((3, 1)), config("cox"), [30])


# ---- all three
def logits_and_baseline(settings, size=700):
    rng = np.random.default_rng(3)
    logits = rng.normal({"piecewise": -4, "discrete": -1, "cox": 0}[settings.loss], 1, (size, settings.num_logits))
    _, days, events = population(400, settings.num_causes)
    return logits, survival.breslow(rng.normal(size=(400, settings.num_causes)), days, events)


@pytest.mark.parametrize("loss", survival.LOSSES)
@pytest.mark.parametrize("num_causes", [1, 3])
def test_risks_begin_at_0_rise_and_add_up_with_the_curve_to_1(loss, num_causes):
    settings = config(loss, num_causes)
    logits, baseline = logits_and_baseline(settings)
    horizons = np.array([0.0, 1.0, 10.0, 25.0, 30.0, 200.0, 365.0, 4000.0])
    found = survival.risks(logits, settings, horizons, baseline)
    assert found.shape == (700, num_causes, 8) and not found[..., 0].any()
    assert (np.diff(found, axis=-1) > -1e-12).all() and (found[..., 3] > found[..., 1]).all()
    np.testing.assert_allclose(found.sum(axis=1) + survival_curve(logits, settings, horizons, baseline), 1, rtol=1e-12)
    assert (found.sum(axis=1) <= 1 + 1e-12).all()
    one = survival.risks(logits[:3], settings, horizons[3:4], baseline)  # of each patient on their own
    np.testing.assert_allclose(one[..., 0], found[:3, :, 3], rtol=1e-12)
    assert survival.risks(logits[:0], settings, horizons, baseline).shape == (0, num_causes, 8)


@pytest.mark.parametrize("loss", survival.LOSSES)
def test_scores_rise_with_the_hazards_of_their_cause_even_of_those_at_high_risk(loss):
    settings = config(loss, 2)
    shift = np.linspace(-3, 3, 50) + (2 if loss == "discrete" else 0)
    logits = np.tile(np.full(settings.num_logits, -2.0), (50, 1)).reshape(50, 2, -1)
    logits[:, 1] += shift[:, None]
    scores = survival.risk_scores(logits.reshape(50, -1), settings)
    assert scores.shape == (50, 2) and (np.diff(scores[:, 1]) > 0).all() and (np.diff(scores[:, 0]) <= 0).all()


@pytest.mark.parametrize("loss", survival.LOSSES)
def test_gradients_are_those_of_central_differences(loss, num_causes=2):
    """Rates are float32 by design, so steps are larger there."""
    settings = config(loss, num_causes)
    rng = np.random.default_rng(0)
    _, days, events = population(30, num_causes, whole=4.0)
    logits = rng.normal(-4 if loss == "piecewise" else 0, 1, (30, settings.num_logits))
    step, tolerance = (1e-2, 5e-3) if loss == "piecewise" else (1e-5, 1e-6)
    with enable_x64():
        run = total_loss(settings)
        _, slope = run(logits, days.astype(np.float64), events)
        for _ in range(10):
            direction = rng.standard_normal(logits.shape)
            ends = [
                float(run(logits + sign * step * direction, days.astype(np.float64), events)[0]) for sign in (1, -1)
            ]
            expected = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose((slope * direction).sum(), expected, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("loss", survival.LOSSES)
@pytest.mark.parametrize("extreme", [-1e4, -80.0, 80.0, 1e4])
def test_extreme_logits_give_finite_losses_and_gradients(loss, extreme):
    settings = config(loss, 2)
    days = np.array([0.001, 5, 10, 20, 20, 365, 1e5], np.float32)
    events = np.array([1, 0, 2, 1, 1, 0, 0])
    logits = np.where(np.random.default_rng(0).random((7, settings.num_logits)) < 0.5, extreme, 0).astype(np.float32)
    value, slope = total_loss(settings)(logits, days, events)
    assert np.isfinite(value) and np.isfinite(slope).all()


def labelled_batch(num_causes):
    """Three rows of four slots; five are empty."""
    _, days, events = population(12, num_causes, whole=20.0)
    batch = tiny.packed_batch([[3, 3, 3, 3], [6], [5, 5]], 12)
    weights = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], np.float32)
    days = days.reshape(3, 4) / np.float32(100)  # some below what stands in for those of empty slots
    return {**batch, "days": days, "events": events.reshape(3, 4), "weights": weights}


@functools.cache
def objective_loss(settings):
    model = types.SimpleNamespace(apply=lambda params, *args, **kwargs: params)
    objective = survival.make_objective(model, settings)
    assert objective.weights == {"survival/loss": 1.0}

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(logits, batch):
        prepared = objective.prepare(batch, jax.random.key(0))
        total, count = objective.measure(logits, prepared, None)["survival/loss"]
        return total, (count, objective.count(prepared)["survival/loss"])

    return loss


@pytest.mark.parametrize("loss", survival.LOSSES)
def test_the_objective_is_that_of_labelled_patients_and_empty_slots_change_nothing(loss, num_causes=2):
    settings, batch = config(loss, num_causes), labelled_batch(num_causes)
    logits = np.random.default_rng(0).normal(-1, 1, (3, 4, settings.num_logits)).astype(np.float32)
    kept = batch["weights"] > 0
    (total, (count, again)), slope = objective_loss(settings)(logits, batch)
    expected = by_hand(settings, logits[kept], batch["days"][kept], batch["events"][kept])
    assert float(total) == pytest.approx(expected.sum(), rel=1e-5)
    assert count == again == (kept & (batch["events"] > 0)).sum() if loss == "cox" else count == again == 7
    assert not np.asarray(slope)[~kept].any() and np.asarray(slope)[kept].any()
    for odd in (np.nan, 0.0, -5.0, np.inf, 1e9):
        other = {
            **batch,
            "days": np.where(kept, batch["days"], np.float32(odd)),
            "events": np.where(kept, batch["events"], 1),
        }
        (value, (_, _)), found = objective_loss(settings)(np.where(kept[..., None], logits, 5.0), other)
        assert float(value) == float(total)
        np.testing.assert_array_equal(found, slope)


def test_a_batch_without_events_gives_cox_nothing_to_learn():
    batch = labelled_batch(2)
    (total, (count, _)), slope = objective_loss(config("cox", 2))(
        np.zeros((3, 4, 2), np.float32), {**batch, "events": np.zeros((3, 4), np.int32)}
    )
    assert total == 0 and count == 0 and not np.asarray(slope).any()


@pytest.mark.parametrize("num_bins", [1, 4, 10])
def test_bins_hold_as_many_events(num_bins):
    _, days, events = population(1000)
    edges = survival.fit_edges(days, events, num_bins)
    counts = np.histogram(days[events > 0], np.nextafter(np.float32([0, *edges]), np.float32(1e9)))[0]
    assert len(edges) == num_bins and counts.sum() == (events > 0).sum() and np.ptp(counts) <= 1
    assert edges[-1] == days[events > 0].max() and all(isinstance(edge, float) for edge in edges)
    settings = config("discrete", edges=edges)
    assert len(survival.initial_bias(days, events, settings)) == settings.num_logits == num_bins


def test_bins_are_fewer_where_events_share_days_and_none_is_empty():
    edges = survival.fit_edges(np.array([3, 3, 3, 3, 9, 20]), np.array([1, 1, 1, 2, 1, 0]), 4)
    assert edges == (3.0, 9.0)


def test_the_initial_bias_is_finite_for_causes_that_miss_in_a_bin():
    days, events = np.array([5.0, 25, 25, 300, 300, 50]), np.array([1, 2, 2, 1, 2, 0])
    for loss in ("discrete", "piecewise"):
        bias = survival.initial_bias(days, events, config(loss, 2))
        assert bias.shape == (8,) and bias.dtype == np.float32 and np.isfinite(bias).all()
    assert survival.initial_bias(days, events, config("cox", 2)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("days", "events", "message"),
    [
        ([5, 0, np.nan, -1, np.inf], [1, 1, 0, 0, 0], "days: found 4 of 5 that are not finite or not above 0"),
        ([5, 6], [0, 0], r"events: found counts \[2, 0, 0\]"),
        ([5, 6], [0, 1], r"events: found counts \[1, 1, 0\] of censored and of each cause in 2 labels"),
        ([5, 6, 7, 8], [0, 1, 2, 3], r"events: found counts \[1, 1, 1, 1\].* survival.num_causes=2"),
        ([5, 6], [1, 2], r"survival.edges: found .* reach to day 6.* leave later edges out"),
    ],
)
def test_labels_that_cannot_be_learnt_from_are_named(days, events, message):
    with pytest.raises(ValueError, match=message):
        survival.initial_bias(np.array(days, float), np.array(events), config("discrete", 2))


def test_a_second_cause_is_not_taken_for_the_first():
    with pytest.raises(ValueError, match=r"events: found counts \[1, 1, 1\].* survival.num_causes=1"):
        survival.initial_bias(np.array([5.0, 6, 7]), np.array([0, 1, 2]), config("discrete"))


def test_edges_need_an_event():
    with pytest.raises(ValueError, match=r"events: found counts \[3, 0\]"):
        survival.fit_edges(np.ones(3), np.zeros(3, int), 4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"loss": "weibull"}, "survival.loss: found 'weibull'; expected one of discrete, cox, piecewise"),
        ({"num_bins": 0}, "survival.num_bins: found 0; expected 1 or more"),
        ({"num_causes": 0}, "survival.num_causes: found 0"),
        ({"edges": (30.0, 10.0)}, r"survival.edges: found \(30.0, 10.0\); expected days above 0 in ascending order"),
        ({"edges": (0.0, 10.0)}, "survival.edges"),
    ],
)
def test_wrong_settings_name_key_and_value(overrides, message):
    with pytest.raises(ValueError, match=message):
        SurvivalConfig(**{"loss": "cox", "num_bins": 8, "edges": (), "num_causes": 1, **overrides})
