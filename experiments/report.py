"""Writes one page about a run, for a browser, a phone or print; it loads nothing from anywhere: docs/report.md.

python -m experiments.report --workdir=DIR [--output=FILE] [--data=DIR] [--diseases=FILE] [--show_patients]
"""

from pathlib import Path

from absl import flags

from behrt_jax.report import maps
from behrt_jax.report import source as report_source
from behrt_jax.report.page import find_sections, render
from experiments import _cli


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    output = Path(FLAGS.output or folder / "report.html")
    source = report_source.load(folder, FLAGS.data, FLAGS.show_patients, print)
    page = render(source, find_sections(source, FLAGS.data, Path(FLAGS.diseases)))
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = output.with_name(f"{output.name}.tmp")
    scratch.write_text(page, encoding="utf-8")
    scratch.replace(output)
    print(f"written: {output}, {output.stat().st_size / 1e6:.1f} MB; open it in any browser")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain or experiments.finetune wrote.", required=True)
    flags.DEFINE_string("output", None, "The page to write; default: report.html in the workdir.")
    flags.DEFINE_string("data", None, "A MEDS data set whose patients are shown; default: the run's own.")
    flags.DEFINE_string("diseases", str(maps.DISEASES), "Groups of diseases by which patients are coloured.")
    flags.DEFINE_bool("show_patients", None, "Show single patients; default: only where the data is simulated.")
    _cli.run(main)
