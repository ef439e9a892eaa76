"""Generates patients of Synthea as a MEDS data set like the bundled one; docs/data.md has its speed.

python -m experiments.synthea --patients=2000 --output=DIR [--seed=0] [--workers=2]
"""

from absl import flags

from behrt_jax.sources.synthea_population import write_synthea
from experiments import _cli


def main() -> None:
    """Runs the command."""
    counts = write_synthea(FLAGS.output, FLAGS.patients, FLAGS.seed, FLAGS.workers)
    print(", ".join(f"{count:,} {name}" for name, count in counts.items()))
    print(f"next: python -m experiments.pretrain --config=configs/small.py --config.data.path={FLAGS.output}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_integer("patients", None, "How many.", lower_bound=1, required=True)
    flags.DEFINE_string("output", None, "A directory to write; new, empty or interrupted.", required=True)
    flags.DEFINE_integer("seed", 0, "Decides the patients.", lower_bound=0)
    flags.DEFINE_integer("workers", 1, "The number of processes.", lower_bound=1)
    _cli.run(main, resumes=True)
