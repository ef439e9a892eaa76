"""Describes a data set before training: a page of what it holds, what deserves a look and what it can carry.

python -m experiments.describe --data=DIR [--output=DIR] [--min_patients=11]

Writes data.html, to open in a browser, and data.json, its numbers: docs/data.md.
"""

from absl import flags

from behrt_jax.evaluation.small_cells import MIN_PATIENTS
from behrt_jax.workflows.describe import describe_data
from experiments import _cli


def main() -> None:
    """Runs the command."""
    describe_data(FLAGS.data, FLAGS.output, min_patients=FLAGS.min_patients, prepared_dir=FLAGS.prepared_dir)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("data", None, "The MEDS data set.", required=True)
    flags.DEFINE_string("output", None, "The folder to write; default: runs/data/ and the name of the data set.")
    what = f"Numbers of fewer patients are not shown; 0: {MIN_PATIENTS} for patients that may be real, else 1."
    flags.DEFINE_integer("min_patients", 0, what)
    flags.DEFINE_string("prepared_dir", "prepared", "The cache of prepared data, as data.prepared_dir of a recipe.")
    _cli.run(main)
