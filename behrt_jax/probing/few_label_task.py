"""A few-label task: its labelled histories, the pre-trained forecast, and networks trained on sampled patients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from behrt_jax.data.prepare import Prepared
from behrt_jax.finetuning import data, labeled_histories, predict, pretrained, probe_init, sampling, setup
from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.labels import labels as label_data
from behrt_jax.models import lora
from behrt_jax.objectives import survival
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.probing import scores
from behrt_jax.training import loop, workdir
from behrt_jax.training.optimizer import OptimizerConfig, make_optimizer
from behrt_jax.training.state import TrainState

# From scratch, all layers have the same learning rate. No labels are spent on choosing the number of steps, which is
# the same for any number of labels.
SCRATCH = {"layer_decay": 1.0}


class Task(NamedTuple):
    """The recipe of a task (before anything is taken from labels), its data, and the pre-trained parameters."""

    config: ConfigDict
    prepared: Prepared
    splits: dict[str, LabeledHistories]
    begun: Any


class Steps(NamedTuple):
    """The parts that are compiled once for all trainings of the same model and objective."""

    optimizer: optax.GradientTransformation
    train: Callable


def read_task(config: ConfigDict, file: str, most: int, folder, say: Callable[[str], None]) -> Task:
    """Reads a task, with at most `most` labels of each outcome per patient, and records its recipe in a folder."""
    labels = label_data.read_labels([file], lambda line: None)
    scores.check_kind(labels, f"--labels={file}")
    if config.history.regression:
        raise ValueError("history.regression: found True; expected False, as few labels have a regression of their own")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.labels, config.most_labels = file, most
        del config["classification" if labels.kind == "survival" else "survival"]
    loaded = pretrained.load_pretrained(config)
    prepared, splits = data.read_splits(config, loaded.vocabulary, say)
    splits = {name: sampling.take(split, sampling.cap(split.labels, most)) for name, split in splits.items()}
    for name in ("train", "held_out"):
        label_data.check_learnable(splits[name].labels, name)
        say(f"{name}: {len(splits[name].labels):,} labels are taken: {labeled_histories.describe(splits[name].labels)}")
    data.warn_of_few(splits["held_out"].labels, say)
    workdir.open_workdir(folder, config, prepared.vocabulary, setup.digest_inputs(splits, loaded), say)
    return Task(config, prepared, splits, loaded.params)


def forecast(task: Task) -> np.ndarray:
    """Returns the pre-trained run's forecast for held-out patients, without labels: the mean over `forecast.codes`."""
    finetuning_task = setup.build(task.config, task.prepared, task.splits, task.begun)
    width = task.config.model.hidden_dim
    features = probe_init.read_patients(
        task.config, finetuning_task.model, finetuning_task.initialize(jax.random.key(0)), task.splits["held_out"]
    )
    return features[:, width : width + len(task.config.forecast.ids)].mean(axis=1)


def train_and_score(task: Task, rows: np.ndarray, draw: int, is_pretrained: bool, compiled: dict) -> np.ndarray:
    """Trains a network end to end on some labels of train, all steps of the recipe, and scores held_out.

    Args:
      task: the task to predict.
      rows: rows of train, the labels to learn from.
      draw: determines the random weights and the order.
      is_pretrained: whether to start from the pre-trained encoder; else from a random one, with the recipe `SCRATCH`.
      compiled: compiled steps of earlier trainings; those of this one are added.
    """
    config = task.config.copy_and_resolve_references()
    if not is_pretrained:
        with config.unlocked():
            config.update(SCRATCH)
            config.forecast.codes = config.forecast.ids = ()
    sample = sampling.take(task.splits["train"], rows)
    finetuning_task = setup.build(config, task.prepared, {"train": sample}, task.begun if is_pretrained else None)
    key = str((finetuning_task.model, config.get("survival"), config.get("classification"), is_pretrained))
    if "classification" in config and config.classification.class_weights != "none":
        key += str((config.labels, rows.tobytes()))  # the objective's weights depend on the labels
    steps = compiled.get(key) or compiled.setdefault(key, make_steps(config, finetuning_task))
    # Training steps fold in 1, 2, ...; initialisation folds in 0.
    params = finetuning_task.initialize(jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 0), draw))
    # Copied, as training donates its initial parameters; via numpy, as arrays bound to a device trigger recompilation.
    params = jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), params)
    current = TrainState(jnp.zeros((), jnp.int32), params, steps.optimizer.init(params))
    columns = labeled_histories.training_columns(config, sample, 0)
    for _ in range(config.train.num_steps):
        current, metrics = steps.train(current, next(columns))
    loop.check_finite([jax.device_get(metrics)], config.train.num_steps - 1)
    params = current.params
    if config.lora.rank:
        params = lora.merge(params["base"], params["factors"], config.lora.scale)
    logits = predict.score(config, finetuning_task.model, params, task.splits["held_out"])
    return (
        survival.risk_scores(logits, SurvivalConfig(**config.survival))[:, 0] if "survival" in config else logits[:, 0]
    )


def make_steps(config: ConfigDict, task: setup.FinetuningTask) -> Steps:
    """Returns the optimizer and the jitted training step for a model, its objective and its recipe."""
    settings = loop.TrainConfig(**config.train)
    optimizer = make_optimizer(OptimizerConfig(**config.optimizer), settings.num_steps, scales=task.scales)
    return Steps(optimizer, loop.make_train_step(task.objective, optimizer, config.seed, settings.accumulate_steps))
