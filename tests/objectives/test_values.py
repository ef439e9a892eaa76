"""Values of masked codes: hidden from the model, predicted, and worth what a known truth says they are worth."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax.models.heads import QUANTILES
from behrt_jax.models.pretraining import BEHRTForPretraining
from behrt_jax.objectives import mlm
from behrt_jax.objectives.joint import make_objective
from behrt_jax.training.loop import make_train_step
from behrt_jax.training.optimizer import make_optimizer
from tests import tiny
from tests.models.drawn import parameters

pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")

BATCH = {name: each for name, each in tiny.packed_batch([[9, 7], [14]], 16).items() if name != "patient_index"}


@functools.cache
def task(values: str = "film", **overrides):
    settings = tiny.objective_config(**{"mask_rate": 0.5, "value_weight": 0.5, **overrides})
    model = BEHRTForPretraining(
        tiny.config(value_encoding=values, dropout=0.0), tuple(settings.weights), 3, False, True
    )
    return model, make_objective(model, settings, False)


def changed(batch: dict, places: np.ndarray) -> dict:
    return batch | {"values": np.where(places & ~np.isnan(batch["values"]), -3.0, batch["values"]).astype(np.float32)}


@pytest.mark.parametrize("replacement", [mlm.TRAINING, mlm.EVALUATION])
def test_the_value_of_a_masked_code_changes_no_output(replacement):
    """Also where a masked code is shown or replaced by another, as in training."""
    model, _ = task()
    masked = mlm.mask_codes(jax.random.key(1), BATCH["codes"], BATCH["maskable"], 0.5, tiny.VOCAB_SIZE, replacement)
    is_masked = np.zeros(BATCH["codes"].shape, bool)
    rows, slots = np.nonzero(masked.weights)
    is_masked[rows, np.asarray(masked.positions)[rows, slots]] = True

    @jax.jit
    def read(batch):
        arguments = {"masked_positions": masked.positions, "labels": masked.labels}
        found = mlm.apply_model(
            model, parameters(model), mlm.hide(batch, masked), None, **arguments, method="query_codes_and_values"
        )
        return found, mlm.score_masked(model, parameters(model), batch, masked)

    before, after = (jax.device_get(read(batch)) for batch in (BATCH, changed(BATCH, is_masked)))
    assert (is_masked & ~np.isnan(BATCH["values"])).sum() > 3
    jax.tree.map(np.testing.assert_array_equal, before, after)
    (_, quantiles), _ = jax.device_get(read(changed(BATCH, ~is_masked)))
    assert not np.array_equal(quantiles, before[0][1])


def test_the_loss_is_of_masked_codes_with_a_value_alone():
    model, objective = task()
    assert objective.weights == {"mlm/loss": 1.0, "value/loss": 0.5}

    @jax.jit
    def measure(batch):
        prepared = objective.prepare(batch, jax.random.key(3))
        return objective.measure(parameters(model), prepared, None), objective.count(prepared), prepared[1]

    found, counts, masked = jax.device_get(measure(BATCH))
    values = np.take_along_axis(BATCH["values"], masked.positions, axis=1)
    expected = ((masked.weights > 0) & ~np.isnan(values)).sum()
    assert 0 < expected == found["value/loss"][1] == counts["value/loss"] < counts["mlm/loss"]
    other, _, _ = jax.device_get(measure(BATCH | {"values": BATCH["values"] + 1.0}))
    assert other["value/loss"][0] != found["value/loss"][0] and np.isfinite(found["value/loss"][0])
    none, counts, _ = jax.device_get(measure(BATCH | {"values": np.full_like(BATCH["values"], np.nan)}))
    assert none["value/loss"] == (0.0, 0.0) and counts["value/loss"] == 0


def test_without_a_weight_there_is_no_head_and_no_loss():
    _, plain = task(value_weight=0.0)
    assert plain.weights == {"mlm/loss": 1.0}
    joint = task(name="joint", mlm_weight=0.5)[1]
    assert joint.weights["value/loss"] == 0.25
    with pytest.raises(ValueError, match="objective.value_weight: found 0.5; expected 0 without masked codes"):
        tiny.objective_config(name="next_visit", value_weight=0.5)


def test_the_loss_is_that_of_quantile_regression_and_an_outlier_pulls_no_harder():
    rng = np.random.default_rng(0)
    quantiles, values = rng.normal(size=(2, 3, len(QUANTILES))), rng.normal(size=(2, 3))
    weights = np.float32([[1, 0, 1], [1, 1, 0]])
    total = 0.0
    for row, slot in np.argwhere(weights):
        errors = [values[row, slot] - each for each in quantiles[row, slot]]
        total += np.mean([e * q if e > 0 else -e * (1 - q) for e, q in zip(errors, QUANTILES, strict=True)])
    found, count = mlm.value_loss(*(jnp.asarray(each, jnp.float32) for each in (quantiles, values, weights)))
    np.testing.assert_allclose((found, count), (total, 4), rtol=1e-5)
    pull = jax.grad(lambda guess, value: mlm.value_loss(guess, value, jnp.ones((1, 1)))[0])
    guess = jnp.zeros((1, 1, len(QUANTILES)))
    np.testing.assert_array_equal(pull(guess, jnp.full((1, 1), 1.0)), pull(guess, jnp.full((1, 1), 1e6)))


NOISE, SLOPE, FIRST, POSITIVE, NEGATIVE = 0.3, 0.8, 5, 6, 7


def draw_rows(rng, count: int) -> dict[str, np.ndarray]:
    """Rows of [CLS] and two codes: the second and its value follow from the value of the first."""
    batch = tiny.packed_batch([[4]], 4)
    batch = {name: np.repeat(each, count, axis=0) for name, each in batch.items() if name != "patient_index"}
    value = rng.normal(size=count)
    batch["codes"][:, 1], batch["codes"][:, 2] = FIRST, np.where(value > 0, POSITIVE, NEGATIVE)
    batch["values"][:, 1], batch["values"][:, 2] = value, SLOPE * value + NOISE * rng.normal(size=count)
    return batch


def test_a_known_truth_is_recovered():
    """The value of one code decides another code and, up to noise, its value."""
    rng = np.random.default_rng(0)
    model, objective = task(mask_rate=0.5, value_weight=1.0)
    optimizer = make_optimizer(tiny.optimizer_config(learning_rate=1e-2, warmup_share=0.05), 250)
    state = tiny.initial_state(model, optimizer)
    step = make_train_step(objective, optimizer, 0)
    for _ in range(250):
        state, _ = step(state, draw_rows(rng, 32))
    test = draw_rows(rng, 2000)
    place = np.full((2000, 1), 2)
    labels, weights = np.take_along_axis(test["codes"], place, axis=1), np.ones((2000, 1), np.float32)
    inputs = test["codes"].copy()
    inputs[:, 2] = mlm.MASK_ID
    masked = mlm.Masked(jnp.asarray(inputs), jnp.asarray(place), jnp.asarray(labels), jnp.asarray(weights))
    found = jax.device_get(jax.jit(lambda params: objective.measure(params, (test, masked), None))(state.params))
    means = {name: total / count for name, (total, count) in found.items()}
    normal = np.quantile(rng.standard_normal(1_000_000), QUANTILES)
    truth, known, marginal = test["values"][:, 2:3], SLOPE * test["values"][:, 1:2], math.hypot(SLOPE, NOISE)

    def loss_of(centre, width):
        quantiles = jnp.asarray((centre + width * normal)[:, None], jnp.float32)
        return float(mlm.value_loss(quantiles, jnp.asarray(truth), jnp.asarray(weights))[0]) / 2000

    oracle, blind = loss_of(known, NOISE), loss_of(0 * known, marginal)
    assert blind > 2.5 * oracle and oracle * 0.99 < means["value/loss"] < 1.1 * oracle
    assert means["mlm/accuracy"] > 0.97  # at most a half without the value
