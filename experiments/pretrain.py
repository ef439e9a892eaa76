"""Pre-trains BEHRT on a MEDS data set; resumes where an earlier run of the workdir stopped.

python -m experiments.pretrain --config=configs/small.py [--workdir=DIR] [--nobaselines] [--config.KEY=VALUE ...]
"""

from absl import flags
from ml_collections import config_flags

from behrt_jax.workflows.pretrain import pretrain
from experiments import _cli


def main() -> int:
    """Runs the command."""
    folder = _cli.default_workdir(FLAGS.workdir)
    command = _cli.resume_command("pretrain", folder)
    run = pretrain(FLAGS.config, folder, baselines=FLAGS.baselines, resume_with=command)
    if run.evaluation:
        print(f"next: python -m experiments.evaluate --workdir={folder} --split=tuning")
        print(f"in Python: config, vocabulary, model, params = behrt_jax.load('{folder}')")
    return run.status


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", None, "The recipe, such as configs/small.py.", lock_config=True)
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("workdir", None, "Where everything is written; default: runs/ and the recipe's name.")
    flags.DEFINE_bool("baselines", True, "Fit baselines for the evaluation at the end; they take some minutes.")
    _cli.run(main)
