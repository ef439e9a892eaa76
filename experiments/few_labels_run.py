"""One run of few labels, in process: fine-tuning on drawn patients, and the metric of all held-out labels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from scipy.special import expit

from behrt_jax import classification_metrics, evaluate, lora, survival_metrics, train, workdir
from behrt_jax.data.prepare import Prepared
from behrt_jax.metrics import Estimate
from behrt_jax.objectives import survival
from behrt_jax.objectives.objective import Objective
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.optimizer import OptimizerConfig, make_optimizer
from behrt_jax.state import TrainState
from behrt_jax.survival_metrics import Followed
from experiments import labelled, outcomes, predictions
from experiments.labelled import Labelled


class Task(NamedTuple):
    """What is predicted.

    Attributes:
      config: the recipe, before anything is taken from labels.
      prepared: the data.
      splits: labelled histories by split.
      begun: the parameters of the pre-trained run.
    """

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


def draw_splits(task: Task, size: int, draw: int) -> dict[str, Labelled]:
    """Returns the labelled histories of `size` patients of train and as many of tuning, a function of (seed, draw)."""
    seeds, drawn = (task.config.seed, draw), {}
    for name in ("train", "tuning"):
        rows = labelled.draw_rows(task.splits[name].labels, size, *seeds, where=name)
        drawn[name] = labelled.take(task.splits[name], rows)
    return drawn


def run(task: Task, size: int, draw: int, pretrained: bool, compiled: dict[str, Steps]) -> Estimate:
    """Fine-tunes with the labels of `size` patients and scores held_out.

    Args:
      task: what is predicted.
      size: patients.
      draw: which.
      pretrained: whether to begin with the pre-trained weights; all else is the same without.
      compiled: steps of earlier runs, to which those of this run are added.
    """
    config, splits = task.config.copy_and_resolve_references(), draw_splits(task, size, draw)
    its = outcomes.build(config, task.prepared, splits, task.begun if pretrained else None)
    balanced = "classification" in config and config.classification.class_weights != "none"
    key = str((its.model, config.get("survival"), balanced and (config.labels, size, draw)))
    steps = compiled.setdefault(key, make_steps(config, its))
    # Steps have the keys that fold in 1, 2, ...; here is 0.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 0), draw)
    params = fine_tune(config, steps, its.initialize(key), splits)
    return measure(config, its.model, params, task.splits["held_out"])


def make_steps(config: ConfigDict, task: outcomes.Outcomes) -> Steps:
    """Returns the optimizer and the jitted steps of a model, its objective and its recipe."""
    settings = train.TrainConfig(**config.train)
    optimizer = make_optimizer(OptimizerConfig(**config.optimizer), settings.num_steps, scales=task.scales)
    step = train.make_train_step(task.objective, optimizer, config.seed, settings.accumulate_steps)
    return Steps(task.objective, optimizer, step, evaluate.make_tuning_step(task.objective))


def fine_tune(config: ConfigDict, steps: Steps, params: Any, splits: dict[str, Labelled]) -> Any:
    """Trains parameters on train and returns those of lowest loss on tuning, LoRA's changes merged."""
    tuning, best = list(labelled.evaluation_batches(config, splits["tuning"])), {"loss": np.inf}

    def keep(state, found):
        if found[workdir.TUNING_LOSS] < best["loss"]:
            best.update(loss=found[workdir.TUNING_LOSS], params=jax.tree.map(jnp.copy, state.params))

    train.train(
        TrainState(jnp.zeros((), jnp.int32), params, steps.optimizer.init(params)),
        steps.train,
        labelled.training_columns(config, splits["train"], 0),
        train.TrainConfig(**config.train),
        evaluate=lambda params: evaluate.score_objective(steps.tuning, steps.objective, params, tuning),
        watch=workdir.TUNING_LOSS,
        save=keep,
        log=lambda *_: None,
    )
    found = best["params"]
    return lora.merge(found["base"], found["factors"], config.lora.scale) if config.lora.rank else found


def measure(config: ConfigDict, model, params, found: Labelled) -> Estimate:
    """Returns the AUROC of labelled histories, or Harrell's C, which no calibration by a temperature would move."""
    logits, labels = predictions.score(config, model, params, found), found.labels
    if labels.kind == "survival":
        scores = survival.risk_scores(logits, SurvivalConfig(**config.survival))[:, 0]
        followed = Followed(labels.days, labels.events > 0)
        return survival_metrics.measure(scores, followed, labels.subject_ids, followed, horizons=())["survival/c_index"]
    said = expit(logits[:, 0].astype(np.float64))
    owners, weights = classification_metrics.patient_weights(labels.subject_ids, len(said), seed=0)
    of_rows = {"auroc": labels.values[:, 0] > 0}
    del of_rows
    return classification_metrics.measure(said, labels.values[:, 0] > 0, labels.subject_ids)["classification/auroc"]
