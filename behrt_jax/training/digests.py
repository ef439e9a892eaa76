"""Digests of what runs and evaluations were made from, so that results of inputs that changed are not taken for new."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from behrt_jax.data.dataset import Patients
from behrt_jax.embeddings import code_init
from behrt_jax.training import workdir
from behrt_jax.training.checkpoints import Checkpoints


def of_pretraining(config: ConfigDict, train: Patients, tuning: Patients) -> dict[str, str]:
    """Digests the inputs of pre-training, by config key: the patients, and the table that codes begin with.

    Args:
      config: the recipe.
      train: the patients to train on, as `task.begin` returns them.
      tuning: the patients to tune on.
    """
    found = {"data.path": of_patients(train, tuning)}
    if config.get("code_init") and config.code_init != code_init.SKIP_GRAM:
        found["code_init"] = workdir.digest(np.frombuffer(Path(config.code_init).read_bytes(), np.uint8))
    return found


def of_patients(*splits: Patients) -> str:
    """Digests splits of prepared patients."""
    return workdir.digest([workdir.digest_patients(patients) for patients in splits])


def of_evaluation(folder: Path, digests: Mapping[str, str], *scored: Patients) -> str:
    """Digests what an evaluation is of: labels, patients of the run, its best checkpoint, and the patients scored."""
    digests = {key: digests[key] for key in ("labels", "data.path") if key in digests}
    checkpoints = Checkpoints(folder / workdir.CHECKPOINTS, workdir.TUNING_LOSS)
    best = checkpoints.best()
    checkpoints.close()
    return workdir.digest(digests, best and best[0], of_patients(*scored))


def is_current(file: Path, evaluated: str) -> bool:
    """Whether an evaluation is of held-out patients and has the digest that `of_evaluation` gives; older have none."""
    try:
        result = json.loads(file.read_text())
    except ValueError:  # cut short
        return False
    return result["split"] == "held_out" and result.get("evaluated", evaluated) == evaluated
