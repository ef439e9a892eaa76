"""Two questions about training, asked of a recipe: do averaged weights help, and does it help to begin with short rows?

python -m experiments.trials --trial=averages|short_rows --config=configs/small.py [--config.train.num_steps=2000]

`averages` scores exponential averages of the weights beside the weights themselves, in one run. `short_rows` trains the
first half on rows of half the length, twice as many a batch, so that every step holds as many tokens as the recipe's.
"""

import itertools

import jax
import optax
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from behrt_jax import state, train
from behrt_jax.data import dataset
from behrt_jax.optimizer import OptimizerConfig, make_optimizer
from experiments import command, task

DECAYS = (0.99, 0.995, 0.999)


def batches(config, trained, patients, trial: str):
    """Yields the batches of a trial."""
    num_steps = config.train.num_steps
    if trial == "short_rows":
        short = config.copy_and_resolve_references()
        short.data.row_length, short.train.batch_size = config.data.row_length // 2, config.train.batch_size * 2
        yield from itertools.islice(task.training_columns(short, trained, patients, 0), num_steps // 2)
        num_steps -= num_steps // 2
    yield from itertools.islice(task.training_columns(config, trained, patients, 0), num_steps)


def main() -> None:
    """Runs the command."""
    config = FLAGS.config
    prepared, patients, trained = task.begin(config, say=print)
    score = task.tuning_scorer(config, trained, dataset.read(prepared.folder, "tuning"))
    optimizer = make_optimizer(OptimizerConfig(**config.optimizer), config.train.num_steps)
    current = state.create_state(task.initialize(config, trained, patients), optimizer, config.seed)
    train_step = train.make_train_step(trained.objective, optimizer, config.seed)
    averages = {decay: jax.tree.map(lambda x: x + 0, current.params) for decay in DECAYS}

    @jax.jit
    def move(averages, params, step):
        # As in the original Adam, a young average forgets its start faster.
        return {
            decay: optax.incremental_update(params, old, 1 - jax.numpy.minimum(decay, (1 + step) / (10 + step)))
            for decay, old in averages.items()
        }

    stream = tqdm(batches(config, trained, patients, FLAGS.trial), total=config.train.num_steps, unit="step")
    for step, columns in enumerate(stream, start=1):
        current, _ = train_step(current, columns)
        if FLAGS.trial == "averages":
            averages = move(averages, current.params, step)
        if step % config.train.evaluate_every == 0 or step == config.train.num_steps:
            found = {"weights": score(current.params)}
            if FLAGS.trial == "averages":
                found |= {f"average {decay}": score(params) for decay, params in averages.items()}
            stream.write(
                f"{FLAGS.trial}, step {step:,}: " + ", ".join(f"{k} {v['loss']:.4f}" for k, v in found.items())
            )


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", None, "The recipe, such as configs/small.py.", lock_config=True)
    flags.mark_flag_as_required("config")
    flags.DEFINE_enum("trial", None, ["averages", "short_rows"], "What is tried.", required=True)
    command.keep_memory()
    command.run(main)
