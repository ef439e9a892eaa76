"""Predicts with a fine-tuned model for patients of a MEDS data set, at given prediction times.

python -m experiments.predict --workdir=DIR --data=DIR --labels=FILE --output=FILE

The labels file needs only `subject_id` and `prediction_time`; outcomes are copied if it has them. Binary predictions
have the schema that meds-evaluation reads; for several classes, labels or causes there is a column each.
"""

from absl import flags

from behrt_jax.workflows.predict import predict
from experiments import _cli


def main() -> None:
    """Runs the command."""
    predict(FLAGS.workdir, FLAGS.data, FLAGS.labels, FLAGS.output)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.finetune wrote.", required=True)
    flags.DEFINE_string("data", None, "A MEDS data set.", required=True)
    flags.DEFINE_string("labels", None, "A file of subjects and prediction times.", required=True)
    flags.DEFINE_string("output", None, "The Parquet file to write.", required=True)
    _cli.run(main)
