"""What contestants are given: a recipe's sizes, and batches of the bundled patients that all of them read."""

import dataclasses
import importlib
import itertools
import json
import os
from pathlib import Path

import numpy as np

from behrt_jax.benchmarks import worker
from behrt_jax.data import batches, dataset
from behrt_jax.objectives import scoring
from behrt_jax.training import pretraining

TIERS = ("small", "medium", "large")
EVALUATE_EVERY = 100  # updates of main_job; more often than the recipe, to find when an accuracy is reached
PADDED_LENGTHS = {"small": 50, "medium": 100, "large": 200}  # tokens a row of one patient in padded peers


@dataclasses.dataclass(frozen=True)
class Workload:
    """The work of one benchmark.

    Attributes:
      what: `step`, `memory` and `startup` train; `inference` embeds the patients of a batch, `embed` those of train;
        `host` packs those of train into batches; `prepare` turns MEDS events into tokens; `main_job` pre-trains.
      tier: the recipe: small, medium or large.
      vocabulary: V; rows of the code table. At least the fitted vocabulary of the data.
      row_length: L, tokens per packed row.
      rows: B, rows per step; 0 takes the recipe's.
      dropout: dropout rate of every contestant; `main_job` takes the recipe's.
      threads: CPUs of every contestant; 0 takes all that this process may use.
      num_batches: different batches, used in turn.
      updates: of `main_job`; 0 takes the recipe's.
      peer_learning_rate: the peak of peers in `main_job`; 0 takes the recipe's.
    """

    what: str = "step"
    tier: str = "small"
    vocabulary: int = 1000
    row_length: int = 256
    rows: int = 0
    dropout: float = 0.1
    threads: int = 0
    num_batches: int = 8
    updates: int = 0
    peer_learning_rate: float = 0.0

    def __post_init__(self):
        if self.tier not in TIERS:
            raise ValueError(f"--tier: found {self.tier!r}; expected one of {', '.join(TIERS)}")
        available = count_cpus()
        if not 0 <= self.threads <= available:
            raise ValueError(
                f"--threads: found {self.threads}; expected 1 to {available}, the CPUs at hand, or 0 for all"
            )


def count_cpus() -> int:
    """Returns the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(workload: Workload, folder: Path, prepared_dir: str, data: str = "") -> dict:
    """Writes the settings and the batches of a workload for `worker`; returns the settings.

    Args:
      workload: what to run.
      folder: output folder.
      prepared_dir: the cache of prepared data.
      data: a MEDS data set; the recipe's if empty.

    Raises:
      ValueError: the vocabulary is smaller than that of the data.
    """
    recipe = importlib.import_module(f"behrt_jax.recipes.{workload.tier}").get_config()
    recipe.data.prepared_dir, recipe.data.row_length = prepared_dir, workload.row_length
    recipe.data.path = data or recipe.data.path
    recipe.train.batch_size = workload.rows or recipe.train.batch_size
    run = pretraining.setup(recipe)
    first, vocabulary = take_batches(run, workload.num_batches), run.prepared.vocabulary
    if workload.vocabulary < len(vocabulary):
        raise ValueError(
            f"--vocabulary: found {workload.vocabulary}; expected {len(vocabulary)} or more, the codes of the data"
        )
    sizes = ("embedding_dim", "hidden_dim", "num_layers", "num_heads", "feedforward_dim", "max_visits")
    settings = {
        **dataclasses.asdict(workload),
        "rows": recipe.train.batch_size,
        "data": recipe.data.path,
        "patients": str(folder / "patients.npz"),
        "threads": workload.threads or count_cpus(),
        "padded_length": PADDED_LENGTHS[workload.tier],
        "mask_rate": recipe.objective.mask_rate,
        "model": {name: recipe.model[name] for name in sizes},
        "optimizer": recipe.optimizer.to_dict(),
    }
    if workload.what == "main_job":
        settings |= {"updates": workload.updates or recipe.train.num_steps, "evaluate_every": EVALUATE_EVERY}
        settings |= {"dropout": recipe.model.dropout, "job": str(folder / "job.npz")}
        settings["optimizer"]["learning_rate"] = workload.peer_learning_rate or recipe.optimizer.learning_rate
        job: dict = make_job(recipe, run, settings["updates"])
        np.savez(settings["job"], **job)
    (folder / worker.SETTINGS_FILE).write_text(json.dumps(settings, indent=1))
    columns: dict = {name: np.stack([batch[name] for batch in first]) for name in first[0]}
    np.savez(folder / worker.BATCHES_FILE, **columns)
    if workload.what in ("embed", "host"):
        arrays = dataclasses.asdict(run.train)
        np.savez(settings["patients"], **{name: array for name, array in arrays.items() if array is not None})
    return settings


def take_batches(run: pretraining.PretrainingRun, number: int) -> list[dict]:
    """Returns the first training batches of a run."""
    return list(itertools.islice(pretraining.training_columns(run.task, run.train, 0), number))


def make_job(recipe, run: pretraining.PretrainingRun, updates: int) -> dict[str, np.ndarray]:
    """Returns what peers read in `main_job`: the batches of every update, and tuning with its masked codes.

    Returns:
      (U, B, L) columns by name; and, named `tuning_...`, (T, B, L) columns, `inputs`, the codes after masking, and
      `labels`, the masked codes, 0 elsewhere. Rows of padding fill the last batch.
    """
    train = take_batches(run, updates)
    tuning = dataset.read(run.prepared.folder, "tuning")
    length, rows, use_sep = recipe.data.row_length, recipe.train.batch_size, recipe.data.use_sep
    stream = batches.evaluation_batches(tuning, length, rows, use_sep)
    vocabulary = len(run.prepared.vocabulary)
    masked = list(scoring.mask_batches(stream, recipe.evaluation.mask_rate, vocabulary, draws=1))
    arrays = {name: np.stack([batch[name] for batch in train]) for name in train[0]}
    for name in train[0]:
        arrays[f"tuning_{name}"] = np.stack([each.batch[name] for each in masked])
    arrays["tuning_inputs"] = np.stack([each.masked.inputs for each in masked])
    arrays["tuning_labels"] = np.zeros_like(arrays["tuning_inputs"])
    for number, each in enumerate(masked):
        arrays["tuning_labels"][number][each.targets] = each.labels
    return arrays
