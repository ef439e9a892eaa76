"""Writes simulated patients with known truth as a MEDS data set; docs/simulator.md describes the simulator.

python -m experiments.simulate --patients=10000 --output=DIR [--measurements=6] [--seed=0] [--ceilings]
"""

from pathlib import Path

from absl import flags

from behrt_jax.simulation.ceilings import ceilings, write_patients
from experiments import _cli


def main() -> None:
    """Runs the command."""
    print(write_patients(output := Path(FLAGS.output), FLAGS.patients, FLAGS.seed, FLAGS.measurements))
    if FLAGS.ceilings:
        print(ceilings(output, FLAGS.seed))
    print("next: python -m experiments.pretrain --config=configs/small.py", end=" ")
    print(f"--config.data.path={output} --config.data.codes_exclude=\"('MEDS_BIRTH','MEDS_DEATH')\"")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_integer("patients", 10_000, "How many.", lower_bound=1)
    flags.DEFINE_string("output", None, "A directory to write; new or empty.", required=True)
    flags.DEFINE_integer("measurements", 0, "Codes that carry a value; four depend on a disease each.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Decides the world and the patients.", lower_bound=0)
    flags.DEFINE_bool("ceilings", False, "Also print what the oracle reaches on the held-out patients.")
    _cli.run(main)
