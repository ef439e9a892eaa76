"""Compares pre-trained with from scratch where few patients are labelled: both are fine-tuned by the same recipe.

python -m experiments.few_labels --pretrained=runs/small --labels=NAME=FILE,NAME=FILE,... [--sizes=16,64,256]
    [--draws=3] [--most_labels=4] [--workdir=runs/few-labels] [--config.KEY=VALUE ...]

For each task, size k and draw, only k patients of train have labels to fit, and k of tuning for early stopping; all labels
of held_out are scored. From scratch has the data and model keys and the vocabulary of the pre-trained run, so that only
weights differ. The same command goes on where it was stopped; more sizes, draws and tasks may be added later.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from behrt_jax import classification_metrics, evaluate, lora, metrics, survival_metrics, train, workdir
from behrt_jax.data import labels as label_files
from behrt_jax.data.hashing import hash_integers
from behrt_jax.data.prepare import Prepared
from behrt_jax.metrics import Estimate
from behrt_jax.objectives import survival
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.optimizer import OptimizerConfig, make_optimizer
from behrt_jax.state import TrainState
from configs import default
from experiments import command, labelled, outcome_data, outcomes, predictions, pretrained
from experiments.labelled import Labelled
from experiments.probe import METRICS, read_sizes
from experiments.tables import format_signed

ARMS = ("scratch", "pretrained")
RESULTS_FILE = "results.jsonl"


class Task(NamedTuple):
    """What is predicted: a recipe, the labelled histories by split, and the weights of the pre-trained run."""

    config: ConfigDict
    prepared: Prepared
    splits: dict[str, Labelled]
    begun: Any


def recipe() -> ConfigDict:
    """Returns the recipes of classification and survival in one, of which each task takes its own."""
    config = default.get_finetune_config("classification")
    with config.unlocked():
        config.survival = default.get_finetune_config("survival").survival
        config.train.update(num_steps=150, evaluate_every=25, patience=3)
    return config


def read_task(config: ConfigDict, file: str, most: int, folder: Path, say: Callable[[str], None]) -> Task:
    """Reads the labels of a task, at most so many of each outcome a patient, and notes its recipe in a folder."""
    labels = label_files.read_labels([file], lambda line: None)
    if labels.kind not in METRICS or len(labels.names) > 1:
        raise ValueError(f"--labels={file}: found {labels.kind} labels; expected one binary label, or times to an event")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.labels, config.most_labels = file, most
        del config["classification" if labels.kind == "survival" else "survival"]
    begun = pretrained.load(config)
    prepared, splits = outcome_data.read_splits(config, begun.vocabulary, say)
    splits = {name: labelled.take(found, cap(found.labels, most)) for name, found in splits.items()}
    for name, found in splits.items():
        label_files.check_learnable(found.labels, name)
        say(f"{name}: {len(found.labels):,} labels are taken: {labelled.describe(found.labels)}")
    outcome_data.warn_of_few(splits["held_out"].labels, say)
    workdir.open_workdir(folder, config, prepared.vocabulary)
    return Task(config, prepared, splits, begun.params)


def cap(labels: label_files.Labels, most: int) -> np.ndarray:
    """Returns the rows of at most so many labels of each outcome a patient, those of the lowest hash of their time."""
    rank = hash_integers(labels.subject_ids, labels.prediction_times.astype(np.int64))
    rows = {"subject": labels.subject_ids, "outcome": labels.outcomes()[:, 0], "rank": rank, "row": range(len(rank))}
    return pl.DataFrame(rows).sort("rank").group_by("subject", "outcome").head(most)["row"].sort().to_numpy()


def draw_splits(task: Task, size: int, draw: int) -> dict[str, Labelled]:
    """Returns the labelled histories of `size` patients of train and as many of tuning, by (seed, draw)."""
    drawn = {name: task.splits[name] for name in ("train", "tuning")}
    seeds = (task.config.seed, draw)
    return {n: labelled.take(part, labelled.draw_rows(part.labels, size, *seeds, where=n)) for n, part in drawn.items()}


def fine_tune(task: Task, splits: dict[str, Labelled], draw: int, arms: list[str], advance: Callable[[], object]):
    """Yields what each arm gives, trained on drawn splits: its name, the recipe filled in, the model, the best weights.

    Both arms have the same steps, compiled once, and begin from the same key, which is a function of (seed, draw).
    """
    config = task.config.copy_and_resolve_references()
    made = {arm: outcomes.build(config, task.prepared, splits, task.begun if arm == ARMS[1] else None) for arm in arms}
    settings, first = train.TrainConfig(**config.train), made[arms[0]]
    optimizer = make_optimizer(OptimizerConfig(**config.optimizer), settings.num_steps, scales=first.scales)
    step = train.make_train_step(first.objective, optimizer, config.seed, settings.accumulate_steps)
    tuning_step, tuning = evaluate.make_tuning_step(first.objective), outcomes_batches(config, splits)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 0), draw)  # steps begin at 1
    for arm, its in made.items():
        params, best = its.initialize(key), {"loss": np.inf}
