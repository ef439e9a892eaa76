"""Pre-training: from a recipe to a trained and evaluated workdir."""

import functools
import logging
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from behrt_jax.data import dataset
from behrt_jax.evaluation import loaded_run
from behrt_jax.evaluation.comparison import Comparison
from behrt_jax.models.behrt import count_parameters
from behrt_jax.training import digests as input_digests
from behrt_jax.training import pretraining, state
from behrt_jax.training import workdir as workdirs
from behrt_jax.training.describe import describe_data, describe_rows, describe_unmatched
from behrt_jax.training.fit import Training, resume_and_fit
from behrt_jax.training.optimizer import make_optimizer

logger = logging.getLogger(__name__)


class TrainedRun(NamedTuple):
    """The result of training.

    Attributes:
      workdir: the argument of `behrt_jax.load`.
      status: 0 if training finished, otherwise 128 plus the number of the signal that stopped it.
      evaluation: metrics on held-out patients; None if the run was stopped or had already finished.
    """

    workdir: Path
    status: int
    evaluation: Comparison | None


def pretrain(config: ConfigDict, workdir: str | Path, *, baselines: bool = True, resume_with: str = "") -> TrainedRun:
    """Pre-trains BEHRT on a MEDS data set and evaluates it; resumes where an earlier run of the workdir stopped.

    Args:
      config: a recipe, such as `behrt_jax.recipes.small.get_config()`; it is not changed.
      workdir: output folder.
      baselines: whether to fit baselines for the evaluation; they take some minutes.
      resume_with: how to resume after an interrupt, for the message; the same call if empty.

    Raises:
      ValueError: the recipe or the data cannot be used, or the workdir belongs to another run.
    """
    folder = Path(workdir)
    prepared, patients, task = pretraining.setup(config)
    recipe = task.recipe
    splits = {name: dataset.read(prepared.folder, name) for name in ("tuning", "held_out")}
    splits = {name: dataset.sample(part, recipe.evaluation.max_patients) for name, part in splits.items()}
    scorer = pretraining.tuning_scorer(task, splits["tuning"])
    pretraining.count_examples(task, pretraining.add_query_tokens(recipe, splits["held_out"]), "held_out")
    check_oracle(task, splits["held_out"])
    digests = input_digests.of_pretraining(recipe.code_init, patients, splits["tuning"])
    with workdirs.hold(folder):
        workdirs.open_workdir(folder, recipe, task.facts, prepared.vocabulary, digests)
        optimizer = make_optimizer(recipe.optimizer, recipe.train.num_steps)
        train_state = state.create_state(pretraining.initialize(task, patients), optimizer, recipe.seed)
        size = count_parameters(train_state.params)
        for line in (*describe_data(prepared, size), *describe_unmatched(recipe, prepared)):
            logger.info(line)
        logger.info(f"a page on this data: python -m experiments.describe --data={recipe.data.path}")
        logger.info(describe_rows(patients, recipe.data.row_length, recipe.data.use_sep, recipe.seed))
        if task.is_target.any():
            logger.info(f"targets: {task.is_target.sum():,} codes by objective.targets and objective.min_patients")
        columns = functools.partial(pretraining.training_columns, task, patients)
        evaluation_digest = functools.partial(input_digests.of_evaluation, folder, digests, splits["held_out"])
        training = Training(recipe, folder, task.objective, optimizer, columns, scorer)
        resume_with = resume_with or f"behrt_jax.pretrain(config, '{folder}')"
        status = resume_and_fit(training, train_state, evaluation_digest, resume_with)
        if status is not None:
            return TrainedRun(folder, status, None)
        from behrt_jax.evaluation import pretrained  # here, as the baselines and metrics import libraries for seconds

        evaluation = pretrained.evaluate_run(folder, "held_out", with_baselines=baselines)
        logger.info(evaluation.table())
        outputs = f"{workdirs.EVALUATION_FILE}, metrics.jsonl, tensorboard/, checkpoints/, and what load() needs"
        logger.info(f"written to {folder}: {outputs}")
        return TrainedRun(folder, 0, evaluation)


def check_oracle(task: pretraining.PretrainingTask, held_out: dataset.Patients) -> None:
    """Warns before training if the evaluation of simulated patients cannot use the oracle."""
    data = task.recipe.data
    if loaded_run.is_simulated(data.path) and {"mlm", "next_visit"} & set(task.model.objectives):
        try:
            index = pretraining.index(data, held_out)
            loaded_run.read_simulation(Path(data.path), task.vocabulary, held_out, index)
        except ValueError as error:
            logger.warning(f"the evaluation will leave out the oracle: {error}")
