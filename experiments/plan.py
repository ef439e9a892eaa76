"""Tells what pre-training of a recipe would cost, before one pays: memory, steps, hours and price.

python -m experiments.plan --config=configs/large.py --patients=100000 --tokens_per_patient=400 [--vocabulary=1000]
  [--device=cpu|a40|a100|h100|h200|m1] [--price=0.44] [--utilisation=0.25] [--config.KEY=VALUE ...]

On `cpu`, measures some steps on this machine; for other devices, hours are estimates (docs/performance.md).
"""

from absl import flags
from ml_collections import config_flags

from behrt_jax.benchmarks.devices import DEVICES
from behrt_jax.benchmarks.plan import UTILISATION, Data, write_plan
from experiments import _cli


def main() -> None:
    """Runs the command."""
    data = Data(FLAGS.patients, FLAGS.tokens_per_patient, FLAGS.vocabulary)
    write_plan(FLAGS.config.to_dict(), data, FLAGS.device, FLAGS.utilisation, FLAGS.price)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", None, "The recipe, such as configs/large.py.", lock_config=True)
    flags.DEFINE_integer("patients", None, "Patients to train on.")
    flags.DEFINE_float("tokens_per_patient", None, "Their mean number of tokens.")
    flags.mark_flags_as_required(["config", "patients", "tokens_per_patient"])
    flags.DEFINE_integer("vocabulary", 1000, "Codes of the vocabulary, with special tokens.")
    flags.DEFINE_enum("device", "cpu", ["cpu", *DEVICES], "Where to train.")
    flags.DEFINE_float("price", 0.0, "Dollars per hour of the device; 0: not known.")
    flags.DEFINE_float("utilisation", UTILISATION, "Share of the device's peak that training is assumed to reach.")
    _cli.run(main)
