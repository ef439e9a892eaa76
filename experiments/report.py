"""Writes one page about a run, for a browser, a phone or print; it loads nothing from anywhere: docs/report.md.

python -m experiments.report --workdir=DIR [--output=FILE] [--data=DIR] [--diseases=FILE] [--show_patients]
"""

import json
from collections.abc import Callable
from pathlib import Path

from absl import flags
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments import command, report_codes, report_maps, report_patients, report_run, report_scores, report_source
from experiments.report_calibration import calibration
from experiments.report_parts import Missing, Section
from experiments.report_scoring import Scored, score
from experiments.report_source import Source
from experiments.report_training import cost, curves
from experiments.run import load_run

TEMPLATES = Path(__file__).parent / "templates"


def find_sections(source: Source, data: str | None, diseases: Path) -> list[Section]:
    """Makes the sections of a report; where one cannot be made, it says why."""
    scored = Scored({}, {})
    if source.is_pretrained and source.prepared is not None:
        try:
            scored = score(load_run(source.folder, "held_out", data, source.say), source.floor)
        except ValueError as error:
            source.say(f"warning: held-out patients are not scored: {error}")
    return [
        attempt(source, "run", "What was trained on what", lambda: report_run.describe(source)),
        attempt(source, "results", "Results on held-out patients", lambda: report_scores.held_out(source)),
        attempt(source, "calibration", "Calibration", lambda: calibration(source, scored)),
        attempt(source, "groups", "By sex and age", lambda: report_scores.groups(source, scored)),
        attempt(source, "patients", "Map of the patients", lambda: report_maps.patient_maps(source, diseases)),
        attempt(source, "codes", "Map of the codes", lambda: report_codes.code_maps(source)),
        attempt(source, "examples", "Example patients", lambda: report_patients.examples(source)),
        attempt(source, "curves", "Learning curves", lambda: curves(source)),
        attempt(source, "cost", "What training took", lambda: cost(source)),
    ]


def attempt(source: Source, anchor: str, title: str, make: Callable[[], Section]) -> Section:
    """Makes a section; one that says what is wrong where that is a user's error."""
    try:
        return make()
    except (ValueError, OSError) as error:
        source.say(f"warning: '{title}' is left out: {error}")
        text = "This part could not be made; the command that made the page said why. It may need the data:"
        again = f"python -m experiments.report --workdir={source.folder} --data=DIR"
        return Section(anchor, title, "", [Missing(text, again)])


def render(source: Source, sections: list[Section]) -> str:
    """Lays out the page; all text from files is escaped."""
    loader = FileSystemLoader(TEMPLATES)
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    assets = {name: Markup((TEMPLATES / f"report.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    data = source.about.get("dataset_name", source.data.resolve().name)
    return page.get_template("report.html").render(
        title=f"BEHRT on {data}",
        name=source.folder.resolve().name,
        goal=report_run.training_goal(source),
        is_synthetic=source.is_synthetic,
        shows_patients=source.may_show(source.is_synthetic),
        headline=report_scores.headline(source),
        sections=sections,
        in_script=in_script,
        **assets,
    )


def in_script(value) -> Markup:
    """Writes a value as JSON that can stand in a script element, whatever text is in it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for each in "<>&\u2028\u2029":
        text = text.replace(each, f"\\u{ord(each):04x}")
    return Markup(text)


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
    flags.DEFINE_string("diseases", str(report_maps.DISEASES), "Groups of diseases by which patients are coloured.")
    flags.DEFINE_bool("show_patients", None, "Show single patients; default: only where the data is simulated.")
    command.run(main)
