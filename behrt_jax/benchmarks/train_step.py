"""The contestant of this library: the train step of a recipe, or its forward pass. Started by `worker`.

Also runs with another checkout on the path: it uses only what older versions have too.
"""

import importlib
import math

import jax
import numpy as np

from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.inputs import model_arguments
from behrt_jax.models.pretraining import BEHRTForPretraining
from behrt_jax.objectives.config import ObjectiveConfig
from behrt_jax.objectives.joint import make_objective
from behrt_jax.training import loop, state, workdir
from behrt_jax.training.optimizer import OptimizerConfig, make_optimizer


def start(settings: dict, batches: list[dict]) -> dict:
    """Starts the contestant; see `worker`."""
    recipe = importlib.import_module(f"behrt_jax.recipes.{settings['tier']}").get_config()
    sizes = {"vocab_size": settings["vocabulary"], "dropout": settings["dropout"]}
    model = BEHRTForPretraining(BEHRTConfig(**{**recipe.model, **sizes}), ("mlm",))
    start_what = start_inference if settings["what"] == "inference" else start_training
    step, measure = start_what(recipe, model, batches, settings["what"] != "memory")
    return {"step": step, "measure": measure, "read": lambda number: real_codes(batches[number])}


def real_codes(batch: dict) -> np.ndarray:
    """Returns the codes of a packed batch without padding, (n,)."""
    return batch["codes"][batch["patient_ids"] != 0]


def start_training(recipe, model, batches: list[dict], wait: bool):
    """Returns the step and the measurements of training on masked codes; without `wait`, steps are only dispatched."""
    objective = make_objective(model, ObjectiveConfig(**{**recipe.objective, "name": "mlm"}), recipe.data.use_sep)
    optimizer = make_optimizer(OptimizerConfig(**recipe.optimizer), recipe.train.num_steps)
    train_step = loop.make_train_step(objective, optimizer, recipe.seed)
    current = state.create_state(lambda key: workdir.initialize(model, key), optimizer, recipe.seed)

    def step(number: int):
        nonlocal current
        current, metrics = train_step(current, batches[number])
        loss, masked = jax.block_until_ready(metrics["mlm/loss"]) if wait else metrics["mlm/loss"]
        return loss / masked, masked

    def measure():
        figures = analyse(train_step, current, batches[0])
        shape, rate = batches[0]["codes"].shape, recipe.objective.mask_rate
        masked = round(rate * np.mean([batch["maskable"].sum() for batch in batches]))
        return {**figures, "flops": figures["flops"] + loop_flops(masked, shape, rate, model.config)}

    return step, measure


def start_inference(recipe, model, batches: list[dict], wait: bool):
    """Returns the step and the measurements of embedding patients; `wait` as in `start_training`."""
    params = workdir.initialize(model, jax.random.key(recipe.seed))
    num_patients = max(int(batch["patient_ids"].max()) for batch in batches)

    @jax.jit
    def embed(params, batch):
        inputs, columns = model_arguments(batch)
        return model.apply(params, *inputs, **columns, num_patients=num_patients, method="get_patient_embedding")

    def step(number: int):
        embedded = embed(params, batches[number])
        return (jax.block_until_ready(embedded) if wait else embedded).sum(), 0

    return step, lambda: analyse(embed, params, batches[0])


def loop_flops(masked: int, shape: tuple[int, int], mask_rate: float, config: BEHRTConfig) -> float:
    """Returns the FLOPs of the blocks of masked codes that XLA does not count: it counts one turn of their loop.

    Args:
      masked: number of masked codes in a batch.
      shape: (B, L) of the batch.
      mask_rate: of the objective.
      config: architecture.
    """
    try:
        from behrt_jax.models.fused import block_size
    except ImportError:  # checkouts before the loop
        return 0.0
    slots = shape[0] * math.ceil(mask_rate * shape[1])
    block = block_size(slots, config.vocab_size)
    num_blocks = 1 if block == slots else -(-masked // block)
    return 6.0 * (num_blocks - 1) * block * config.embedding_dim * config.vocab_size


def read_costs(compiled) -> dict:
    """Returns `flops` and `temporary_bytes` of a compiled function, by XLA's own analysis."""
    costs = compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs  # a list under the versions for jax-metal
    return {"flops": float(costs["flops"]), "temporary_bytes": int(compiled.memory_analysis().temp_size_in_bytes)}


def analyse(function, state, batch: dict) -> dict:
    """Returns XLA's own figures of a compiled function, the number of parameters, and the size of its state."""
    params = getattr(state, "params", state)
    return {
        **read_costs(function.lower(state, batch).compile()),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
    }
