"""Writes one embedding per patient, with age, sex, split and labels, to a Parquet file: docs/embeddings.md.

python -m experiments.embed --workdir=DIR --output=FILE [--data=DIR] [--at=last|DATE] [--pooling=mean]
  [--windows=newest|all] [--labels=FILE,FILE]

With a date, events on or after it are not read, and patients not yet born or already dead are left out.
"""

from absl import flags

from behrt_jax.embeddings import snapshots
from behrt_jax.embeddings.patients import WEIGHTED
from behrt_jax.exploration.export import WINDOWS
from behrt_jax.models.config import CHOICES
from behrt_jax.workflows.embed import embed
from experiments import _cli


def main() -> None:
    """Runs the command."""
    options = {name: getattr(FLAGS, name) for name in ("data", "at", "pooling", "windows", "labels")}
    embed(FLAGS.workdir, FLAGS.output, **options)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain or experiments.finetune wrote.", required=True)
    flags.DEFINE_string("output", None, "The Parquet file to write.", required=True)
    flags.DEFINE_string("data", None, "A MEDS data set; that of the run if not given.")
    flags.DEFINE_string("at", snapshots.LAST, "Only what came strictly before this date is read; or last: all of it.")
    flags.DEFINE_enum("pooling", "mean", [*CHOICES["pooling"], *WEIGHTED], "From the states of tokens to the patient.")
    flags.DEFINE_enum("windows", "newest", list(WINDOWS), "The newest tokens that a row holds, or the whole history.")
    flags.DEFINE_list("labels", [], "Files of labels, whose values become columns.")
    _cli.run(main)
