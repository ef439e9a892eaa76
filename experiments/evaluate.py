"""Evaluates a trained model and its baselines on held-out patients; prints the metrics and writes `evaluation.json`.

python -m experiments.evaluate --workdir=DIR [--compare_to=DIR] [--data=DIR] [--split=held_out] [--nobaselines]
    [--plots]

`--compare_to=DIR,DIR` names several runs. A fine-tuned model is evaluated on the held-out patients of its own data, so
`--data` and `--split` are refused, and its figures are written with and without `--plots`.
"""

from pathlib import Path

from absl import flags

from behrt_jax.data import events
from behrt_jax.training.workdir import EVALUATION_FILE
from behrt_jax.workflows.evaluate import evaluate
from experiments import _cli


def main() -> None:
    """Runs the command."""
    options = {"split": FLAGS.split, "data": FLAGS.data, "compare_to": FLAGS.compare_to, "baselines": FLAGS.baselines}
    comparison = evaluate(FLAGS.workdir, **options, figures=FLAGS.plots)
    print(comparison.table())
    for file in (Path(FLAGS.workdir) / EVALUATION_FILE, *comparison.figures):
        print(f"written: {file}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain or experiments.finetune wrote.", required=True)
    flags.DEFINE_list("compare_to", [], "Workdirs of other runs of the same data, to compare with.")
    flags.DEFINE_alias("versus", "compare_to")
    flags.DEFINE_string("data", None, "Another MEDS data set to score on; default: the run's own.")
    flags.DEFINE_enum("split", "held_out", events.SPLITS, "Which patients to score.")
    flags.DEFINE_bool("baselines", True, "Fit baselines; they take some minutes.")
    flags.DEFINE_bool(
        "plots", False, "Write figures of a pre-trained run too; those of a fine-tuned one are always written."
    )
    _cli.run(main)
