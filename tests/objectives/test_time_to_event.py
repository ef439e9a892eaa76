"""Events: the likelihood of piecewise-constant rates against a slow loop, closed forms, and rates that are learnt."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from behrt_jax.models.pretraining import BEHRTForPretraining
from behrt_jax.objectives import time_to_event
from tests import tiny
from tests.models.drawn import parameters

EDGES = (10.0, 30.0, 365.0)


pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


@functools.cache
def losses(edges):
    return jax.jit(functools.partial(time_to_event.event_losses, edges=edges))


def by_loop(log_rates, days, happened, edges):
    """-log of the density of an event at its time, or of none until then, bin by bin."""
    bounds = [0.0, *edges, math.inf]
    found = np.zeros(days.shape)
    for place in np.ndindex(days.shape):
        row, visit, code = place
        for number, (low, high) in enumerate(zip(bounds, bounds[1:], strict=False)):
            if days[place] > low:
                rate = math.exp(log_rates[row, visit, number, code])
                found[place] += rate * (min(days[place], high) - low)
                if days[place] <= high and happened[place]:
                    found[place] -= log_rates[row, visit, number, code]
    return found


def test_losses_are_what_a_loop_finds():
    rng = np.random.default_rng(0)
    log_rates = rng.normal(-4, 2, (2, 3, 4, 5)).astype(np.float32)
    days = np.exp(rng.normal(3, 2, (2, 3, 5))).astype(np.float32)
    days[0, 0] = [10.0, 30.0, 365.0, 1 / 1440, 4000]  # at edges a time is in the bin that it closes
    happened = rng.random((2, 3, 5)) < 0.5
    happened[0, 0] = True
    found = losses(EDGES)(log_rates, days, happened)
    np.testing.assert_allclose(found, by_loop(log_rates, days, happened, EDGES), rtol=2e-5)


def test_a_loss_by_hand():
    """Rates 0.1 and 0.02 a day with an edge at 10: an event on day 25, none until day 25, and an event on day 4."""
    log_rates = jnp.log(jnp.asarray([[[[0.1] * 3, [0.02] * 3]]]))
    days, happened = jnp.asarray([[[25.0, 25.0, 4.0]]]), jnp.asarray([[[True, False, True]]])
    found = losses((10.0,))(log_rates, days, happened)
    expected = [10 * 0.1 + 15 * 0.02 - math.log(0.02), 1.3, 0.4 - math.log(0.1)]
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("edges", [(), (10.0,), EDGES])
def test_time_spent_in_bins_adds_up_to_the_time_which_ends_in_one(edges):
    days = np.concatenate([np.exp(np.random.default_rng(0).normal(3, 3, 200)), edges]).astype(np.float32)
    spent, last = time_to_event.exposures(jnp.asarray(days), edges)
    assert spent.shape == last.shape == (len(days), len(edges) + 1)
    np.testing.assert_allclose(spent.sum(axis=-1), days, rtol=1e-6)
    np.testing.assert_array_equal(last.argmax(axis=-1), np.searchsorted(edges, days))
    assert (np.asarray(last).sum(axis=-1) == 1).all() and (spent >= 0).all()


def test_the_best_rate_of_a_bin_is_events_by_exposure():
    """The gradient is 0 there and the loss is higher on both sides."""
    rng = np.random.default_rng(1)
    days = rng.exponential(60, (1, 4000, 1)).astype(np.float32)
    happened = rng.random(days.shape) < 0.7
    bounds = np.array([0.0, *EDGES, np.inf])
    exposure = np.clip(days.ravel()[:, None], bounds[:-1], bounds[1:]) - bounds[:-1]
    ends = np.searchsorted(EDGES, days.ravel()[happened.ravel()])
    best = np.log(np.bincount(ends, minlength=4) / exposure.sum(axis=0)).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def loss(log_rates):
        tiled = jnp.broadcast_to(log_rates[None, None, :, None], (1, 4000, 4, 1))
        return time_to_event.event_losses(tiled, days, happened, EDGES).mean()

    value, slope = loss(jnp.asarray(best))
    np.testing.assert_allclose(slope, 0, atol=1e-5)
    for number in range(4):
        for step in (-0.3, 0.3):
            assert loss(jnp.asarray(best).at[number].add(step))[0] > value


@pytest.mark.parametrize("extreme", [-1e4, -100.0, 80.0, 1e4])
def test_extreme_rates_give_finite_losses_and_gradients(extreme):
    days, happened = jnp.asarray([[[1 / 1440, 1e5]]], jnp.float32), jnp.asarray([[[True, False]]])

    @jax.value_and_grad
    def loss(log_rates):
        return time_to_event.event_losses(log_rates, days, happened, EDGES).sum()

    value, slope = loss(jnp.full((1, 1, 4, 2), extreme))
    assert np.isfinite(value) and np.isfinite(slope).all()


def event_batch(days=50.0, num_visits=4, codes=30):
    """Two rows of two patients, one of a row left unused."""
    batch = tiny.packed_batch([[6, 5], [8]], 12)
    del batch["patient_index"]
    shape = (2, num_visits, codes)
    batch["event_ends"] = np.tile(np.array([2, 5, 8, 10], np.int32)[:num_visits], (2, 1))
    batch["event_weights"] = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.float32)[:, :num_visits]
    batch["event_days"] = np.full(shape, days, np.float32)
    return {**batch, "event_happened": np.zeros(shape, bool)}


def test_the_objective_is_a_mean_over_visits_and_codes():
    rng = np.random.default_rng(2)
    is_target = np.arange(30) >= 20
    log_rates = rng.normal(-4, 1, (2, 4, 4, 30)).astype(np.float32)
    model = types.SimpleNamespace(apply=lambda params, *args, **kwargs: params)
    batch = event_batch(codes=10)
    batch["event_days"] = np.exp(rng.normal(3, 1, (2, 4, 10))).astype(np.float32)
    batch["event_happened"] = rng.random((2, 4, 10)) < 0.5
    objective = time_to_event.make_objective(model, EDGES, is_target)
    prepared = objective.prepare(batch, jax.random.key(0))
    total, count = objective.measure(jnp.asarray(log_rates), prepared, None)["time_to_event/loss"]
    each = by_loop(log_rates[..., 20:], batch["event_days"], batch["event_happened"], EDGES).mean(axis=-1)
    np.testing.assert_allclose(total, (each * batch["event_weights"]).sum(), rtol=1e-5)
    assert count == 6 and objective.count(prepared) == {"time_to_event/loss": 6}
    assert objective.weights == {"time_to_event/loss": 1.0}


@pytest.mark.slow
def test_planted_rates_are_learnt():
    """Exponential times censored at 100 days, for two codes at two constant rates: the model finds both."""
    model = BEHRTForPretraining(tiny.config(), ("time_to_event",), 2)
    is_target = np.isin(np.arange(tiny.VOCAB_SIZE), (6, 9))
    rates, rng = np.array([0.05, 0.005]), np.random.default_rng(3)
    objective = time_to_event.make_objective(model, (30.0,), is_target)
    optimizer = optax.adam(4e-2)
    params = parameters(model)
    state = optimizer.init(params)
    batch = event_batch(codes=2)
    drawn = rng.exponential(1 / rates, (300, 2, 4, 2)).astype(np.float32)

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            total, count = objective.measure(params, batch, None)["time_to_event/loss"]
            return total / count

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return value, optax.apply_updates(params, updates), state

    found = []
    for times in drawn:
        batch = {**batch, "event_days": np.minimum(times, 100), "event_happened": times < 100}
        value, params, state = step(params, state, batch)
        found.append(float(value))
    score = jax.jit(lambda params: time_to_event.score_events(model, params, batch, np.array([6, 9])))
    log_rates = np.asarray(score(params))[batch["event_weights"] > 0].mean(axis=0)  # (bins, T)
    np.testing.assert_allclose(log_rates, np.tile(np.log(rates), (2, 1)), atol=0.5)
    assert np.mean(found[-50:]) < np.mean(found[:5])


def test_events_are_predicted_from_the_past_alone():
    model = BEHRTForPretraining(tiny.config(), ("time_to_event",), 2)
    batch = event_batch()
    batch["visit_ids"] = np.array(
        [[0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 2, 2, 0, 0, 0, 0]], np.int32
    )
    score = jax.jit(lambda batch: time_to_event.score_events(model, parameters(model), batch, np.arange(5, 30)))
    later = np.zeros((2, 12), bool)
    later[0, 3:], later[1, 6:] = True, True
    other = {**batch, "codes": np.where(later, 29 - batch["codes"], batch["codes"])}
    before, after = np.asarray(score(batch)), np.asarray(score(other))
    np.testing.assert_array_equal(before[0, 0], after[0, 0])
    np.testing.assert_array_equal(before[1, :2], after[1, :2])
    assert (before[0, 1:] != after[0, 1:]).any(axis=(1, 2)).all()
