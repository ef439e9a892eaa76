"""Several objectives at once: each as it is alone, weighted, and the same however a batch is cut."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from behrt_jax.models.pretraining import BEHRTForPretraining, CodeQueries
from behrt_jax.objectives.base import combine
from behrt_jax.objectives.joint import make_objective
from behrt_jax.objectives.scoring import make_tuning_step, score_objective
from behrt_jax.training.loop import make_train_step
from behrt_jax.training.optimizer import make_optimizer
from behrt_jax.training.state import TrainState
from tests import tiny
from tests.models.drawn import parameters

IS_TARGET = np.arange(tiny.VOCAB_SIZE) >= 8
WEIGHTS = {"mlm": 1.0, "next_visit": 0.5, "time_to_event": 0.25}
EDGES = (30.0, 365.0)
LOSSES = {"mlm/loss": 1.0, "next_visit/loss": 0.5, "next_visit/days_loss": 0.05, "time_to_event/loss": 0.25}


pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


def joint_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with many targets, few, one patient's alone, and none: parts of the batch count unequally."""
    rng = np.random.default_rng(seed)
    batch = tiny.packed_batch([[9, 7], [12, 4], [16], []], 16, seed=seed)
    del batch["patient_index"]
    batch["event_ends"] = np.array([[3, 8], [5, 0], [15, 7], [0, 0]], np.int32)
    batch["event_weights"] = np.array([[1, 1], [1, 0], [1, 1], [0, 0]], np.float32)
    shape = (4, 2, int(IS_TARGET.sum()))
    batch["event_days"] = np.exp(rng.normal(3, 1, shape)).astype(np.float32)
    return {**batch, "event_happened": rng.random(shape) < 0.5}


@functools.cache
def joint(**overrides):
    config = tiny.objective_config(name="joint", **overrides)
    model = BEHRTForPretraining(tiny.config(dropout=0.0), tuple(config.weights), len(EDGES) + 1)
    return model, make_objective(model, config, False, IS_TARGET)


def alone(name: str):
    """The objective of a recipe with one objective, on the joint model."""
    return make_objective(joint()[0], tiny.objective_config(name=name), False, IS_TARGET)


def test_the_total_is_the_weighted_sum_of_each_objectives_own_loss():
    model, objective = joint()
    assert objective.weights == pytest.approx(LOSSES)
    params, batch = parameters(model), joint_batch()
    names = tuple(WEIGHTS)

    @jax.jit
    def measure(params, batch, key, dropout_key):
        """All of them, and each alone with the keys that `combine` gives it."""
        prepared = objective.prepare(batch, key)
        together, expected, total = objective.measure(params, prepared, dropout_key), {}, 0.0
        pairs = zip(names, jax.random.split(key, 3), jax.random.split(dropout_key, 3), strict=True)
        for name, own, own_dropout in pairs:
            part = alone(name)
            found = part.measure(params, part.prepare(batch, own), own_dropout)
            total += WEIGHTS[name] * part.total({key: value / count for key, (value, count) in found.items()})
            expected |= found
        means = {name: value / count for name, (value, count) in together.items()}
        return together, expected, objective.total(means), total, objective.count(prepared)

    with jax.debug_key_reuse(False):  # keys are used twice, to compare
        together, expected, total, by_hand, counts = jax.device_get(
            measure(params, batch, jax.random.key(1), jax.random.key(2))
        )
    assert together.keys() == expected.keys() >= LOSSES.keys()
    for name in together:
        np.testing.assert_allclose(together[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(total, by_hand, rtol=1e-5)
    assert counts == {name: together[name][1] for name in LOSSES}
    assert len({float(count) for count in counts.values()}) > 2


def test_one_objective_alone_stays_as_it_is_and_weights_of_0_leave_one_out():
    (_, objective), part = joint(), alone("mlm")
    assert combine({"mlm": (part, 1.0)}) is part
    assert combine({"mlm": (part, 2.0)}).weights == {"mlm/loss": 2.0}
    assert alone("next_visit").weights == {"next_visit/loss": 1.0, "next_visit/days_loss": 0.1}
    model, two = joint(time_to_event_weight=0.0, time_gap_weight=0.0)
    assert model.objectives == ("mlm", "next_visit")
    assert {name for name, weight in two.weights.items() if weight} == {"mlm/loss", "next_visit/loss"}
    assert objective.weights.keys() == LOSSES.keys()


def lookup(params, codes, ages, visit_ids, patient_ids, masked_positions=None, visit_ends=None, method=None, **named):
    """Stands in for a model, as it compiles in less time: scores are looked up by code and grow with age."""
    places = visit_ends if masked_positions is None else masked_positions
    scores = params["table"][jnp.take_along_axis(codes, places, axis=1)]
    scores += params["slope"][0] * jnp.take_along_axis(ages, places, axis=1)[..., None] / 50
    queries = CodeQueries(scores, jnp.zeros(tiny.VOCAB_SIZE), jnp.eye(tiny.VOCAB_SIZE))
    if method == "query_next_visits":
        return queries, scores[..., 0]
    if method == "query_codes":
        return queries
    return scores[:, :, None] + params["bins"][None, None, :, None]


def test_gradients_are_the_same_however_a_batch_is_cut():
    model = types.SimpleNamespace(apply=lookup, config=tiny.config())
    objective = make_objective(model, tiny.objective_config(name="joint"), False, IS_TARGET)
    rng = np.random.default_rng(0)
    shapes = {"table": (tiny.VOCAB_SIZE, tiny.VOCAB_SIZE), "slope": (1,), "bins": (3,)}
    before = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    batch, optimizer, found = joint_batch(), optax.sgd(1.0), []
    for parts in (1, 2, 4):
        params = jax.tree.map(jnp.array, before)
        state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
        found.append(jax.device_get(make_train_step(objective, optimizer, 0, parts)(state, batch)))
    for state, metrics in found[1:]:
        for name, value in metrics.items():
            if name in LOSSES:
                np.testing.assert_allclose(value, found[0][1][name], rtol=1e-4, err_msg=name)
        gradients = [jax.tree.map(np.subtract, before, each.params) for each in (found[0][0], state)]
        largest = max(abs(leaf).max() for leaf in jax.tree.leaves(gradients[0]))
        assert all(leaf.any() for leaf in jax.tree.leaves(gradients[0]))
        for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.slow
def test_all_losses_of_a_small_batch_fall_together():
    """Next visits have a floor of 0, masks are new each step: the model learns its four rows by heart."""
    model, objective = joint(mlm_weight=2.0)
    optimizer = make_optimizer(tiny.optimizer_config(learning_rate=3e-2), 200)
    state, batch = tiny.initial_state(model, optimizer), jax.device_put(joint_batch())
    train_step = make_train_step(objective, optimizer, 0)
    means = []
    for _ in range(200):
        state, metrics = train_step(state, batch)
        means.append({name: metrics[name] for name in LOSSES})
    means = [{name: float(total / count) for name, (total, count) in each.items()} for each in means]
    first, last = (
        {name: np.mean([each[name] for each in part]) for name in LOSSES} for part in (means[:5], means[-20:])
    )
    assert first["mlm/loss"] > 2.5 and last["mlm/loss"] < 0.4
    assert last["next_visit/loss"] < 0.1 * first["next_visit/loss"]
    assert last["next_visit/days_loss"] < 0.2 * first["next_visit/days_loss"]
    assert last["time_to_event/loss"] < first["time_to_event/loss"] - 0.5


def test_a_tuning_score_is_the_mean_over_batches_weighted_by_targets():
    model, objective = joint()
    step, batches = make_tuning_step(objective), [joint_batch(0), joint_batch(1)]
    found, again = (score_objective(step, objective, parameters(model), batches) for _ in range(2))
    assert found == again and found.keys() >= {"loss", *LOSSES}
    assert found["loss"] == pytest.approx(sum(weight * found[name] for name, weight in LOSSES.items()))
    sums = [step(parameters(model), batch, jax.random.fold_in(jax.random.key(0), n)) for n, batch in enumerate(batches)]
    for name in LOSSES:
        total, count = (sum(float(each[name][part]) for each in sums) for part in (0, 1))
        assert found[name] == pytest.approx(total / count)
    assert score_objective(step, objective, parameters(model), batches, seed=1)["mlm/loss"] != found["mlm/loss"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"name": "both"}, "objective.name: found 'both'; expected one of mlm, next_visit, time_to_event, joint"),
        ({"history": "all"}, "objective.history: found 'all'; expected one of every_visit, random_cut"),
        ({"mlm_weight": -1.0}, "objective.mlm_weight: found -1.0; expected 0 or more"),
        ({"next_visit_weight": -0.1}, "objective.next_visit_weight: found -0.1; expected 0 or more"),
        ({"time_to_event_weight": -2.0}, "objective.time_to_event_weight: found -2.0; expected 0 or more"),
        ({"time_gap_weight": -0.5}, "objective.time_gap_weight: found -0.5; expected 0 or more"),
        ({"mask_rate": 0.0}, "objective.mask_rate: found 0.0; expected more than 0 and at most 1"),
        ({"targets": "A//*"}, r"objective.targets: found 'A//\*'; expected a tuple of patterns"),
        ({"min_patients": 0}, "objective.min_patients: found 0; expected 1 or more"),
        ({"queries_per_row": 0}, "objective.queries_per_row: found 0; expected 1 or more"),
        ({"query_times": "now"}, "objective.query_times: found 'now'; expected one of after_visits, anytime"),
        (
            {"name": "joint", "query_times": "anytime"},
            "objective.query_times: found 'anytime'; expected 'after_visits' with objective.name=joint",
        ),
        ({"event_edges": (0.0, 5.0)}, r"objective.event_edges: found \(0.0, 5.0\); expected days above 0 in ascending"),
        ({"event_edges": (9.0, 5.0)}, r"objective.event_edges: found \(9.0, 5.0\); expected days above 0"),
        ({"event_edges": (5.0, 5.0)}, r"objective.event_edges: found \(5.0, 5.0\); expected days above 0"),
        (
            {"name": "joint", "mlm_weight": 0.0, "next_visit_weight": 0.0, "time_to_event_weight": 0.0},
            "objective.name: found joint with all weights 0; expected one of them above 0",
        ),
    ],
)
def test_wrong_settings_name_key_and_value(overrides, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        tiny.objective_config(**overrides)


def test_what_is_trained_by_name():
    for name in WEIGHTS:
        assert tiny.objective_config(name=name, mlm_weight=0.0).weights == {name: 1.0}
    assert tiny.objective_config(name="joint").weights == WEIGHTS
    assert tiny.objective_config(name="joint", mlm_weight=0.0).weights == {"next_visit": 0.5, "time_to_event": 0.25}
    assert tiny.objective_config(event_edges=()).event_edges == ()
