"""Writes labels of simulated patients with known truth, one prediction time per patient, for studies with few labels.

python -m experiments.simulate_labels --data=DIR --output=FOLDER [--seed=0]

There is one label per disease, whether the patient has it at a visit, to predict from the history before the visit; and
times to death: docs/simulator.md.
"""

from pathlib import Path

from absl import flags

from behrt_jax.labels import label_files, tasks
from behrt_jax.simulation.labels import make_labels, measure_oracle
from experiments import _cli


def main() -> None:
    """Runs the command."""
    tables, visits = make_labels(FLAGS.data, FLAGS.seed)
    print(f"{visits.height:,} patients, one index visit each")
    for name, table in tables.items():
        file = Path(FLAGS.output) / f"{name}.parquet"
        label_files.write_labels(table, file)
        print("\n".join([f"{name}: {table.height:,} of {visits.height:,} patients", *tasks.count_outcomes(table)]))
        print(f"  the oracle on held_out: {measure_oracle(table, name, visits, FLAGS.data)}")
        print(f"  written: {file}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("data", None, "What experiments.simulate wrote.", required=True)
    flags.DEFINE_string("output", None, "A folder for the files, one a label.", required=True)
    flags.DEFINE_integer("seed", 0, "Decides the visits.", lower_bound=0)
    _cli.run(main)
