"""The train step, and the training loop: update, log, evaluate, save, and stop early."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from behrt_jax.metrics.bootstrap import mean_metrics, merge_sums
from behrt_jax.models import devices
from behrt_jax.objectives.base import Objective
from behrt_jax.training.state import TrainState, step_keys


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The section `train` of a recipe.

    Attributes:
      num_steps: total number of updates.
      batch_size: B, rows per update.
      accumulate_steps: number of parts of a batch for gradient accumulation; must divide `batch_size`.
      evaluate_every: steps between evaluations on tuning, each followed by a checkpoint.
      log_every: steps between lines of training metrics.
      max_patients: maximum number of train patients, those with the lowest hash of their id; 0 takes all.
      patience: evaluations without a better tuning loss before training stops; 0 never stops early.
    """

    num_steps: int
    batch_size: int
    accumulate_steps: int
    evaluate_every: int
    log_every: int
    max_patients: int
    patience: int

    def __post_init__(self):
        for key in ("num_steps", "batch_size", "accumulate_steps", "evaluate_every", "log_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"train.{key}: found {getattr(self, key)}; expected 1 or more")
        if self.batch_size % self.accumulate_steps:
            problem = f"found {self.accumulate_steps} with train.batch_size={self.batch_size}"
            raise ValueError(f"train.accumulate_steps: {problem}; expected a divisor of the batch size")
        for key in ("max_patients", "patience"):
            if getattr(self, key) < 0:
                raise ValueError(f"train.{key}: found {getattr(self, key)}; expected 0 or more")


class TrainingDivergedError(ValueError):
    """A loss or parameter is NaN or infinite."""


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, seed: int, accumulate_steps: int = 1
):
    """Returns a jitted (state, batch) -> (state, metrics); the state is donated.

    Args:
      objective: the objective to minimise.
      optimizer: from `optimizer.make_optimizer`.
      seed: determines masks and dropout, with the step.
      accumulate_steps: parts of the batch whose gradients are summed before the update. Targets are sampled and counted
        for the whole batch, so that the update does not depend on their distribution over parts.
    """

    def part_gradients(params, part, counts, dropout_key):
        def loss(params):
            metrics = objective.measure(params, part, dropout_key)
            means = {name: metrics[name][0] / jnp.maximum(counts[name], 1.0) for name in objective.weights}
            return objective.total(means), metrics

        return jax.grad(loss, has_aux=True)(params)

    def gradients(params, batch, keys):
        prepared = objective.prepare(batch, keys["masking"])
        counts = objective.count(prepared)
        if accumulate_steps == 1:
            return part_gradients(params, prepared, counts, keys["dropout"])
        parts = jax.tree.map(lambda x: x.reshape(accumulate_steps, -1, *x.shape[1:]), prepared)
        parts = devices.split_parts(parts)

        def part(number):
            dropout_key = jax.random.fold_in(keys["dropout"], number)
            return part_gradients(params, jax.tree.map(lambda x: x[number], parts), counts, dropout_key)

        def add(number, sums):
            return jax.tree.map(jnp.add, sums, part(number))

        return jax.lax.fori_loop(1, accumulate_steps, add, part(0))

    @functools.partial(jax.jit, donate_argnames="state")
    def train_step(state: TrainState, batch: dict[str, jax.Array]):
        grads, metrics = gradients(state.params, batch, step_keys(seed, state.step))
        state = state.apply(optimizer, grads)
        # The loss is of the parameters before the update; the norm shows whether those after it are finite.
        metrics["gradient_norm"] = (optax.tree.norm(grads), jnp.ones(()))
        metrics["parameter_norm"] = (optax.tree.norm(state.params), jnp.ones(()))
        return state, metrics

    return train_step


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The result of the training loop.

    Attributes:
      state: the state after the last update.
      reason: why the loop ended: `finished`, `stopped_early` or `interrupted`.
    """

    state: TrainState
    reason: str


def train(
    state: TrainState,
    train_step: Callable,
    batches: Iterator[dict[str, np.ndarray]],
    config: TrainConfig,
    *,
    evaluate: Callable[[Any], dict[str, float]],
    watch: str,
    save: Callable[[TrainState, dict[str, float] | None], None],
    log: Callable[[int, str, dict[str, float]], None],
    advance: Callable[[int], object] = lambda step: None,
    interrupted: Callable[[], bool] = lambda: False,
    tuning_losses: list[float] | None = None,
    evaluate_initial: bool = False,
) -> TrainResult:
    """Runs updates until `num_steps`, an early stop or an interrupt; always evaluates or saves the last state.

    Args:
      state: the initial state; donated.
      train_step: from `make_train_step`.
      batches: starts with the batch of `state.step`; tokens are counted where `patient_ids` is not 0.
      config: the section `train`.
      evaluate: maps parameters to metrics on tuning.
      watch: the name of the tuning loss for early stopping.
      save: saves a state, with its tuning metrics, or None if interrupted.
      log: takes (step, split, metrics by name).
      advance: called with the step after each update.
      interrupted: called after each update; True stops the loop.
      tuning_losses: losses of earlier evaluations, oldest first, for early stopping after a resume.
      evaluate_initial: whether to evaluate and save the initial state too, as it may be the best.

    Raises:
      TrainingDivergedError: a loss or the parameters are NaN or infinite; no state is saved after that.
    """
    step = int(state.step)
    losses = list(tuning_losses or [])
    judge = functools.partial(_judge, evaluate=evaluate, log=log, save=save)
    if evaluate_initial and step == 0 and not losses:
        losses.append(judge(state, step)[watch])
    window = _Window()
    while step < config.num_steps:
        batch = next(batches)
        state, metrics = train_step(state, devices.split_rows(batch))
        window.add(batch, metrics)
        step += 1
        advance(step)
        stop = interrupted()
        is_due = step % config.evaluate_every == 0 or step == config.num_steps
        if step % config.log_every == 0 or is_due or stop:
            log(step, "train", window.close(step))
            if is_due:
                losses.append(judge(state, step)[watch])
            elif stop:
                save(state, None)
            window = _Window()
        if is_due and is_exhausted(losses, config.patience):
            return TrainResult(state, "stopped_early")
        if stop and step < config.num_steps:
            return TrainResult(state, "interrupted")
    return TrainResult(state, "finished")


def _judge(state: TrainState, step: int, *, evaluate, log, save) -> dict[str, float]:
    """Evaluates a state on tuning, logs the metrics, and saves both if all are finite."""
    tuning = evaluate(state.params)
    log(step, "tuning", tuning)
    check_finite([{f"tuning {name}": (value, 1) for name, value in tuning.items()}], step - 1)
    save(state, tuning)
    return tuning


class _Window:
    """The metrics of the steps since the last line of the log; they stay on the device until it is written."""

    def __init__(self):
        self._start, self._tokens, self._pending = time.perf_counter(), 0, []

    def add(self, batch: dict[str, np.ndarray], metrics: dict) -> None:
        """Adds a step."""
        self._tokens += int(np.count_nonzero(batch["patient_ids"]))
        self._pending.append(metrics)

    def close(self, step: int) -> dict[str, float]:
        """Returns the mean metrics and the real tokens a second; `step` is the last one added.

        Raises:
          TrainingDivergedError: a metric is NaN or infinite.
        """
        sums = check_finite(jax.device_get(self._pending), step - len(self._pending))
        speed = self._tokens / (time.perf_counter() - self._start)
        return {**mean_metrics(merge_sums(sums)), "tokens_per_second": speed}


def is_exhausted(losses: list[float], patience: int) -> bool:
    """Returns whether none of the last `patience` losses is below the best before them; False for patience 0."""
    return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])


def check_finite(metrics: list[dict], first_step: int) -> list[dict]:
    """Returns the metrics of consecutive steps; raises a `TrainingDivergedError` if a sum is NaN or infinite."""
    for number, sums in enumerate(metrics):
        for name, (total, _) in sums.items():
            if not np.isfinite(total):
                raise TrainingDivergedError(f"{name} is {float(total)} at step {first_step + number + 1}")
    return metrics
