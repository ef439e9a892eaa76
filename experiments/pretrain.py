"""Pre-trains BEHRT on a MEDS data set; resumes where an earlier run of the workdir stopped.

python -m experiments.pretrain --config=configs/small.py [--workdir=DIR] [--nobaselines] [--config.KEY=VALUE ...]
"""

import shlex
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from behrt_jax import state, train, workdir, writer
from behrt_jax.checkpoint import Checkpoints
from behrt_jax.data import dataset
from behrt_jax.data.config import DataConfig
from behrt_jax.models.behrt import count_parameters
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.objectives.config import ObjectiveConfig
from behrt_jax.optimizer import OptimizerConfig, make_optimizer
from experiments import command, tables, task
from experiments.evaluate import EVALUATION_FILE, evaluate_run
from experiments.summary import describe_data, describe_rows


def main() -> int:
    """Runs the command."""
    config = FLAGS.config
    folder = Path(FLAGS.workdir or Path("runs") / Path(flags.FLAGS["config"].config_filename).stem)  # pyright: ignore
    # Everything that can be wrong in the config is found before minutes go into the data.
    data_config, train_config = DataConfig(**config.data), train.TrainConfig(**config.train)
    BEHRTConfig(**{**config.model, "vocab_size": 1})
    optimizer = make_optimizer(OptimizerConfig(**config.optimizer), train_config.num_steps)
    ObjectiveConfig(**config.objective)

    prepared, patients, trained = task.begin(config, say=print)
    splits = {"train": patients, "tuning": dataset.read(prepared.folder, "tuning")}
    workdir.open_workdir(folder, config, prepared.vocabulary)
    current = state.create_state(task.initialize(config, trained, patients), optimizer, config.seed)
    print("\n".join(describe_data(prepared, count_parameters(current.params))))
    print(describe_rows(patients, data_config.row_length, data_config.separators, config.seed))
    if trained.is_target.any():
        print(f"targets: {trained.is_target.sum():,} codes by objective.targets and objective.min_patients")
    checkpoints = Checkpoints(folder / workdir.CHECKPOINTS, workdir.TUNING_LOSS)
    current = checkpoints.restore_newest(current, warn=lambda line: print(f"warning: {line}")) or current
    done = int(current.step)
    losses = writer.read_series(folder, "tuning", workdir.TUNING_LOSS, done)

    if done < train_config.num_steps and not train.is_exhausted(losses, train_config.patience):
        if done:
            print(f"resuming {folder} after step {done:,} of {train_config.num_steps:,}")
        stopped_by = fit(config, folder, trained, optimizer, current, splits, checkpoints, losses)
        if stopped_by:
            print(f"stopped and saved; the same command goes on from here: {resume_command(folder)}")
            return 128 + stopped_by
    elif (folder / EVALUATION_FILE).exists():
        print(f"{folder} is finished after {done:,} steps; nothing to do. Its results: {folder / EVALUATION_FILE}")
        return 0
    checkpoints.close()
    print(tables.format_result(evaluate_run(folder, "held_out", with_baselines=FLAGS.baselines)))
    print(f"written to {folder}: {EVALUATION_FILE}, metrics.jsonl, tensorboard/, checkpoints/, and what load() needs")
    print(f"next: python -m experiments.evaluate --workdir={folder} --split=tuning")
    print(f"in Python: config, vocabulary, model, params = behrt_jax.load('{folder}')")
    return 0


def fit(config, folder, trained, optimizer, current, splits, checkpoints, losses) -> int | None:
    """Trains to the end; returns the signal that interrupted it, or None."""
    train_config = train.TrainConfig(**config.train)
    train_step = train.make_train_step(trained.objective, optimizer, config.seed, train_config.accumulate_steps)
    done = int(current.step)
    log_file = writer.MetricsWriter(folder, done)
    tuning = dataset.sample(splits["tuning"], config.evaluation.max_patients)

    # A terminal shows a bar that moves; a log file gets a line now and then.
    every = 0.5 if sys.stderr.isatty() else 30.0
    bar = tqdm(total=train_config.num_steps, initial=done, unit="step", dynamic_ncols=True, mininterval=every)
    with bar, command.Interrupt() as interrupt:

        def log(step, split, found):
            log_file.write(step, split, found)
            if split == "train":
                bar.set_postfix_str(
                    f"loss {trained.objective.total(found):.3f}, {found['tokens_per_second']:,.0f} tokens/s",
                    refresh=False,
                )
            else:
                bar.write(
                    f"step {step:,}: {split} " + ", ".join(f"{name} {value:.4f}" for name, value in found.items())
                )

        try:
            outcome = train.train(
                current,
                train_step,
                task.training_columns(config, trained, splits["train"], done),
                train_config,
                evaluate=task.tuning_scorer(config, trained, tuning),
                watch=workdir.TUNING_LOSS,
                save=checkpoints.save,
                log=log,
                advance=lambda step: bar.update(step - bar.n),
                interrupted=interrupt,
                tuning_losses=losses,
            )
        except train.TrainingDivergedError as error:
            last = checkpoints.steps()
            good = (
                f"the last good checkpoint is {checkpoints.folder / str(last[-1])}"
                if last
                else "no checkpoint was saved before"
            )
            raise train.TrainingDivergedError(f"{error}; {good}; lower optimizer.learning_rate") from error
        finally:
            log_file.close()
    if outcome.reason == "stopped_early":
        print(f"stopped early: {train_config.patience} evaluations without a better tuning loss")
    return interrupt.signal if outcome.reason == "interrupted" else None


def resume_command(folder: Path) -> str:
    """Returns the command line that was given, with the workdir where it was left to the default."""
    given = sys.argv[1:]
    if not any(word.partition("=")[0] == "--workdir" for word in given):
        given = [*given, f"--workdir={folder}"]
    return f"python -m experiments.pretrain {shlex.join(given)}"


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", None, "The recipe, such as configs/small.py.", lock_config=True)
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("workdir", None, "Where everything is written; default: runs/ and the recipe's name.")
    flags.DEFINE_bool("baselines", True, "Fit baselines for the evaluation at the end; they take some minutes.")
    command.keep_memory()
    command.run(main)
