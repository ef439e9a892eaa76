"""Fine-tunes BEHRT to labels, from a pre-trained run or from scratch; resumes where an earlier run stopped.

python -m experiments.finetune --config=configs/classification.py --config.labels=FILE --config.pretrained=WORKDIR
    [--workdir=DIR] [--nobaselines] [--config.freeze=encoder] [--config.lora.rank=8] [--config.KEY=VALUE ...]
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from behrt_jax.data.config import DataConfig
from behrt_jax.evaluation import tables
from behrt_jax.evaluation.outcomes import evaluate_run
from behrt_jax.finetuning import finetuned, labeled_histories, probe_init, setup
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.training import digests, loop, state, workdir
from behrt_jax.training.fit import resume_and_fit
from behrt_jax.training.optimizer import OptimizerConfig, count_trained, make_optimizer
from behrt_jax.training.workdir import EVALUATION_FILE, PARAMETERS_FILE, REGRESSION_FILE
from experiments import _cli


def main() -> int:
    """Runs the command."""
    config = FLAGS.config
    folder = Path(FLAGS.workdir or Path("runs") / Path(flags.FLAGS["config"].config_filename).stem)  # pyright: ignore
    train_config = loop.TrainConfig(**config.train)
    DataConfig(**config.data)
    BEHRTConfig(**{**config.model, "vocab_size": 1})
    optimizer_config = OptimizerConfig(**config.optimizer)
    task = setup.begin(config, say=print)
    for other in FLAGS.versus:  # what the evaluation needs, before training
        finetuned.load_other(Path(other), config, task.splits["held_out"].labels, lambda line: None)
    workdir.open_workdir(folder, config, task.prepared.vocabulary, task.digests)
    if task.regression:
        task.regression.save(folder / REGRESSION_FILE)
    optimizer = make_optimizer(optimizer_config, train_config.num_steps, scales=task.scales)
    current = state.create_state(task.initialize, optimizer, config.seed)
    if config.foretold.codes:
        begun = probe_init.begin(config, task.model, current.params, task.splits)
        current = dataclasses.replace(current, params=jax.tree.map(jnp.array, begun))
    sizes = jax.tree.map(count_trained, current.params, task.scales(current.params))
    everything = sum(leaf.size for leaf in jax.tree.leaves(current.params))
    trained = sum(jax.tree.leaves(sizes))
    print(f"parameters: {everything:,}, of which {trained:,} are trained")
    (folder / PARAMETERS_FILE).write_text(json.dumps({"all": everything, "trained": trained}))
    columns = functools.partial(labeled_histories.training_columns, config, task.splits["train"])
    scorer = setup.tuning_scorer(config, task)
    evaluated = functools.partial(digests.of_evaluation, folder, task.digests)
    given = (config, folder, task.objective, optimizer, current, columns, scorer, evaluated)
    status = resume_and_fit("finetune", *given)
    if status is not None:
        return status
    print(tables.format_result(evaluate_run(folder, task.splits, FLAGS.versus, FLAGS.baselines)))
    figures = "figures/, " if any((folder / "figures").glob("*")) else ""
    print(f"written to {folder}: {EVALUATION_FILE}, predictions.parquet, {figures}and what load() needs")
    print(f"next: python -m experiments.predict --workdir={folder} --data=DIR --labels=FILE --output=FILE")
    return 0


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", None, "The recipe, such as configs/survival.py.", lock_config=True)
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("workdir", None, "Where everything is written; default: runs/ and the recipe's name.")
    flags.DEFINE_bool("baselines", True, "Fit baselines for the evaluation at the end; they take some minutes.")
    flags.DEFINE_list("versus", [], "Workdirs of other runs of the same labels, to compare with.")
    _cli.reexec_with_malloc_settings()
    _cli.run(main)
