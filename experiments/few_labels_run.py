"""One run of few labels, in process: fine-tuning on drawn patients, and the metric of all held-out labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from behrt_jax import evaluate, lora, train, workdir
from behrt_jax.data import labels as label_files
from behrt_jax.data.prepare import Prepared
from behrt_jax.metrics import Estimate
from behrt_jax.objectives.objective import Objective
from behrt_jax.optimizer import OptimizerConfig, make_optimizer
from behrt_jax.state import TrainState
from experiments import draws, few_labels_scores, inputs, labelled, outcome_data, outcomes, pretrained, probe_first
from experiments.labelled import Labelled
from experiments.probe import METRICS


class Task(NamedTuple):
    """The recipe of a task (before anything is taken from labels), its data, and the pre-trained parameters."""

    config: ConfigDict
    prepared: Prepared
    splits: dict[str, Labelled]
    begun: Any


class Steps(NamedTuple):
    """What is compiled once for all runs of the same model and objective."""

    objective: Objective
    optimizer: optax.GradientTransformation
    train: Callable
    tuning: Callable


def read_task(config: ConfigDict, file: str, most: int, probe: bool, folder: Path, say: Callable[[str], None]) -> Task:
    """Reads a task, with at most so many labels of each outcome a patient, and notes its recipe in a folder."""
    labels = label_files.read_labels([file], lambda line: None)
    if labels.kind not in METRICS or len(labels.names) > 1:
        raise ValueError(
            f"--labels={file}: found {labels.kind} labels; expected one binary label, or times to an event"
        )
    if config.history.regression:
        raise ValueError(
            "history.regression: found True; expected False, as few labels are for the encoder to learn from"
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.labels, config.most_labels, config.probe_first = file, most, probe
        del config["classification" if labels.kind == "survival" else "survival"]
    begun = pretrained.load(config)
    prepared, splits = outcome_data.read_splits(config, begun.vocabulary, say)
    splits = {name: draws.take(found, draws.cap(found.labels, most)) for name, found in splits.items()}
    for name, found in splits.items():
        label_files.check_learnable(found.labels, name)
        say(f"{name}: {len(found.labels):,} labels are taken: {labelled.describe(found.labels)}")
    outcome_data.warn_of_few(splits["held_out"].labels, say)
    workdir.open_workdir(folder, config, prepared.vocabulary, inputs.of_finetuning(splits, begun), say)
    return Task(config, prepared, splits, begun.params)


def run(task: Task, size: int, draw: int, pretrained: bool, compiled: dict[str, Steps]) -> Estimate:
    """Fine-tunes with the labels of `size` patients and scores held_out.

    Args:
      task: what is predicted.
      size: patients.
      draw: which.
      pretrained: whether to begin with the pre-trained weights; all else is the same without.
      compiled: steps of earlier runs, to which those of this run are added.
    """
    config = task.config.copy_and_resolve_references()
    if not pretrained:  # nothing to foretell with
        with config.unlocked():
            config.foretold.codes = config.foretold.ids = ()
    splits = draws.draw_splits(task.splits, size, config.seed, draw)
    its = outcomes.build(config, task.prepared, splits, task.begun if pretrained else None)
    balanced = "classification" in config and config.classification.class_weights != "none"
    key = str((its.model, config.get("survival"), balanced and (config.labels, size, draw)))
    steps = compiled.setdefault(key, make_steps(config, its))
    # Steps have the keys that fold in 1, 2, ...; here is 0.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 0), draw)
    params = its.initialize(key)
    if config.probe_first:
        params = probe_first.begin(config, its.model, params, splits)
    # A copy, as training donates what it begins with; from numpy, as arrays bound to a device are compiled for anew.
    params = jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), params)
    params = fine_tune(config, steps, params, splits)
    return few_labels_scores.measure(config, its.model, params, task.splits["held_out"])


def foretell(task: Task) -> Estimate:
    """Scores held_out by what the pre-trained run foretells, before any label: the mean of `foretold.codes`."""
    its = outcomes.build(task.config, task.prepared, task.splits, task.begun)
    found, width = task.splits["held_out"], task.config.model.hidden_dim
    read = probe_first.read_patients(task.config, its.model, its.initialize(jax.random.key(0)), found)
    return few_labels_scores.rank(read[:, width : width + len(task.config.foretold.ids)].mean(axis=1), found.labels)


def make_steps(config: ConfigDict, task: outcomes.Outcomes) -> Steps:
    """Returns the optimizer and the jitted steps of a model, its objective and its recipe."""
    settings = train.TrainConfig(**config.train)
    optimizer = make_optimizer(OptimizerConfig(**config.optimizer), settings.num_steps, scales=task.scales)
    step = train.make_train_step(task.objective, optimizer, config.seed, settings.accumulate_steps)
    return Steps(task.objective, optimizer, step, evaluate.make_tuning_step(task.objective))


def fine_tune(config: ConfigDict, steps: Steps, params: Any, splits: dict[str, Labelled]) -> Any:
    """Trains parameters on train and returns those of lowest loss on tuning, LoRA's changes merged.

    What training begins with may be the best too.
    """
    batches = list(labelled.evaluation_batches(config, splits["tuning"]))
    best: dict[str, Any] = {"loss": np.inf}

    def score(params):
        return evaluate.score_objective(steps.tuning, steps.objective, params, batches)

    def keep(state, found):
        if found[workdir.TUNING_LOSS] < best["loss"]:
            best.update(loss=found[workdir.TUNING_LOSS], params=jax.tree.map(jnp.copy, state.params))

    state = TrainState(jnp.zeros((), jnp.int32), params, steps.optimizer.init(params))
    train.train(
        state,
        steps.train,
        labelled.training_columns(config, splits["train"], 0),
        train.TrainConfig(**config.train),
        evaluate=score,
        watch=workdir.TUNING_LOSS,
        save=keep,
        log=lambda *_: None,
        judge_start=True,
    )
    found = best["params"]
    return lora.merge(found["base"], found["factors"], config.lora.scale) if config.lora.rank else found
