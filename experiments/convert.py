"""Converts tables of a source to a MEDS data set; docs/data.md says what becomes what and how to write a spec.

python -m experiments.convert --source=synthea --input=DIR --output=DIR
"""

from pathlib import Path

import tqdm
from absl import flags

from behrt_jax.sources.convert import SOURCES, Source, convert, summarize
from behrt_jax.sources.engine import LAUNCHERS, Workers
from experiments import _cli


def main() -> None:
    """Runs the command."""
    source = Source(Path(FLAGS.input), FLAGS.source, Path(FLAGS.spec) if FLAGS.spec else None, FLAGS.source_codes)
    workers = Workers(FLAGS.workers, FLAGS.launcher)
    conversion = convert(source, Path(FLAGS.output), workers, lambda stages: tqdm.tqdm(stages, unit=" stages"))
    print("\n".join([*summarize(conversion), f"wrote {FLAGS.output}"]))


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_enum("source", None, SOURCES, "The kind of tables; without it, --spec reads the tables as they are.")
    flags.DEFINE_string("spec", None, "A spec of MEDS-Extract; by default configs/sources/SOURCE.yaml.")
    flags.DEFINE_string("input", None, "The folder of the source's tables.", required=True)
    flags.DEFINE_string("output", None, "A folder to write the MEDS data set to.", required=True)
    flags.DEFINE_bool("source_codes", False, "With OMOP: codes of the source in place of standard concepts.")
    flags.DEFINE_integer("workers", 1, "The number of jobs that run each stage.", lower_bound=1)
    flags.DEFINE_enum("launcher", "joblib", list(LAUNCHERS), "What starts several jobs: here, or by SLURM.")
    _cli.run(main, resumes=True)
