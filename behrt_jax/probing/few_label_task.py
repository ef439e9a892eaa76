"""A few-label task: its labelled histories, and networks trained on sampled patients."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from behrt_jax.data.prepare import Prepared
from behrt_jax.finetuning import (
    data,
    head_features,
    labeled_histories,
    predict,
    pretrained,
    sampling,
    setup,
)
from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.labels import labels as label_data
from behrt_jax.labels.labels import Labels
from behrt_jax.models import lora
from behrt_jax.objectives import survival
from behrt_jax.objectives.classification import ClassificationConfig
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.probing import scores
from behrt_jax.training import loop, workdir
from behrt_jax.training.optimizer import make_optimizer
from behrt_jax.training.recipe import Facts, FinetuningRecipe, HeadConfig, with_facts
from behrt_jax.training.state import TrainState

logger = logging.getLogger(__name__)

# From scratch, all layers have the same learning rate. No labels are spent on choosing the number of steps, which is
# the same for any number of labels.
SCRATCH = {"layer_decay": 1.0, "head": HeadConfig()}


class Task(NamedTuple):
    """The recipe of a task (before anything is taken from labels), its data, and the pre-trained parameters."""

    recipe: FinetuningRecipe
    prepared: Prepared
    splits: dict[str, LabeledHistories]
    pretrained_params: Any

    def find_facts(self, labels: Labels) -> Facts:
        """Returns the facts of a task that is learned from some labels."""
        return setup.find_facts(self.recipe, labels, len(self.prepared.vocabulary))


class Steps(NamedTuple):
    """The parts that are compiled once for all trainings of the same model and objective."""

    optimizer: optax.GradientTransformation
    train: Callable


def read_task(values: dict[str, Any], file: str, most: int, folder) -> Task:
    """Reads a task, with at most `most` labels of each outcome per patient, and records its recipe in a folder.

    `values` are those of a recipe with the sections of both kinds of labels, `classification` and `survival`.
    """
    labels = label_data.read_labels([file])
    scores.check_kind(labels, f"--labels={file}")
    if "regression" in values["head"]["features"]:
        raise ValueError(
            "head.features: found regression; expected it left out, as few labels have a regression of their own"
        )
    other_kind = "classification" if labels.kind == "survival" else "survival"
    values = {name: value for name, value in values.items() if name != other_kind}
    recipe, loaded = pretrained.load_pretrained(setup.read({**values, "labels": file}))
    prepared, splits = data.read_splits(recipe, loaded.vocabulary)
    splits = head_features.select(recipe.head, splits, prepared.vocabulary.tokens)
    splits = {name: sampling.take(split, sampling.cap(split.labels, most)) for name, split in splits.items()}
    for name in ("train", "held_out"):
        label_data.check_learnable(splits[name].labels, name)
        labels = splits[name].labels
        logger.info(f"{name}: {len(labels):,} labels are taken: {labeled_histories.describe(labels)}")
    data.warn_of_few(splits["held_out"].labels)
    task = Task(recipe, prepared, splits, loaded.params)
    facts = task.find_facts(splits["train"].labels)
    digests = setup.digest_inputs(splits, loaded)
    workdir.open_workdir(folder, with_facts(recipe, facts), facts, prepared.vocabulary, digests)
    return task


def train_and_score(task: Task, rows: np.ndarray, draw: int, is_pretrained: bool, compiled: dict) -> np.ndarray:
    """Trains a network end to end on some labels of train, all steps of the recipe, and scores held_out.

    Args:
      task: the task to predict.
      rows: rows of train, the labels to learn from.
      draw: determines the random weights and the order.
      is_pretrained: whether to start from the pre-trained encoder; else from a random one, with the recipe `SCRATCH`.
      compiled: compiled steps of earlier trainings; those of this one are added.
    """
    recipe = task.recipe if is_pretrained else dataclasses.replace(task.recipe, **SCRATCH)
    sample = sampling.take(task.splits["train"], rows)
    facts = task.find_facts(sample.labels)
    pretrained_params = task.pretrained_params if is_pretrained else None
    finetuning_task = setup.build(recipe, facts, task.prepared, {"train": sample}, pretrained_params)
    recipe, outcome = finetuning_task.recipe, finetuning_task.recipe.outcome
    key = str((finetuning_task.model, outcome, is_pretrained))
    if isinstance(outcome, ClassificationConfig) and outcome.class_weights != "none":
        key += str((recipe.labels, rows.tobytes()))  # the objective's weights depend on the labels
    steps = compiled.get(key) or compiled.setdefault(key, make_steps(finetuning_task))
    # Training steps fold in 1, 2, ...; initialisation folds in 0.
    params = finetuning_task.initialize(jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), 0), draw))
    # Copied, as training donates its initial parameters; via numpy, as arrays bound to a device trigger recompilation.
    params = jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), params)
    current = TrainState(jnp.zeros((), jnp.int32), params, steps.optimizer.init(params))
    columns = labeled_histories.training_columns(recipe, sample, 0)
    for _ in range(recipe.train.num_steps):
        current, metrics = steps.train(current, next(columns))
    loop.check_finite([jax.device_get(metrics)], recipe.train.num_steps - 1)
    params = current.params
    if recipe.lora.rank:
        params = lora.merge(params["base"], params["factors"], recipe.lora.scale)
    logits = predict.score(recipe, finetuning_task.model, params, task.splits["held_out"])
    return survival.risk_scores(logits, outcome)[:, 0] if isinstance(outcome, SurvivalConfig) else logits[:, 0]


def make_steps(task: setup.FinetuningTask) -> Steps:
    """Returns the optimizer and the jitted training step for a model, its objective and its recipe."""
    recipe, settings = task.recipe, task.recipe.train
    optimizer = make_optimizer(recipe.optimizer, settings.num_steps, scales=task.scales)
    return Steps(optimizer, loop.make_train_step(task.objective, optimizer, recipe.seed, settings.accumulate_steps))
