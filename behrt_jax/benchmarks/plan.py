"""What pre-training of a recipe would cost on a device: memory, steps, hours and price."""

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from behrt_jax.benchmarks import product, step_cost, worker
from behrt_jax.benchmarks.devices import DEVICES
from behrt_jax.benchmarks.step_cost import StepCost
from behrt_jax.training import precision
from behrt_jax.training.recipe import PretrainingRecipe, read_recipe

logger = logging.getLogger(__name__)
UTILISATION = 0.25  # a modest guess of the share of a device's peak that training reaches
USABLE = 0.9  # share of a device's memory that a step may take
GIBIBYTE = 2**30
MEASURED_STEPS = 3


class Data(NamedTuple):
    """The size of a data set.

    Attributes:
      patients: to train on.
      tokens_per_patient: their mean.
      vocabulary: V.
    """

    patients: int
    tokens_per_patient: float
    vocabulary: int


class Plan(NamedTuple):
    """The cost of a recipe.

    Attributes:
      cost: of a step.
      tokens_per_step: B x L.
      pass_steps: steps that read as many tokens as the data hold.
      seconds_per_step: measured on a CPU, otherwise estimated.
      peak: FLOP/s that the device could reach.
      largest_batch: rows that fit in the device's memory; 0 if not known.
    """

    cost: StepCost
    tokens_per_step: int
    pass_steps: int
    seconds_per_step: float
    peak: float
    largest_batch: int


def plan(recipe: PretrainingRecipe, data: Data, device: str, utilisation: float = UTILISATION) -> Plan:
    """Plans the pre-training of a recipe.

    Args:
      recipe: of pre-training.
      data: the size of the data.
      device: a name of `DEVICES`; or `cpu`, to measure some steps on this machine.
      utilisation: the share of the device's peak that training is assumed to reach; not used for `cpu`.

    Raises:
      ValueError: an argument is out of range.
    """
    check(data, device, utilisation)
    rows, length = recipe.train.batch_size, recipe.data.row_length
    cost = on_device(recipe, data.vocabulary, rows, device)
    if device == "cpu":
        seconds, peak, largest = measure_step(recipe, data.vocabulary), measure_product_peak(), 0
    else:
        found = DEVICES[device]
        peak = found.bfloat16 if recipe.model.dtype == "bfloat16" else found.float32
        seconds = cost.flops / (peak * utilisation)
        largest = largest_batch(recipe, data.vocabulary, device)
    tokens = data.patients * data.tokens_per_patient
    return Plan(cost, rows * length, -(-int(tokens) // (rows * length)), seconds, peak, largest)


def check(data: Data, device: str, utilisation: float) -> None:
    """Checks the arguments of `plan`; raises a ValueError that names the flag."""
    for name, value in data._asdict().items():
        if value < 1:
            raise ValueError(f"--{name}: found {value}; expected 1 or more")
    if device != "cpu" and device not in DEVICES:
        raise ValueError(f"--device: found {device!r}; expected one of {', '.join(('cpu', *DEVICES))}")
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation: found {utilisation}; expected more than 0 and at most 1")


def on_device(recipe: PretrainingRecipe, vocab_size: int, rows: int, device: str) -> StepCost:
    """Computes the needs of a step; off the CPU, with the logits of all masked codes, which a CPU takes in blocks."""
    cost = step_cost.compute(recipe, vocab_size, rows)
    if device == "cpu" or recipe.objective.name not in ("mlm", "joint"):
        return cost
    masked = -(-rows // recipe.train.accumulate_steps) * recipe.data.row_length * recipe.objective.mask_rate
    logits_and_slopes = 2 * 4 * round(masked) * vocab_size
    return cost._replace(temporary_bytes=cost.temporary_bytes + logits_and_slopes)


def largest_batch(recipe: PretrainingRecipe, vocab_size: int, device: str) -> int:
    """Estimates how many rows fit in a device's memory at once, from two batches: temporaries grow linearly."""
    whole = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, accumulate_steps=1))
    sizes = (8, 16)
    low, high = (on_device(whole, vocab_size, rows, device) for rows in sizes)
    per_row = (high.memory - low.memory) / (sizes[1] - sizes[0])
    room = USABLE * DEVICES[device].memory - low.memory
    return max(0, int(sizes[0] + room / per_row))


def measure_step(recipe: PretrainingRecipe, vocab_size: int) -> float:
    """Measures the median seconds of a step of the whole batch on this machine, on random patients."""
    parts = recipe.train.accumulate_steps
    step = step_cost.make_step(recipe, vocab_size, -(-recipe.train.batch_size // parts))
    state, batch, seconds = step.make_state(), step.make_batch(), []
    for _ in range(1 + MEASURED_STEPS):
        begin = time.perf_counter()
        state, metrics = step.run(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - begin)
    return parts * float(np.median(seconds[1:]))


def measure_product_peak() -> float:
    """Measures a large float32 matrix product on this machine, in FLOP/s: the fastest of some."""
    contestant = product.start({}, [])
    seconds = worker.run_steps(contestant["step"], 0, 1 + MEASURED_STEPS, 1)["seconds"]
    return contestant["measure"]()["flops"] / min(seconds[1:])


def describe(
    result: Plan, recipe: PretrainingRecipe, data: Data, device: str, utilisation: float, price: float
) -> list[str]:
    """Describes a plan in lines; `price` is of an hour, 0 if not known."""
    cost, rows, steps = result.cost, recipe.train.batch_size, recipe.train.num_steps
    memory = (cost.memory, cost.parameter_bytes, cost.parameter_bytes, cost.optimizer_bytes, cost.temporary_bytes)
    total, parameters, gradients, moments, temporaries = (f"{size / GIBIBYTE:.2f} GiB" for size in memory)
    share = cost.flops / (result.seconds_per_step * result.peak)
    is_measured = device == "cpu"
    name = "this machine" if is_measured else DEVICES[device].name
    basis = "measured" if is_measured else f"an estimate: {utilisation:.0%} of its peak is assumed"
    lines = [
        f"model: {cost.parameters:,} parameters at a vocabulary of {data.vocabulary:,}",
        f"data: {data.patients * data.tokens_per_patient:,.0f} tokens of {data.patients:,} patients",
        f"step: {rows} rows of {recipe.data.row_length} tokens, {cost.flops / 1e12:.3g} TFLOP",
        f"memory: {total}: parameters {parameters}, Adam {moments}, temporaries {temporaries} (gradients {gradients})",
        f"device: {name}, peak {result.peak / 1e12:.3g} TFLOP/s in {recipe.model.dtype}; "
        f"{result.seconds_per_step:.3g} s a step, {share:.0%} of the peak ({basis})",
    ]
    if not is_measured:
        room = DEVICES[device].memory
        fit = "fit" if cost.memory <= USABLE * room else "do not fit"
        lines.append(
            f"batch: {rows} rows {fit} in {USABLE:.0%} of {room / 1e9:.0f} GB; the largest batch that fits has "
            f"{result.largest_batch:,} rows (an estimate: XLA's analysis for this machine's processor)"
        )
    for label, number in (("recipe", steps), ("one pass over the tokens", result.pass_steps)):
        hours = number * result.seconds_per_step / 3600
        dollars = f", {hours * price:,.2f} dollars" if price else ""
        lines.append(f"{label}: {number:,} steps, {number / result.pass_steps:.3g} passes, {hours:,.2f} hours{dollars}")
    return lines


def write_plan(
    values: Mapping[str, Any], data: Data, device: str, utilisation: float = UTILISATION, price: float = 0.0
) -> Plan:
    """Plans the pre-training of a recipe, given as nested dicts, and describes it; see `plan`.

    Raises:
      ValueError: the recipe is not one of pre-training, or as in `plan`.
    """
    found = DEVICES.get(device)
    fastest = precision.fastest_dtype(jax.devices()[0]) if found is None else found.fastest_dtype
    recipe = read_recipe(precision.resolve_dtype(values, fastest))
    if not isinstance(recipe, PretrainingRecipe):
        raise ValueError(f"recipe: is of {recipe.kind}; expected one of pre-training, such as configs/small.py")
    result = plan(recipe, data, device, utilisation)
    for line in describe(result, recipe, data, device, utilisation, price):
        logger.info(line)
    return result
