"""Draws survival outcomes with a known hazard for patients of any data set, one prediction time each; docs/labels.md.

python -m experiments.simulate_outcomes --data=DIR --output=FILE.parquet [--seed=0] [--config.data.KEY=VALUE ...]

The hazard depends on the order and timing of codes and on ages, which counts do not capture: docs/simulator.md.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from behrt_jax.data.config import DataConfig
from behrt_jax.labels import label_files
from behrt_jax.simulation.hazards import simulate_outcomes
from behrt_jax.simulation.outcome_files import (
    HAZARD_FLAGS,
    TRUTH_SUFFIX,
    choose_times,
    read_histories,
    summarize,
    to_table,
    write_truth,
)
from configs import survival
from experiments import _cli


def main() -> None:
    """Runs the command."""
    config, output, options = FLAGS.config, Path(FLAGS.output), {name: getattr(FLAGS, name) for name in HAZARD_FLAGS}
    if output.suffix != ".parquet" or output.is_dir():
        raise ValueError(f"--output={output}: expected a file that ends in .parquet")
    data = DataConfig(**{**config.data, "path": FLAGS.data})
    index_times = choose_times(FLAGS.data, FLAGS.min_visits, FLAGS.seed)
    times, patients, tokens = read_histories(data, index_times, config.history.include_at)
    truth = simulate_outcomes(patients, times.prediction_times, tokens, FLAGS.seed, **options)
    table = to_table(times, truth)
    print("\n".join(summarize(table, truth)))
    label_files.write_labels(table, output)
    write_truth(output.with_suffix(TRUTH_SUFFIX), truth.hazard)
    print(f"wrote {output} and {output.with_suffix(TRUTH_SUFFIX)}")
    print(f"next: python -m experiments.finetune --config=configs/survival.py --config.labels={output}", end=" ")
    print(f"--config.data.path={FLAGS.data} and the other --config.data flags of this command")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", survival.__file__, "Its section data gives the vocabulary.")
    flags.DEFINE_string("data", None, "A MEDS data set.", required=True)
    flags.DEFINE_string("output", None, "A .parquet file to write.", required=True)
    flags.DEFINE_integer("seed", 0, "Decides times, what matters and outcomes.", lower_bound=0)
    flags.DEFINE_integer("min_visits", 3, "Visits before the prediction time.", lower_bound=1)
    flags.DEFINE_integer("num_rules", 3, "Functions of the history that matter: order, age and recency in turn.")
    flags.DEFINE_integer("group_size", 4, "Codes in each group of a rule.")
    flags.DEFINE_float("spread", 1.5, "Standard deviation of the log hazard.")
    flags.DEFINE_float("scale", 1825.0, "Days at which the baseline's cumulative hazard is 1.")
    flags.DEFINE_float("shape", 1.0, "Of the Weibull baseline; 1: a constant hazard.")
    flags.DEFINE_float("censored", 0.3, "Expected share of rows that are censored.")
    _cli.run(main)
