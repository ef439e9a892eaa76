"""Writes a self-contained report page about a run, for a browser, a phone or print: docs/report.md.

python -m experiments.report --workdir=DIR [--output=FILE] [--data=DIR] [--diseases=FILE] [--show_patients]
"""

from absl import flags

from behrt_jax.report import maps
from behrt_jax.workflows.report import write_report
from experiments import _cli


def main() -> None:
    """Runs the command."""
    options = {name: getattr(FLAGS, name) for name in ("data", "diseases", "show_patients")}
    write_report(FLAGS.workdir, FLAGS.output, **options)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain or experiments.finetune wrote.", required=True)
    flags.DEFINE_string("output", None, "The page to write; default: report.html in the workdir.")
    flags.DEFINE_string("data", None, "A MEDS data set whose patients are shown; default: the run's own.")
    flags.DEFINE_string("diseases", str(maps.DISEASES), "Groups of diseases by which patients are coloured.")
    flags.DEFINE_bool("show_patients", None, "Show single patients; default: only where the data is simulated.")
    _cli.run(main)
