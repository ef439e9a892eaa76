"""What contestants are given: a recipe's sizes, and batches of the bundled patients that all of them read."""

import dataclasses
import importlib
import json
import os
from pathlib import Path

import numpy as np

from behrt_jax.benchmarks import worker
from behrt_jax.data.dataset import Patients
from behrt_jax.data.vocabulary import Vocabulary
from behrt_jax.training import pretraining

TIERS = ("small", "medium", "large")
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
      dropout: dropout rate of every contestant.
      threads: CPUs of every contestant; 0 takes all that this process may use.
      num_batches: different batches, used in turn.
      updates: of `main_job`; 0 takes the recipe's.
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
    batches, vocabulary, train = make_batches(recipe, workload.num_batches)
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
        "optimizer": {name: recipe.optimizer[name] for name in ("learning_rate", "weight_decay", "b2", "clip_norm")},
    }
    (folder / worker.SETTINGS_FILE).write_text(json.dumps(settings, indent=1))
    columns: dict = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    np.savez(folder / worker.BATCHES_FILE, **columns)
    if workload.what in ("embed", "host"):
        arrays = dataclasses.asdict(train)
        np.savez(settings["patients"], **{name: array for name, array in arrays.items() if array is not None})
    return settings


def make_batches(recipe, number: int) -> tuple[list[dict], Vocabulary, Patients]:
    """Prepares the data of a recipe; returns its first training batches, its vocabulary and its train patients."""
    run = pretraining.setup(recipe)
    columns = pretraining.training_columns(run.task, run.train, 0)
    return [next(columns) for _ in range(number)], run.prepared.vocabulary, run.train
