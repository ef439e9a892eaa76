"""Fine-tunes BEHRT on labels, from a pre-trained run or from scratch; resumes where an earlier run stopped.

python -m experiments.finetune --config=configs/classification.py --config.labels=FILE --config.pretrained=WORKDIR
    [--workdir=DIR] [--nobaselines] [--config.freeze=encoder] [--config.lora.rank=8] [--config.KEY=VALUE ...]
"""

from absl import flags
from ml_collections import config_flags

from behrt_jax.workflows.finetune import finetune
from experiments import _cli


def main() -> int:
    """Runs the command."""
    folder = _cli.default_workdir(FLAGS.workdir)
    command = _cli.resume_command("finetune", folder)
    run = finetune(FLAGS.config, folder, compare_to=FLAGS.compare_to, baselines=FLAGS.baselines, resume_with=command)
    if run.evaluation:
        print(f"next: python -m experiments.predict --workdir={folder} --data=DIR --labels=FILE --output=FILE")
    return run.status


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", None, "The recipe, such as configs/survival.py.", lock_config=True)
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("workdir", None, "Where everything is written; default: runs/ and the recipe's name.")
    flags.DEFINE_bool("baselines", True, "Fit baselines for the evaluation at the end; they take some minutes.")
    flags.DEFINE_list("compare_to", [], "Workdirs of other runs of the same labels, to compare with.")
    flags.DEFINE_alias("versus", "compare_to")
    _cli.run(main)
