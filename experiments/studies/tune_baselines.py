"""How the networks among the baselines were tuned: losses on tuning over a grid of learning rates and dropouts.

python -m experiments.studies.tune_baselines --workdir=DIR [--rates=0.003,0.006] [--dropouts=0.3,0.5] [--hidden=512]

On the data of a run of experiments.pretrain, for each of its objectives. The best go by hand into `RECIPES` of
behrt_jax/baselines/masked_codes.py (masked codes) and behrt_jax/baselines/next_visit.py.
"""

import functools
import itertools
from pathlib import Path

from absl import flags

from behrt_jax.baselines import masked_codes, next_visit
from behrt_jax.baselines.mlp import Recipe
from behrt_jax.evaluation.loaded_run import Run, load_run
from behrt_jax.evaluation.masked_codes import (
    BASELINE_BATCHES,
    masked_batches,
    masked_training_batches,
    model_steps,
    training_batches,
)
from behrt_jax.evaluation.next_visit import find_examples, model_examples
from experiments import _cli


def read_grid(rates: list[str], dropouts: list[str], hidden: int) -> dict[str, Recipe]:
    """Returns a network for each pair of a learning rate and a dropout; regressions have no dropout.

    Raises:
      ValueError: a rate or a dropout is no number in range.
    """
    found = {"rates": [], "dropouts": []}
    for flag, words, highest in (("rates", rates, 10.0), ("dropouts", dropouts if hidden else ["0"], 1.0)):
        for word in words:
            try:
                number = float(word)
            except ValueError:
                number = -1.0
            if not (0 <= number < highest and (number or flag == "dropouts")):
                raise ValueError(f"--{flag}: found {word}; expected numbers from 0 to below {highest:g}")
            found[flag].append(number)
    return {
        f"rate {rate:g}, dropout {dropout:g}": Recipe(rate, hidden, dropout)
        for rate in found["rates"]
        for dropout in found["dropouts"]
    }


def tune_masked(run: Run, recipes: dict[str, Recipe], say) -> None:
    """Fits networks on masked codes."""
    counts, _ = masked_codes.count_codes(itertools.islice(training_batches(run), BASELINE_BATCHES), len(run.vocabulary))
    frequency = masked_codes.smoothed_frequency(counts)
    tuning = list(masked_batches(run, run.tuning, 1))
    masked, budget = functools.partial(masked_training_batches, run), {"model_steps": model_steps(run)}
    masked_codes.fit_networks(masked, tuning, frequency, say, recipes, **budget)


def tune_next_visits(run: Run, recipes: dict[str, Recipe], say) -> None:
    """Fits networks on next visits."""
    train, tuning = find_examples(run, run.train), find_examples(run, run.tuning)
    most = model_examples(run, train)
    next_visit.fit_networks(train, tuning, len(run.vocabulary), say, recipes, model_examples=most)


def main() -> None:
    """Runs the command."""
    recipes = read_grid(FLAGS.rates, FLAGS.dropouts, FLAGS.hidden)
    run = load_run(Path(FLAGS.workdir), "tuning", None, print)
    for objective, tune in (("mlm", tune_masked), ("next_visit", tune_next_visits)):
        if objective in run.trained.model.objectives:
            print(f"{objective}: {len(recipes)} networks of {FLAGS.hidden} hidden units, losses on tuning")
            tune(run, recipes, lambda line: print(line, flush=True))


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain wrote.", required=True)
    flags.DEFINE_list("rates", ["0.003", "0.006", "0.01"], "Learning rates to try.")
    flags.DEFINE_list("dropouts", ["0.3", "0.5"], "Shares of hidden units left out in training.")
    flags.DEFINE_integer("hidden", 512, "Hidden units; 0: a regression.", lower_bound=0)
    _cli.reexec_with_malloc_settings()
    _cli.run(main)
