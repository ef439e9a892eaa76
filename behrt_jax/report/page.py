"""The report page about a run, for a browser, a phone or print; it loads no external resources."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from behrt_jax.report import codes, maps, patients, run, scores
from behrt_jax.report.calibration import calibration
from behrt_jax.report.parts import Missing, Section
from behrt_jax.report.source import Source
from behrt_jax.report.training import cost, curves

logger = logging.getLogger(__name__)
TEMPLATES = Path(__file__).parent / "templates"


def find_sections(source: Source, diseases: Path) -> list[Section]:
    """Makes the sections of a report; reports why if one cannot be made."""
    return [
        attempt(source, "run", "Model and data", lambda: run.describe(source)),
        attempt(source, "results", "Results on held-out patients", lambda: scores.held_out(source)),
        attempt(source, "calibration", "Calibration", lambda: calibration(source)),
        attempt(source, "groups", "By sex and age", lambda: scores.groups(source)),
        attempt(source, "patients", "Map of the patients", lambda: maps.patient_maps(source, diseases)),
        attempt(source, "codes", "Map of the codes", lambda: codes.code_maps(source)),
        attempt(source, "examples", "Example patients", lambda: patients.examples(source)),
        attempt(source, "curves", "Learning curves", lambda: curves(source)),
        attempt(source, "cost", "Training cost", lambda: cost(source)),
    ]


def attempt(source: Source, anchor: str, title: str, make: Callable[[], Section]) -> Section:
    """Makes a section; on a user's error, reports it and returns a section that says the part is missing."""
    try:
        return make()
    except (ValueError, OSError) as error:
        logger.warning(f"'{title}' is left out: {error}")
        text = "This part could not be made; the command that made the page said why. It may need the data:"
        command = f"python -m experiments.report --workdir={source.folder} --data=DIR"
        return Section(anchor, title, "", [Missing(text, command)])


def render(source: Source, sections: list[Section]) -> str:
    """Renders the page as HTML; all text from files is escaped."""
    data = source.about.get("dataset_name", source.data.resolve().name)
    return fill_template(
        title=f"BEHRT on {data}",
        name=source.folder.resolve().name,
        goal=run.training_goal(source),
        is_synthetic=source.is_synthetic,
        shows_patients=source.may_show(source.is_synthetic),
        headline=scores.headline(source),
        sections=sections,
    )


def fill_template(**values) -> str:
    """Fills the template of a page, which has the sections, what is at a glance, and where the patients are from."""
    loader = FileSystemLoader(TEMPLATES)
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    assets = {name: Markup((TEMPLATES / f"report.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    return page.get_template("report.html").render(in_script=in_script, **assets, **values)


def in_script(value) -> Markup:
    """Encodes a value as JSON that is safe in a script element, whatever text it holds."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for each in "<>&\u2028\u2029":
        text = text.replace(each, f"\\u{ord(each):04x}")
    return Markup(text)
