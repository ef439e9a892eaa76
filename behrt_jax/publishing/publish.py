"""Publishes the encoder of a run: its best parameters, the files that `behrt_jax.load` needs, and a model card."""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import jax.numpy as jnp

from behrt_jax.data import checksums
from behrt_jax.data.prepare import prepare
from behrt_jax.evaluation.small_cells import MIN_PATIENTS
from behrt_jax.models.behrt import count_parameters
from behrt_jax.publishing import checks, model_card
from behrt_jax.training import workdir
from behrt_jax.training.checkpoints import Checkpoints
from behrt_jax.training.state import TrainState
from behrt_jax.training.workdir import EVALUATION_FILE

CARD = "README.md"
COMMIT = "commit_success.txt"  # Orbax writes a path of this machine into it
FLOORS = {"simulated": 1, "public": 1, "real": MIN_PATIENTS}  # fewest patients behind any published number


def load_best(folder: Path) -> tuple[workdir.LoadedRun, int, dict[str, float]]:
    """Loads a pre-trained run, the step of its best checkpoint and that checkpoint's metrics on tuning.

    Raises:
      ValueError: the run is fine-tuned or cannot be loaded, or its best checkpoint is damaged or was not evaluated.
    """
    loaded = workdir.load_pretraining(folder, f"--workdir={folder}")
    params = workdir.restore_params(folder, loaded.model, fall_back=False)
    checkpoints = Checkpoints(folder / workdir.CHECKPOINTS, workdir.TUNING_LOSS)
    best = checkpoints.best()
    checkpoints.close()
    if best is None:
        raise ValueError(f"{folder / workdir.CHECKPOINTS}: no checkpoint was evaluated on tuning; train for longer")
    return loaded._replace(params=params), *best


def write_parameters(folder: Path, params, step: int, metrics: dict[str, float]) -> None:
    """Writes parameters as a checkpoint that does not name the machine."""
    checkpoints = Checkpoints(folder, workdir.TUNING_LOSS)
    checkpoints.save(TrainState(jnp.int32(step), params, None), metrics)
    checkpoints.close()
    for file in folder.rglob(COMMIT):
        file.write_text("")
    checksums.record(folder / str(step))


def publish(folder: Path, output: Path, origin: model_card.Origin, floor: int, hardware: str = "") -> list[str]:
    """Writes the published folder once all checks pass; returns lines on what is published and what is left out."""
    loaded, step, metrics = load_best(folder)
    checks.check_floor(loaded.vocabulary, floor)
    if origin.patients == "real":
        checks.check_value_edges(loaded.vocabulary, floor)
    result, dropped = checks.read_evaluation(folder / EVALUATION_FILE, floor)
    report = prepare(loaded.recipe.data).report
    checks.check_splits(report, floor)
    data, changes = checks.without_places(loaded.recipe.data)
    recipe = dataclasses.replace(loaded.recipe, data=data)
    with tempfile.TemporaryDirectory() as scratch:
        staging = Path(scratch) / output.name
        workdir.open_workdir(staging, recipe, loaded.facts, loaded.vocabulary)
        write_parameters(staging / workdir.CHECKPOINTS, loaded.params, step, metrics)
        (staging / EVALUATION_FILE).write_text(json.dumps(result, indent=1))
        cost = model_card.describe_cost(folder, recipe, hardware)
        size = count_parameters(loaded.params)
        run = model_card.Run(recipe, loaded.vocabulary, size, step, metrics, result, report, cost)
        (staging / CARD).write_text(model_card.write(output, run, origin))
        checks.check_anonymous(staging)
        if output.exists():
            shutil.rmtree(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(staging, output)
    vocabulary = loaded.vocabulary
    return [
        *changes,
        f"left out: {dropped:,} metrics of fewer than {floor} patients (--min_patients), or that would tell of them",
        f"goes out: {len(vocabulary.codes):,} codes by name, each with how often it occurs and in how many train "
        f"patients ({min(vocabulary.patients):,} or more); and bins of {len(vocabulary.value_edges):,} codes' values, "
        f"and scales of those of {len(vocabulary.value_scales):,}",
    ]
