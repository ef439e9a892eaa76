"""Runs training to completion with progress, metric logging, checkpoints and resumption."""

import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from tqdm import tqdm

from behrt_jax.objectives.base import Objective
from behrt_jax.training import digests, loop, metrics_writer, workdir
from behrt_jax.training.checkpoints import Checkpoints
from behrt_jax.training.interrupts import Interrupt
from behrt_jax.training.recipe import PRETRAINING, Recipe
from behrt_jax.training.state import TrainState
from behrt_jax.training.workdir import EVALUATION_FILE, MACHINE_FILE

logger = logging.getLogger(__name__)


class Training(NamedTuple):
    """What is trained, with what and where.

    Attributes:
      recipe: its sections `train` and `seed` are used, and its kind.
      folder: the workdir.
      objective: the objective to minimise.
      optimizer: from `optimizer.make_optimizer`.
      columns: maps a step to the stream of batches for the train step that starts at it.
      evaluate: maps parameters to metrics on tuning.
    """

    recipe: Recipe
    folder: Path
    objective: Objective
    optimizer: optax.GradientTransformation
    columns: Callable[[int], Iterator[dict]]
    evaluate: Callable[[Any], dict[str, float]]


def resume_and_fit(
    training: Training, current: TrainState, evaluated: Callable[[], str], resume_with: str
) -> int | None:
    """Resumes training from the newest checkpoint of the workdir, if any, and runs it to completion.

    Args:
      training: what is trained.
      current: the initial state if there is no checkpoint; donated.
      evaluated: returns the digest of the evaluation that follows, from `digests.of_evaluation`.
      resume_with: the command or call that resumes training after an interrupt.

    Returns:
      The exit status if the run was interrupted, or was already finished and evaluated; None if the caller must
      evaluate it now.
    """
    settings, folder = training.recipe.train, training.folder
    checkpoints = Checkpoints(folder / workdir.CHECKPOINTS, workdir.TUNING_LOSS)
    current = checkpoints.restore_newest(current) or current
    start_step = int(current.step)
    losses = metrics_writer.read_series(folder, "tuning", workdir.TUNING_LOSS, start_step)
    if start_step < settings.num_steps and not loop.is_exhausted(losses, settings.patience):
        if start_step:
            logger.info(f"resuming {folder} after step {start_step:,} of {settings.num_steps:,}")
        if signal_number := fit(training, current, checkpoints, losses):
            logger.info(f"stopped and saved; the same command goes on from here: {resume_with}")
            return 128 + signal_number
    elif (file := folder / EVALUATION_FILE).exists():
        if digests.is_current(file, evaluated()):
            logger.info(f"{folder} is finished after {start_step:,} steps; nothing to do. Its results: {file}")
            return 0
        logger.info(
            f"{file}: is not of the held-out patients as they are now and the best checkpoint; evaluating again"
        )
    checkpoints.close()
    return None


def fit(training: Training, current: TrainState, checkpoints: Checkpoints, losses: list[float]) -> int | None:
    """Trains from a state to completion.

    Args:
      training: what is trained.
      current: the initial state; donated.
      checkpoints: the checkpoints of the workdir.
      losses: tuning losses of earlier evaluations, oldest first.

    Returns:
      The signal that interrupted training, or None.
    """
    recipe, folder, objective = training.recipe, training.folder, training.objective
    settings, start_step = recipe.train, int(current.step)
    train_step = loop.make_train_step(objective, training.optimizer, recipe.seed, settings.accumulate_steps)
    (folder / MACHINE_FILE).write_text(json.dumps(describe_machine(recipe.model.dtype)))
    log_file = metrics_writer.MetricsWriter(folder, start_step)

    # Log files are updated less often than terminals, to keep them short.
    interval = 0.5 if sys.stderr.isatty() else 30.0
    bar = tqdm(total=settings.num_steps, initial=start_step, unit="step", dynamic_ncols=True, mininterval=interval)
    with bar, Interrupt() as interrupt:

        def log(step, split, found):
            log_file.write(step, split, found)
            if split == "train":
                speed = f"{found['tokens_per_second']:,.0f} tokens/s"
                bar.set_postfix_str(f"loss {objective.total(found):.3f}, {speed}", refresh=False)
            else:
                metrics = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
                logger.info(f"step {step:,}: {split} {metrics}")

        try:
            result = loop.train(
                current,
                train_step,
                training.columns(start_step),
                settings,
                evaluate=training.evaluate,
                watch=workdir.TUNING_LOSS,
                save=checkpoints.save,
                log=log,
                advance=lambda step: bar.update(step - bar.n),
                interrupted=interrupt,
                tuning_losses=losses,
                evaluate_initial=recipe.kind != PRETRAINING,  # fine-tuning may not improve its head's regression
            )
        except loop.TrainingDivergedError as error:
            hint = "no checkpoint was saved before"
            if steps := checkpoints.steps():
                hint = f"the last good checkpoint is {checkpoints.folder / str(steps[-1])}"
            raise loop.TrainingDivergedError(f"{error}; {hint}; lower optimizer.learning_rate") from error
        finally:
            log_file.close()
    if result.reason == "stopped_early":
        logger.info(f"stopped early: {settings.patience} evaluations without a better tuning loss")
    return interrupt.signal if result.reason == "interrupted" else None


def describe_machine(dtype: str) -> dict[str, str]:
    """Describes the hardware and software of this process, without the machine's name, and the dtype of products."""
    return {
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processor": f"{os.cpu_count()} cores, {platform.system()} on {platform.machine()}",
        "versions": f"Python {platform.python_version()}, jax {jax.__version__}",
        "matrix products": dtype,
    }
