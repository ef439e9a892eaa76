"""Counts of the examples of each objective per split, checked before training, which needs at least one of each."""

import itertools
from collections.abc import Iterable

import jax
import numpy as np

from behrt_jax.data import code_counts
from behrt_jax.data.config import DataConfig
from behrt_jax.data.dataset import Patients
from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary
from behrt_jax.models.inputs import device_columns
from behrt_jax.objectives.base import Objective
from behrt_jax.training import pretraining
from behrt_jax.training.recipe import PretrainingRecipe

NAMES = {
    "mlm": "codes to mask",
    "next_visit": "next visits to predict",
    "time_to_event": "visits to predict events from",
    "value": "values of codes to mask",
}
NEEDS = {
    "mlm": "a code in a visit that the vocabulary knows (and with objective.mask_values=False one without a value)",
    "next_visit": "a patient with two visits that hold codes of objective.targets",
    "time_to_event": "a patient with a code of objective.targets after a visit",
    "value": "a code with a number that has a scale (with objective.mask_values=True, or it is never masked)",
}
CHUNK = 500  # patients


def carries_value(vocabulary: Vocabulary) -> np.ndarray:
    """Returns (V,) bool: whether each token includes a bin of a numeric value, or has continuous values beside it."""
    special, edges, scales = np.zeros(NUM_SPECIAL, bool), vocabulary.value_edges, vocabulary.value_scales
    return np.append(special, [code.rpartition("//Q")[0] in edges or code in scales for code in vocabulary.codes])


def predicted(task: "pretraining.PretrainingTask") -> tuple[str, ...]:
    """Returns the keys of `NAMES` for what a model predicts."""
    return (*task.model.objectives, *["value"] * task.model.predicts_values)


def count(task: "pretraining.PretrainingTask", patients: Patients, training: bool = False) -> dict[str, int]:
    """Counts the examples of what a model predicts in a split: `{"mlm": 91234, "next_visit": 4321}`.

    Args:
      task: the model, its objective and its recipe.
      patients: the split; with `objective.query_times="anytime"`, from `pretraining.add_query_tokens`.
      training: whether to leave out codes that carry a value if `objective.mask_values=False`, as in training.
    """
    counts, with_values = {}, task.recipe.objective.mask_values or not training
    for name in predicted(task):
        if name == "mlm":
            counts[name] = _count_codes(task.vocabulary, patients, with_values)
        elif name == "value":
            counts[name] = int((~np.isnan(patients.columns["values"])).sum()) if with_values else 0
        elif name == "next_visit":
            counts[name] = _count_next_visits(task.recipe.data, task.is_target, patients)
        else:
            counts[name] = _count_event_visits(task.recipe, task.is_target, patients)
    return counts


def _count_codes(vocabulary: Vocabulary, patients: Patients, with_values: bool) -> int:
    maskable = np.arange(len(vocabulary)) >= NUM_SPECIAL
    maskable &= with_values | ~carries_value(vocabulary)
    return int(maskable[patients.codes[patients.visits >= 0]].sum())


def _count_next_visits(config: DataConfig, is_target: np.ndarray, patients: Patients) -> int:
    """Counts the examples of `next_visit_targets.find_next_visits`, without building their inputs."""
    index = pretraining.index(config, patients)
    owners, starts = index.owners, patients.times[index.starts[0]]
    visit_targets = code_counts.visit_codes(patients, index, len(is_target))[:, np.flatnonzero(is_target)]
    visits = np.flatnonzero(np.diff(visit_targets.indptr) > 0)
    visits = visits[np.diff(owners[visits], prepend=-1) == 0]  # leaves out the first of each patient
    return int((starts[visits] > starts[index.first_visit[owners[visits]]]).sum())


def _count_event_visits(recipe: PretrainingRecipe, is_target: np.ndarray, patients: Patients) -> int:
    """Counts the visits to predict events from; 0 if no patient has an event after the first visit."""
    times = pretraining.find_times(recipe, patients, is_target)
    first_visits = pretraining.index(recipe.data, patients).first_visit[:-1]
    chunks = np.array_split(first_visits, -(-len(first_visits) // CHUNK))
    return int((times.weights > 0).sum()) if any(times.after(chunk)[1].any() for chunk in chunks) else 0


def check(recipe: PretrainingRecipe, counts: dict[str, int], split: str) -> None:
    """Checks that a split has examples of each objective.

    Args:
      recipe: the recipe.
      counts: from `count`, or of the batches of the split.
      split: its name.

    Raises:
      ValueError: an objective has no examples; the message names it.
    """
    for name in (name for name, number in counts.items() if not number):
        is_joint = recipe.objective.name == "joint" or name == "value"
        key = f"objective.{name}_weight" if is_joint else f"objective.name={name}"
        remedy = "set it to 0" if is_joint else "name another objective"
        raise ValueError(
            f"{key}: no {NAMES[name]} in {split} of {recipe.data.path}; expected {NEEDS[name]}, there too; {remedy}, "
            "or use more patients"
        )


def check_batches(recipe: PretrainingRecipe, objective: Objective, batches: Iterable[dict], split: str) -> None:
    """Checks that the rows of a split hold examples, sampled as in `scoring.score_objective`; see `check`.

    Short rows may lose examples. Reads batches only until each objective has one example.
    """
    step = jax.jit(lambda columns, key: objective.count(objective.prepare(columns, key)))
    totals: dict[str, float] = {}
    for number, batch in zip(itertools.count(), batches, strict=False):
        counts = step(device_columns(batch), jax.random.fold_in(jax.random.key(0), number))
        totals = {name: totals.get(name, 0.0) + float(value) for name, value in counts.items()}
        if all(totals.values()):
            return
    missing = {name.partition("/")[0]: 0 for name, value in totals.items() if not value}
    check(recipe, missing, f"rows of {recipe.data.row_length} tokens (data.row_length) of {split}")


def describe(split: str, counts: dict[str, int]) -> str:
    """Describes the number of examples of each objective in a split."""
    return f"examples of {split}: " + ", ".join(f"{number:,} {NAMES[name]}" for name, number in counts.items())
