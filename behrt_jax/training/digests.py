"""Digests of the inputs of runs and evaluations, which detect results that are out of date."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from behrt_jax.data.dataset import Patients
from behrt_jax.training import workdir
from behrt_jax.training.checkpoints import Checkpoints


def of_pretraining(table: str, train: Patients, tuning: Patients) -> dict[str, str]:
    """Digests the inputs of pre-training by config key: the patients, and the table of initial code embeddings.

    Args:
      table: the key `code_init` of the recipe.
      train: the patients to train on, from `pretraining.setup`.
      tuning: the patients to tune on.
    """
    digests = {"data.path": of_patients(train, tuning)}
    if table:
        digests["code_init"] = workdir.digest(np.frombuffer(Path(table).read_bytes(), np.uint8))
    return digests


def of_patients(*splits: Patients) -> str:
    """Digests splits of prepared patients."""
    return workdir.digest([workdir.digest_patients(patients) for patients in splits])


def of_evaluation(folder: Path, digests: Mapping[str, str], *scored: Patients) -> str:
    """Digests the inputs of an evaluation: labels and patients of the run, best checkpoint, and evaluated patients."""
    digests = {key: digests[key] for key in ("labels", "data.path") if key in digests}
    checkpoints = Checkpoints(folder / workdir.CHECKPOINTS, workdir.TUNING_LOSS)
    best = checkpoints.best()
    checkpoints.close()
    return workdir.digest(digests, best and best[0], of_patients(*scored))


def is_current(file: Path, evaluated: str) -> bool:
    """Returns whether an evaluation is of held-out patients and its digest, if any (older files have none), matches."""
    try:
        result = json.loads(file.read_text())
    except ValueError:  # truncated
        return False
    return result["split"] == "held_out" and result.get("evaluated", evaluated) == evaluated
