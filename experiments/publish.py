"""Publishes the encoder of a pre-trained run: its best parameters, what `behrt_jax.load` needs, and a model card.

python -m experiments.publish --workdir=runs/small --output=pretrained/synthea-small --patients=simulated
    --license=Apache-2.0 [--about=TEXT] [--hardware=TEXT] [--min_patients=11] [--overwrite]

Not published: the optimizer's state, logs (whose file names hold the host's name), absolute paths, comparisons with
other runs. What is published is printed at the end. docs/pretrained.md says what to consider.
"""

from pathlib import Path

from absl import flags

from behrt_jax.evaluation.small_cells import MIN_PATIENTS
from behrt_jax.publishing import model_card
from behrt_jax.publishing.publish import CARD, FLOORS, publish
from experiments import _cli


def main() -> None:
    """Runs the command."""
    output = Path(FLAGS.output)
    if output.exists() and not (FLAGS.overwrite and (output / CARD).exists() and (output / "config.json").exists()):
        raise ValueError(f"--output={output}: exists; name another, or give --overwrite where it was published before")
    floor = FLAGS.min_patients or FLOORS[FLAGS.patients]
    origin = model_card.Origin(FLAGS.patients, FLAGS.license, FLAGS.about)
    print("\n".join(publish(Path(FLAGS.workdir), output, origin, floor, FLAGS.hardware)))
    size = sum(file.stat().st_size for file in output.rglob("*"))
    print(f"written: {output}, {size / 1e6:.1f} MB; read {output / CARD} and complete it before you hand it on")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain wrote, evaluated.", required=True)
    flags.DEFINE_string("output", None, "The folder to write.", required=True)
    flags.DEFINE_enum("patients", None, [*FLOORS], "Who the patients are that it was trained on.", required=True)
    flags.DEFINE_string("license", None, "The licence under which the data lets you publish it.", required=True)
    flags.DEFINE_string("about", "", "A sentence for the card on where the data comes from.")
    flags.DEFINE_string(
        "hardware",
        "",
        "What it was trained on, for the card; default: as the run says.",
    )
    what = f"Fewest patients of a code, of a metric and of a split; 0: {MIN_PATIENTS} for real ones, else 1."
    flags.DEFINE_integer("min_patients", 0, what)
    flags.DEFINE_bool("overwrite", False, "Replace what was published to --output before.")
    _cli.run(main)
