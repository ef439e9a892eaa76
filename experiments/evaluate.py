"""Held-out metrics of a trained model beside its baselines, printed and written to `evaluation.json`.

python -m experiments.evaluate --workdir=DIR [--versus=DIR] [--data=DIR] [--split=held_out] [--nobaselines] [--plots]

Of a fine-tuned model always the held-out patients, with figures, and `--versus=DIR,DIR` may name several runs.
"""

from pathlib import Path

from absl import flags

from behrt_jax.data import events
from behrt_jax.evaluation import outcomes, plots, tables
from behrt_jax.evaluation.pretrained import evaluate_run
from behrt_jax.training import workdir
from behrt_jax.training.workdir import EVALUATION_FILE
from experiments import _cli


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    is_pretrained = "objective" in workdir.read_config(folder)
    if is_pretrained:
        result = evaluate_run(folder, FLAGS.split, FLAGS.data, FLAGS.versus, FLAGS.baselines)
    else:
        if FLAGS.data or FLAGS.split != "held_out":
            given = f"--data={FLAGS.data}" if FLAGS.data else f"--split={FLAGS.split}"
            raise ValueError(
                f"{given}: {folder} is fine-tuned, which is evaluated on the held-out patients of its own data; "
                "expected neither --data nor --split: for other patients use experiments.predict"
            )
        versus = FLAGS.versus.split(",") if FLAGS.versus else []
        result = outcomes.evaluate_run(folder, versus=versus, with_baselines=FLAGS.baselines)
    print(tables.format_result(result))
    print(f"written: {folder / EVALUATION_FILE}")
    if FLAGS.plots and is_pretrained:
        for file in plots.draw(folder, FLAGS.split, FLAGS.data):
            print(f"written: {file}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain wrote.", required=True)
    flags.DEFINE_string("versus", None, "The workdir of another run of the same data, to compare with.")
    flags.DEFINE_string("data", None, "Another MEDS data set to score on; default: the run's own.")
    flags.DEFINE_enum("split", "held_out", events.SPLITS, "Which patients to score.")
    flags.DEFINE_bool("baselines", True, "Fit baselines; they take some minutes.")
    flags.DEFINE_bool("plots", False, "Also write figures: learning curve, reliability, precision and recall.")
    _cli.run(main)
