"""Learning-rate range test (Smith 2017): the loss while the rate rises at every step, and the usable range of rates.

python -m experiments.studies.lr_range --config=configs/small.py [--num_steps=200] [--output=lr_range.png]
"""

import itertools

import jax
import numpy as np
import optax
from absl import flags
from matplotlib.figure import Figure
from ml_collections import config_flags
from tqdm import tqdm

from behrt_jax.training import loop, pretraining, state
from behrt_jax.training.optimizer import make_optimizer
from experiments import _cli

SMOOTHING = 0.9
DIVERGED = 1.5  # times the lowest loss
ROWS = 12


def measure(config, num_steps: int, lowest: float, highest: float) -> tuple[np.ndarray, np.ndarray]:
    """Trains while the learning rate rises by the same factor at each step.

    Returns:
      (n,) learning rates and (n,) losses, smoothed and corrected for their start at zero; ends early at NaN.
    """
    _, patients, task = pretraining.setup(config, say=print)
    recipe, rates = task.recipe, np.geomspace(lowest, highest, num_steps)
    schedule = optax.exponential_decay(lowest, 1, float(rates[1] / rates[0]))
    optimizer = make_optimizer(recipe.optimizer, num_steps, schedule)
    current = state.create_state(pretraining.initialize(task, patients), optimizer, recipe.seed)
    train_step = loop.make_train_step(task.objective, optimizer, recipe.seed, recipe.train.accumulate_steps)
    losses, average = [], 0.0
    stream = itertools.islice(pretraining.training_columns(task, patients, 0), num_steps)
    for step, columns in enumerate(tqdm(stream, total=num_steps, unit="step", dynamic_ncols=True), start=1):
        current, metrics = train_step(current, columns)
        means = {
            name: float(total) / max(float(count), 1.0) for name, (total, count) in jax.device_get(metrics).items()
        }
        average = SMOOTHING * average + (1 - SMOOTHING) * task.objective.total(means)
        losses.append(average / (1 - SMOOTHING**step))
        if not np.isfinite(average):
            break
    return rates[: len(losses)], np.asarray(losses)


def advise(rates: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """Returns the rate at which the loss falls fastest per decade, and the rate from which it has risen by half."""
    best = int(np.nanargmin(losses))
    steepest = int(np.argmin(np.gradient(losses[: best + 1], np.log(rates[: best + 1])))) if best > 1 else best
    beyond = np.flatnonzero(~(losses[best:] < DIVERGED * losses[best]))
    return float(rates[steepest]), float(rates[best + beyond[0]]) if beyond.size else float("inf")


def draw(rates: np.ndarray, losses: np.ndarray, output: str) -> None:
    """Writes the curve as an image."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(rates, losses)
    axes.set(xlabel="learning rate", ylabel="smoothed training loss", title="Learning-rate range test")
    figure.savefig(output, dpi=150)


def main() -> None:
    """Runs the command."""
    rates, losses = measure(FLAGS.config, FLAGS.num_steps, FLAGS.lowest, FLAGS.highest)
    print(f"{'learning rate':>14}{'loss':>10}")
    for place in np.unique(np.linspace(0, len(rates) - 1, ROWS).astype(int)):
        print(f"{rates[place]:>14.2e}{losses[place]:>10.3f}")
    steepest, diverges = advise(rates, losses)
    print(f"the loss falls fastest at {steepest:.1e} and has risen by half from {diverges:.1e} on")
    print(f"now optimizer.learning_rate={FLAGS.config.optimizer.learning_rate:g}; a peak lies between the two")
    if FLAGS.output:
        draw(rates, losses, FLAGS.output)
        print(f"written: {FLAGS.output}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", None, "The recipe, such as configs/small.py.", lock_config=True)
    flags.mark_flag_as_required("config")
    flags.DEFINE_integer("num_steps", 200, "Updates.", lower_bound=10)
    flags.DEFINE_float("lowest", 1e-5, "The first learning rate.")
    flags.DEFINE_float("highest", 1.0, "The last learning rate.")
    flags.DEFINE_string("output", None, "Where to write the curve as a picture (.png, .pdf or .svg).")
    _cli.reexec_with_malloc_settings()
    _cli.run(main)
