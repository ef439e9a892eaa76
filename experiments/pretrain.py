"""Pre-trains BEHRT on a MEDS data set; resumes where an earlier run of the workdir stopped.

python -m experiments.pretrain --config=configs/small.py [--workdir=DIR] [--nobaselines] [--config.KEY=VALUE ...]
"""

import functools
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from behrt_jax.data import dataset
from behrt_jax.data.config import DataConfig
from behrt_jax.embeddings import code_init
from behrt_jax.evaluation import loaded_run, tables
from behrt_jax.evaluation.pretrained import evaluate_run
from behrt_jax.models.behrt import count_parameters
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.objectives.config import ObjectiveConfig
from behrt_jax.training import digests as training_digests
from behrt_jax.training import loop, pretraining, state, workdir
from behrt_jax.training.describe import describe_data, describe_rows, describe_unmatched
from behrt_jax.training.fit import resume_and_fit
from behrt_jax.training.optimizer import OptimizerConfig, make_optimizer
from behrt_jax.training.workdir import EVALUATION_FILE
from experiments import _cli


def main() -> int:
    """Runs the command."""
    config = FLAGS.config
    folder = Path(FLAGS.workdir or Path("runs") / Path(flags.FLAGS["config"].config_filename).stem)  # pyright: ignore
    # Everything that can be wrong in the config is found before minutes go into the data.
    data_config, train_config = DataConfig(**config.data), loop.TrainConfig(**config.train)
    BEHRTConfig(**{**config.model, "vocab_size": 1})
    optimizer = make_optimizer(OptimizerConfig(**config.optimizer), train_config.num_steps)
    ObjectiveConfig(**config.objective)
    code_init.check(config)

    prepared, patients, trained = pretraining.begin(config, say=print)
    splits = {name: dataset.read(prepared.folder, name) for name in ("tuning", "held_out")}
    splits = {name: dataset.sample(found, config.evaluation.max_patients) for name, found in splits.items()}
    scorer = pretraining.tuning_scorer(config, trained, splits["tuning"], print)
    pretraining.count_examples(config, trained, pretraining.mark(config, splits["held_out"]), "held_out", print)
    check_oracle(config, trained, splits["held_out"])
    digests = training_digests.of_pretraining(config, patients, splits["tuning"])
    workdir.open_workdir(folder, config, prepared.vocabulary, digests)
    current = state.create_state(pretraining.initialize(config, trained, patients, print), optimizer, config.seed)
    about = [*describe_data(prepared, count_parameters(current.params)), *describe_unmatched(config, prepared)]
    print("\n".join(about))
    print(describe_rows(patients, data_config.row_length, data_config.separators, config.seed))
    if trained.is_target.any():
        print(f"targets: {trained.is_target.sum():,} codes by objective.targets and objective.min_patients")
    columns = functools.partial(pretraining.training_columns, config, trained, patients)
    evaluated = functools.partial(training_digests.of_evaluation, folder, digests, splits["held_out"])
    given = (config, folder, trained.objective, optimizer, current, columns, scorer, evaluated)
    status = resume_and_fit("pretrain", *given)
    if status is not None:
        return status
    print(tables.format_result(evaluate_run(folder, "held_out", with_baselines=FLAGS.baselines)))
    print(f"written to {folder}: {EVALUATION_FILE}, metrics.jsonl, tensorboard/, checkpoints/, and what load() needs")
    print(f"next: python -m experiments.evaluate --workdir={folder} --split=tuning")
    print(f"in Python: config, vocabulary, model, params = behrt_jax.load('{folder}')")
    return 0


def check_oracle(config, trained: pretraining.Task, held_out: dataset.Patients) -> None:
    """Says before training where the evaluation of simulated patients cannot ask the oracle."""
    if loaded_run.is_simulated(config.data.path) and {"mlm", "next_visit"} & set(trained.model.objectives):
        try:
            index = pretraining.index(config, held_out)
            loaded_run.read_simulation(Path(config.data.path), trained.vocabulary, held_out, index)
        except ValueError as error:
            print(f"warning: the evaluation will leave out the oracle: {error}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", None, "The recipe, such as configs/small.py.", lock_config=True)
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("workdir", None, "Where everything is written; default: runs/ and the recipe's name.")
    flags.DEFINE_bool("baselines", True, "Fit baselines for the evaluation at the end; they take some minutes.")
    _cli.reexec_with_malloc_settings()
    _cli.run(main)
