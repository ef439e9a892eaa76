import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from behrt_jax import BEHRTConfig, BEHRTForMLM
from behrt_jax.objectives import mlm
from behrt_jax.objectives.base import Objective
from behrt_jax.training.loop import TrainConfig, TrainingDivergedError, is_exhausted, make_train_step, train
from behrt_jax.training.optimizer import make_optimizer
from behrt_jax.training.state import TrainState
from behrt_jax.training.workdir import initialize
from tests import tiny

NUM_STEPS = 12


pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


# The step, on a small regression whose gradients can be written down.
def prepare(batch, key):
    return {**batch, "drawn": jax.random.uniform(key, batch["counts"].shape)}


def measure(params, prepared, dropout_key):
    errors = prepared["inputs"] @ params["weights"] - 1.0
    noise = jax.random.uniform(dropout_key)
    metrics = {"loss": ((prepared["counts"] * errors**2).sum(), prepared["counts"].sum())}
    metrics |= {"drawn": (prepared["drawn"].sum(), jnp.ones(()))}
    return {**metrics, "noise": (noise, jnp.ones(())), "noise_squared": (noise**2, jnp.ones(()))}


SQUARES = Objective(prepare, measure, lambda prepared: {"loss": prepared["counts"].sum()}, {"loss": 1.0})


def regression(rows=8):
    rng = np.random.default_rng(0)
    counts = np.zeros(rows, np.float32)
    counts[: rows // 2 + 1] = rng.integers(1, 9, rows // 2 + 1)  # the last parts are nearly or wholly without targets
    return {"inputs": rng.normal(size=(rows, 3)).astype(np.float32), "counts": counts}


def fresh_state(optimizer):
    params = {"weights": jnp.asarray([0.5, -1.0, 2.0])}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_accumulation_gives_the_mean_over_all_targets(parts):
    optimizer, batch = optax.sgd(1.0), regression()
    state, metrics = make_train_step(SQUARES, optimizer, 0, parts)(fresh_state(optimizer), batch)
    weights = np.array([0.5, -1.0, 2.0])
    errors = batch["inputs"] @ weights - 1
    gradient = 2 * (batch["counts"] * errors) @ batch["inputs"] / batch["counts"].sum()
    np.testing.assert_allclose(state.params["weights"], weights - gradient, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], ((batch["counts"] * errors**2).sum(), batch["counts"].sum()), rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"][0], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["parameter_norm"][0], np.linalg.norm(weights - gradient), rtol=1e-5)
    assert state.step == 1


def test_every_step_and_every_part_of_it_draws_anew():
    optimizer, batch = optax.sgd(0.0), regression()
    train_step = make_train_step(SQUARES, optimizer, 0, 2)
    state, drawn = fresh_state(optimizer), []
    for _ in range(4):
        state, metrics = train_step(state, batch)
        (total, count), (squared, _) = metrics["noise"], metrics["noise_squared"]
        assert count == 2 and squared / 2 - (total / 2) ** 2 > 1e-6  # the two parts drew different dropout
        drawn.append((float(total), float(metrics["drawn"][0])))
    assert all(len(set(numbers)) == 4 for numbers in zip(*drawn, strict=True))


def test_targets_are_drawn_for_the_whole_batch_however_it_is_cut():
    optimizer, batch = optax.sgd(0.0), regression()
    steps = [make_train_step(SQUARES, optimizer, 0, parts) for parts in (1, 2, 4, 8)]
    drawn = [float(step(fresh_state(optimizer), batch)[1]["drawn"][0]) for step in steps]
    np.testing.assert_allclose(drawn, drawn[0], rtol=1e-6)


def test_losses_are_weighted_and_each_is_a_mean_over_its_own_targets():
    """A second loss, with targets in other rows; their gradients add up as their weights say."""

    def measure_two(params, prepared, dropout_key):
        errors = prepared["inputs"] @ params["weights"] - 1.0
        few = prepared["few"]
        return {**measure(params, prepared, dropout_key), "few": ((few * errors).sum(), few.sum())}

    def count(prepared):
        return {"loss": prepared["counts"].sum(), "few": prepared["few"].sum()}

    optimizer, batch = optax.sgd(1.0), regression()
    batch["few"] = np.eye(8, dtype=np.float32)[6] + 2 * np.eye(8, dtype=np.float32)[1]
    weights, inputs, counts = np.array([0.5, -1.0, 2.0]), batch["inputs"], batch["counts"]
    gradient = 0.5 * 2 * (counts * (inputs @ weights - 1)) @ inputs / counts.sum() + 3.0 * batch["few"] @ inputs / 3
    for parts in (1, 2, 4):
        step = make_train_step(Objective(prepare, measure_two, count, {"loss": 0.5, "few": 3.0}), optimizer, 0, parts)
        state, _ = step(fresh_state(optimizer), batch)
        np.testing.assert_allclose(state.params["weights"], weights - gradient, rtol=1e-5)


def test_a_batch_without_targets_changes_nothing():
    optimizer, batch = optax.sgd(1.0), regression()
    batch["counts"][:] = 0
    state, _ = make_train_step(SQUARES, optimizer, 0)(fresh_state(optimizer), batch)
    np.testing.assert_array_equal(state.params["weights"], [0.5, -1.0, 2.0])


# The step, on the model.
@functools.cache
def model_step(seed=0, dropout=0.1, learning_rate=1e-2, num_steps=NUM_STEPS, **choices):
    model = BEHRTForMLM(tiny.config(dropout=dropout, **choices))
    optimizer = make_optimizer(tiny.optimizer_config(learning_rate=learning_rate), num_steps)
    return model, optimizer, make_train_step(mlm.make_objective(model, tiny.objective_config()), optimizer, seed)


def batches(start=0, stop=NUM_STEPS):
    for step in range(start, stop):
        batch = tiny.packed_batch([[9, 7], [12, 4], [16], []], 16, seed=step)
        del batch["patient_index"]
        yield jax.device_put(batch)


def run(state, train_step, start=0, stop=NUM_STEPS):
    for batch in batches(start, stop):
        with jax.transfer_guard("disallow"):
            state, _ = train_step(state, batch)
    return state


def start(seed=0):
    model, optimizer, train_step = model_step(seed)
    return tiny.initial_state(model, optimizer, seed), train_step


def identical(first, second):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def test_a_run_is_a_function_of_its_seed():
    first, again = (run(*start()) for _ in range(2))
    assert identical(first, again)
    same_start, _ = start()
    other = run(same_start, model_step(seed=1)[2])  # other masks and dropout from the same parameters
    assert not identical(first.params, other.params)


def test_a_run_resumed_from_its_state_is_bit_identical():
    whole = run(*start())
    state, train_step = start()
    saved = jax.device_get(run(state, train_step, stop=5))
    resumed = run(jax.device_put(saved), train_step, start=5)
    assert identical(whole, resumed)
    restarted = run(jax.device_put(saved), train_step, stop=7)
    assert not identical(whole.params, restarted.params)


@pytest.mark.slow
@pytest.mark.current_only
@pytest.mark.parametrize("choices", [{}, {"encoder": "lstm"}, {"causal": True, "rotary": "ages"}])
def test_a_small_batch_is_learnt_by_heart_by_each_encoder(choices):
    model, optimizer, train_step = model_step(dropout=0.0, learning_rate=2e-2, num_steps=600, **choices)
    state, (batch,) = tiny.initial_state(model, optimizer), batches(stop=1)
    losses = []
    for _ in range(600):
        state, metrics = train_step(state, batch)
        losses.append(metrics["mlm/loss"])
    means = [float(total / count) for total, count in losses]
    assert means[0] == pytest.approx(math.log(tiny.VOCAB_SIZE), abs=1.0)
    assert np.mean(means[-20:]) < 0.1


@pytest.mark.slow
def test_one_step_of_the_large_tier():
    model = BEHRTForMLM(BEHRTConfig.large(1000, visit_bias=True))
    optimizer = make_optimizer(tiny.optimizer_config(learning_rate=1e-4, warmup_share=0.0), 10)
    objective = mlm.make_objective(model, tiny.objective_config(mask_rate=0.15))
    train_step = make_train_step(objective, optimizer, 0)
    batch = tiny.packed_batch([[20, 12], [25]], 32)
    del batch["patient_index"]
    # Drawn here, for the initialisation takes as long to compile as the step.
    shapes, rng = jax.eval_shape(functools.partial(initialize, model), jax.random.key(0)), np.random.default_rng(0)
    before = jax.tree.map(lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32), shapes)
    params = jax.tree.map(jnp.array, before)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    state, metrics = train_step(state, batch)
    total, count = metrics["mlm/loss"]
    assert float(total / count) == pytest.approx(math.log(1000), abs=1.5)
    moved = jax.tree.map(lambda old, new: np.isfinite(new).all() and (old != new).any(), before, state.params)
    assert all(jax.tree.leaves(moved))


# The loop, around a step that only counts.
class Recorder:
    """Stands in for everything around the loop, and notes what was called in which order."""

    def __init__(self, tuning=(), diverges_at=None, interrupted_at=None):
        self.calls, self.tuning = [], iter(tuning)
        self.diverges_at, self.interrupted_at, self.step = diverges_at, interrupted_at, 0

    def train_step(self, state, batch):
        self.step = state.step + 1
        assert batch["number"] == state.step
        total = np.nan if self.step == self.diverges_at else 2.0 * self.step
        return types.SimpleNamespace(step=self.step, params=self.step), {"loss": (total, 2.0)}

    def evaluate(self, params):
        self.calls.append(("evaluate", params))
        return {"loss": next(self.tuning, 1.0)}

    def save(self, state, metrics):
        self.calls.append(("save", state.step, metrics))

    def log(self, step, split, metrics):
        self.calls.append((split, step, metrics["loss"]))

    def interrupted(self):
        return self.step == self.interrupted_at

    def run(self, first=0, tuning_losses=None, **overrides):
        settings = dict(
            num_steps=6, batch_size=1, accumulate_steps=1, evaluate_every=3, log_every=2, max_patients=0, patience=0
        )
        numbered = ({"number": n, "patient_ids": np.array([[1, 0]])} for n in range(first, 100))
        return train(
            types.SimpleNamespace(step=first, params=first),
            self.train_step,
            numbered,
            TrainConfig(**{**settings, **overrides}),
            evaluate=self.evaluate,
            watch="loss",
            save=self.save,
            log=self.log,
            interrupted=self.interrupted,
            tuning_losses=tuning_losses,
        )


def test_the_loop_evaluates_saves_and_logs_in_a_fixed_order():
    recorder = Recorder()
    outcome = recorder.run(num_steps=5)
    assert (outcome.reason, outcome.state.step) == ("finished", 5)
    assert recorder.calls == [
        ("train", 2, 1.5),  # the mean of the losses 1 and 2
        ("train", 3, 3.0),
        ("evaluate", 3),
        ("tuning", 3, 1.0),
        ("save", 3, {"loss": 1.0}),
        ("train", 4, 4.0),
        ("train", 5, 5.0),
        ("evaluate", 5),
        ("tuning", 5, 1.0),
        ("save", 5, {"loss": 1.0}),
    ]


def test_the_loop_goes_on_from_a_state():
    recorder = Recorder()
    assert recorder.run(first=4).state.step == 6
    assert [call[:2] for call in recorder.calls if call[0] == "save"] == [("save", 6)]


def test_an_interrupt_saves_at_once_and_stops():
    recorder = Recorder(interrupted_at=4)
    outcome = recorder.run()
    assert (outcome.reason, outcome.state.step) == ("interrupted", 4)
    assert recorder.calls[-2:] == [("train", 4, 4.0), ("save", 4, None)]


def test_an_interrupt_at_an_evaluation_saves_once():
    recorder = Recorder(interrupted_at=3)
    assert recorder.run().reason == "interrupted"
    assert [call for call in recorder.calls if call[0] == "save"] == [("save", 3, {"loss": 1.0})]


def test_an_interrupt_at_the_last_step_is_a_finished_run():
    assert Recorder(interrupted_at=6).run().reason == "finished"


@pytest.mark.parametrize(("earlier", "stops_at"), [(None, 9), ([0.1], 6), ([0.9, 0.95], 3)])
def test_the_loop_stops_early_after_evaluations_without_progress(earlier, stops_at):
    recorder = Recorder(tuning=[0.9, 1.0, 0.95, 0.1])
    outcome = recorder.run(num_steps=12, patience=2, tuning_losses=earlier)
    assert (outcome.reason, outcome.state.step) == ("stopped_early", stops_at)
    assert recorder.calls[-1][:2] == ("save", stops_at)


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([], 2, False),
        ([3.0, 3.0], 2, False),
        ([3.0, 3.0, 3.0], 2, True),
        ([3.0, 4.0, 2.9], 2, False),
        ([3.0, 2.0, 2.5, 2.1], 2, True),
        ([3.0, 2.0, 2.5], 2, False),
        ([1.0, 2.0], 1, True),
        ([2.0, 1.0], 1, False),
        ([1.0, 2.0, 3.0, 4.0], 0, False),
    ],
)
def test_exhausted_after_patience_losses_without_a_better_one(losses, patience, expected):
    assert is_exhausted(losses, patience) is expected


def test_a_loss_that_is_no_number_stops_the_run_and_nothing_is_saved_after_it():
    recorder = Recorder(diverges_at=5)
    with pytest.raises(TrainingDivergedError, match="loss is nan at step 5"):
        recorder.run(num_steps=9, log_every=3)
    assert [call[:2] for call in recorder.calls if call[0] == "save"] == [("save", 3)]


def test_an_interrupt_never_saves_a_diverged_state():
    recorder = Recorder(diverges_at=2, interrupted_at=2)
    with pytest.raises(TrainingDivergedError, match="at step 2"):
        recorder.run(log_every=100)
    assert not recorder.calls


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_tuning_loss_that_is_no_number_is_not_saved(bad):
    recorder = Recorder(tuning=[1.0, bad])
    with pytest.raises(TrainingDivergedError, match=f"tuning loss is {bad} at step 6"):
        recorder.run()
    assert [call[:2] for call in recorder.calls if call[0] == "save"] == [("save", 3)]


def test_parameters_broken_by_an_update_show_in_its_own_metrics():
    """The loss is finite, the update is not: the norm of the parameters tells before anything is saved."""
    optimizer = optax.sgd(1e38)
    _, metrics = make_train_step(SQUARES, optimizer, 0)(fresh_state(optimizer), regression())
    assert np.isfinite(metrics["loss"][0]) and not np.isfinite(metrics["parameter_norm"][0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_steps": 0}, "train.num_steps: found 0; expected 1 or more"),
        ({"log_every": 0}, "train.log_every: found 0"),
        ({"patience": -1}, "train.patience: found -1; expected 0 or more"),
        ({"accumulate_steps": 3}, "train.accumulate_steps: found 3 with train.batch_size=4; expected a divisor"),
    ],
)
def test_wrong_settings_name_key_and_value(overrides, message):
    good = TrainConfig(
        num_steps=6, batch_size=4, accumulate_steps=2, evaluate_every=3, log_every=2, max_patients=0, patience=0
    )
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(good, **overrides)
