"""What a train step of a recipe needs: parameters, memory and FLOPs, by XLA's analysis of the compiled step."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from behrt_jax.benchmarks.train_step import loop_flops, read_costs
from behrt_jax.data.vocabulary import NUM_SPECIAL
from behrt_jax.data.windows import COLUMNS
from behrt_jax.models.behrt import count_parameters
from behrt_jax.objectives.joint import make_objective
from behrt_jax.training import loop, pretraining, state, workdir
from behrt_jax.training.optimizer import make_optimizer
from behrt_jax.training.recipe import Facts, PretrainingRecipe, with_facts


class StepCost(NamedTuple):
    """The needs of a step.

    Attributes:
      parameters: their number.
      parameter_bytes: their size, which is that of their gradients too.
      optimizer_bytes: of Adam's moments.
      temporary_bytes: of all else that the step holds at once, gradients included.
      flops: of the whole batch.
    """

    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    temporary_bytes: int
    flops: float

    @property
    def memory(self) -> int:
        """All bytes that the step needs."""
        return self.parameter_bytes + self.optimizer_bytes + self.temporary_bytes


class Step(NamedTuple):
    """A train step and its arguments.

    Attributes:
      run: (state, batch) -> (state, metrics), jitted.
      make_state: () -> the initial state.
      make_batch: () -> a batch of random patients.
    """

    run: Any
    make_state: Any
    make_batch: Any


def make_step(recipe: PretrainingRecipe, vocab_size: int, rows: int) -> Step:
    """Builds the train step of a recipe for `rows` rows, without its data; all codes are targets."""
    edges = recipe.objective.event_edges or tuple(30.0 * 2.0**power for power in range(pretraining.EVENT_BINS - 1))
    recipe = with_facts(recipe, Facts(vocab_size, event_edges=edges))
    model = workdir.build_model(recipe.model, recipe.objective)
    has_value = np.zeros(vocab_size, bool)
    objective = make_objective(model, recipe.objective, recipe.data.use_sep, has_value=has_value)
    optimizer = make_optimizer(recipe.optimizer, recipe.train.num_steps)
    return Step(
        loop.make_train_step(objective, optimizer, recipe.seed),
        lambda: state.create_state(lambda key: workdir.initialize(model, key), optimizer, recipe.seed),
        lambda: random_batch(recipe, vocab_size, rows),
    )


def random_batch(recipe: PretrainingRecipe, vocab_size: int, rows: int) -> dict[str, np.ndarray]:
    """Makes full rows of one patient each, with random codes, their values if any, and a visit every eight tokens."""
    config, length = recipe.objective, recipe.data.row_length
    rng, places = np.random.default_rng(0), np.tile(np.arange(length), (rows, 1))
    batch: dict[str, np.ndarray] = {name: np.zeros((rows, length), kind) for name, kind in COLUMNS.items()}
    batch["codes"][:] = rng.integers(min(NUM_SPECIAL, vocab_size - 1), vocab_size, (rows, length))
    batch["visit_ids"][:], batch["positions"][:], batch["time_ranks"][:] = places // 8, places, places // 8 + 1
    batch["ages"][:], batch["dates"][:], batch["time_deltas"][:] = 20 + places / 10, places / 10, 30.0
    batch["maskable"][:] = places > 0
    batch["patient_ids"] = np.ones((rows, length), np.int32)
    if recipe.data.value_encoding == "continuous":
        batch["values"] = rng.standard_normal((rows, length)).astype(np.float32)
    if "time_to_event" in config.weights:
        shape = (rows, config.queries_per_row)
        batch["event_ends"] = np.tile(np.linspace(0, length - 1, shape[1], dtype=np.int32), (rows, 1))
        batch["event_weights"] = np.ones(shape, np.float32)
        batch["event_days"] = rng.uniform(1, 1000, (*shape, vocab_size)).astype(np.float32)
        batch["event_happened"] = rng.random((*shape, vocab_size)) < 0.01
    return batch


def compute(recipe: PretrainingRecipe, vocab_size: int, rows: int) -> StepCost:
    """Compiles the step of a recipe for `rows` rows on this machine's default device and returns its needs.

    Nothing is run, so that a step may be larger than the memory at hand. With `train.accumulate_steps`, the memory is
    that of a part of the batch, and of the sum of gradients beside it.
    """
    parts = recipe.train.accumulate_steps
    step = make_step(recipe, vocab_size, -(-rows // parts))
    shapes = jax.eval_shape(step.make_state)
    batch = step.make_batch()
    costs = read_costs(step.run.lower(shapes, batch).compile())
    parameter_bytes, moment_bytes = _size(shapes.params), _size(shapes.opt_state)
    temporaries = costs["temporary_bytes"] + (parameter_bytes if parts > 1 else 0)
    flops = costs["flops"]
    if recipe.objective.name in ("mlm", "joint"):
        masked = round(recipe.objective.mask_rate * batch["maskable"].sum())
        shape, rate = batch["codes"].shape, recipe.objective.mask_rate
        flops += loop_flops(masked, shape, rate, dataclasses.replace(recipe.model, vocab_size=vocab_size))
    return StepCost(count_parameters(shapes.params), parameter_bytes, moment_bytes, temporaries, flops * parts)


def _size(shapes) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
