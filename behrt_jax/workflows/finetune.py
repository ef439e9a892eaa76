"""Fine-tuning: from labels and a pre-trained run to a trained and evaluated workdir."""

import functools
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from behrt_jax.evaluation import outcomes
from behrt_jax.finetuning import finetuned, labeled_histories, setup
from behrt_jax.training import digests, state
from behrt_jax.training import workdir as workdirs
from behrt_jax.training.fit import Training, resume_and_fit
from behrt_jax.training.optimizer import count_trained, make_optimizer
from behrt_jax.training.workdir import EVALUATION_FILE, PARAMETERS_FILE, REGRESSION_FILE
from behrt_jax.workflows.pretrain import TrainedRun

logger = logging.getLogger(__name__)


def finetune(
    config: ConfigDict,
    workdir: str | Path,
    *,
    compare_to: Sequence[str | Path] = (),
    baselines: bool = True,
    resume_with: str = "",
) -> TrainedRun:
    """Fine-tunes BEHRT to labels, from a pre-trained run or from scratch, and evaluates it; resumes a stopped run.

    Args:
      config: a recipe such as `behrt_jax.recipes.survival.get_config()`, with `labels` and usually `pretrained`; it is
        not changed.
      workdir: output folder.
      compare_to: workdirs of other runs of the same labels, to compare with.
      baselines: whether to fit baselines for the evaluation; they take some minutes.
      resume_with: how to resume after an interrupt, for the message; the same call if empty.

    Raises:
      ValueError: the recipe, the labels or the data cannot be used, or the workdir belongs to another run.
    """
    folder, task = Path(workdir), setup.setup(config)
    recipe = task.recipe
    for other in compare_to:  # fails before training if the evaluation cannot use a run
        finetuned.load_other(Path(other), recipe.labels, task.splits["held_out"].labels)
    with workdirs.hold(folder):
        workdirs.open_workdir(folder, recipe, task.facts, task.prepared.vocabulary, task.digests)
        if task.regression:
            task.regression.save(folder / REGRESSION_FILE)
        optimizer = make_optimizer(recipe.optimizer, recipe.train.num_steps, scales=task.scales)
        train_state = state.create_state(task.initialize, optimizer, recipe.seed)
        sizes = jax.tree.map(count_trained, train_state.params, task.scales(train_state.params))
        num_params, num_trained = (
            sum(leaf.size for leaf in jax.tree.leaves(train_state.params)),
            sum(jax.tree.leaves(sizes)),
        )
        logger.info(f"parameters: {num_params:,}, of which {num_trained:,} are trained")
        (folder / PARAMETERS_FILE).write_text(json.dumps({"all": num_params, "trained": num_trained}))
        columns = functools.partial(labeled_histories.training_columns, recipe, task.splits["train"])
        evaluation_digest = functools.partial(digests.of_evaluation, folder, task.digests)
        scorer = setup.tuning_scorer(task)
        training = Training(recipe, folder, task.objective, optimizer, columns, scorer)
        resume_with = resume_with or f"behrt_jax.finetune(config, '{folder}')"
        status = resume_and_fit(training, train_state, evaluation_digest, resume_with)
        if status is not None:
            return TrainedRun(folder, status, None)
        evaluation = outcomes.evaluate_run(folder, task.splits, [str(other) for other in compare_to], baselines)
        logger.info(evaluation.table())
        figures = "figures/, " if evaluation.figures else ""
        logger.info(f"written to {folder}: {EVALUATION_FILE}, predictions.parquet, {figures}and what load() needs")
        return TrainedRun(folder, 0, evaluation)
