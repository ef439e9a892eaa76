"""Pre-trains BEHRT on a MEDS data set; resumes where an earlier run of the workdir stopped.

python -m experiments.pretrain --config=configs/small.py [--workdir=DIR] [--nobaselines] [--config.KEY=VALUE ...]
"""

import functools
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from behrt_jax import state, train, workdir
from behrt_jax.data import dataset
from behrt_jax.data.config import DataConfig
from behrt_jax.models.behrt import count_parameters
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.objectives.config import ObjectiveConfig
from behrt_jax.optimizer import OptimizerConfig, make_optimizer
from experiments import code_init, command, inputs, run, tables, task, task_events
from experiments.evaluate import evaluate_run
from experiments.fitting import EVALUATION_FILE, resume_and_fit
from experiments.summary import describe_data, describe_rows, describe_unmatched


def main() -> int:
    """Runs the command."""
    config = FLAGS.config
    folder = Path(FLAGS.workdir or Path("runs") / Path(flags.FLAGS["config"].config_filename).stem)  # pyright: ignore
    # Everything that can be wrong in the config is found before minutes go into the data.
    data_config, train_config = DataConfig(**config.data), train.TrainConfig(**config.train)
    BEHRTConfig(**{**config.model, "vocab_size": 1})
    optimizer = make_optimizer(OptimizerConfig(**config.optimizer), train_config.num_steps)
    ObjectiveConfig(**config.objective)
    code_init.check(config)

    prepared, patients, trained = task.begin(config, say=print)
    splits = {name: dataset.read(prepared.folder, name) for name in ("tuning", "held_out")}
    splits = {name: dataset.sample(found, config.evaluation.max_patients) for name, found in splits.items()}
    scorer = task.tuning_scorer(config, trained, splits["tuning"], print)
    task.count_examples(config, trained, task_events.mark(config, splits["held_out"]), "held_out", print)
    check_oracle(config, trained, splits["held_out"])
    digests = inputs.of_pretraining(config, patients, splits["tuning"])
    workdir.open_workdir(folder, config, prepared.vocabulary, digests)
    current = state.create_state(task.initialize(config, trained, patients, print), optimizer, config.seed)
    about = [*describe_data(prepared, count_parameters(current.params)), *describe_unmatched(config, prepared)]
    print("\n".join(about))
    print(describe_rows(patients, data_config.row_length, data_config.separators, config.seed))
    if trained.is_target.any():
        print(f"targets: {trained.is_target.sum():,} codes by objective.targets and objective.min_patients")
    columns = functools.partial(task.training_columns, config, trained, patients)
    evaluated = functools.partial(inputs.of_evaluation, folder, digests, splits["held_out"])
    given = (config, folder, trained.objective, optimizer, current, columns, scorer, evaluated)
    status = resume_and_fit("pretrain", *given)
    if status is not None:
        return status
    print(tables.format_result(evaluate_run(folder, "held_out", with_baselines=FLAGS.baselines)))
    print(f"written to {folder}: {EVALUATION_FILE}, metrics.jsonl, tensorboard/, checkpoints/, and what load() needs")
    print(f"next: python -m experiments.evaluate --workdir={folder} --split=tuning")
    print(f"in Python: config, vocabulary, model, params = behrt_jax.load('{folder}')")
    return 0


def check_oracle(config, trained: task.Task, held_out: dataset.Patients) -> None:
    """Says before training where the evaluation of simulated patients cannot ask the oracle."""
    if run.is_simulated(config.data.path) and {"mlm", "next_visit"} & set(trained.model.objectives):
        try:
            index = task_events.index(config, held_out)
            run.read_simulation(Path(config.data.path), trained.vocabulary, held_out, index)
        except ValueError as error:
            print(f"warning: the evaluation will leave out the oracle: {error}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", None, "The recipe, such as configs/small.py.", lock_config=True)
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("workdir", None, "Where everything is written; default: runs/ and the recipe's name.")
    flags.DEFINE_bool("baselines", True, "Fit baselines for the evaluation at the end; they take some minutes.")
    command.keep_memory()
    command.run(main)
