"""Example section of the report: patients with their visits, the run's predictions, and the drivers of these."""

from typing import NamedTuple

from behrt_jax.data.vocabulary import MASK, SPECIAL_TOKENS, UNK
from behrt_jax.report.parts import Missing, Section, Table, Text
from behrt_jax.report.source import Source
from behrt_jax.training.workdir import ATTRIBUTIONS_FILE

ASKED = {"next_visit": "codes of the next visit", "mlm": "the code behind [MASK]", "outcome": "the outcome"}
SHOWN_VISITS, SHOWN_CODES, SHOWN_DRIVERS = 8, 8, 6
HIDDEN = SPECIAL_TOKENS[MASK]
RARE = {SPECIAL_TOKENS[UNK]: "a code too rare to be told"}


class Timeline(NamedTuple):
    """Some visits of a patient, oldest first, with times and codes; and tables of predictions and drivers.

    The visits are the newest, or those around a masked code.
    """

    title: str
    left_out: str
    visits: list[tuple[str, list[str]]]
    tables: list[Table]
    kind = "timeline"


def examples(source: Source) -> Section:
    """Makes the section of example patients, if they may be shown and have been explained."""
    attributions = source.read_json(ATTRIBUTIONS_FILE)
    command = f"python -m experiments.explain --workdir={source.folder}"
    if attributions is not None and not source.may_show(attributions["synthetic"]):
        text = "Not shown: the data is not known to be simulated. To show patients to those who may see them:"
        parts: list = [Missing(text, f"python -m experiments.report --workdir={source.folder} --show_patients")]
    elif attributions is None:
        flag = "" if source.is_synthetic else " --show_patients"
        parts = [Missing("No patients are explained yet.", command + flag)]
    else:
        parts = [Text(f"{what}: {meaning}.") for what, meaning in list(attributions["methods"].items())[:1]]
        parts += [_timeline(patient, attributions) for patient in attributions["patients"]]
    intro = (
        "A few held-out patients, chosen by a hash and not by how well they are predicted. What drove a prediction is "
        "what the model used, not what caused anything."
    )
    return Section("examples", "Example patients", intro, parts)


def _timeline(patient: dict, found: dict) -> Timeline:
    visits = [(_when(visit), _codes(patient, visit["visit"])) for visit in patient["visits"]]
    hidden = next((token["visit"] for token in patient["tokens"] if token["code"] == HIDDEN), None)
    end = len(visits) if hidden is None else min(max(hidden + SHOWN_VISITS // 2, SHOWN_VISITS), len(visits))
    start = max(end - SHOWN_VISITS, 0)
    omissions = [f"{count:,} {when}" for count, when in ((start, "earlier"), (len(visits) - end, "later")) if count]
    left_out = f"{' and '.join(omissions)} visits are not shown." if omissions else ""
    title = f"Patient {patient['number']}"
    drivers = [_drivers(patient, each, title) for each in patient["predictions"] if "drivers" in each]
    predictions = _predictions(patient, f"{title}: {ASKED[found['asked']]}")
    return Timeline(title, left_out, visits[start:end], [predictions, *drivers])


def _predictions(patient: dict, caption: str) -> Table:
    """Tabulates the most likely codes and whether they occurred, or an outcome's probability or its risk by day."""
    rows, header = [], ["predicted", "probability"]
    for each in patient["predictions"]:
        if "risk_by_day" in each:
            rows += [[f"{_name(each)} within {day} days", f"{risk:.1%}"] for day, risk in each["risk_by_day"].items()]
        elif "came" in each:
            header = ["predicted", "probability", "came"]
            rows.append([_name(each), format_chance(each["probability"]), "yes" if each["came"] else "no"])
        else:
            rows.append([_name(each), f"{each['probability']:.1%}"])
    actual_codes = [_name(code) for code in patient.get("came", [])]
    return Table(caption, header, rows, f"What came: {', '.join(_cut(actual_codes))}." if actual_codes else "")


def format_chance(probability: float) -> str:
    """Formats a probability in percent.

    >>> [format_chance(each) for each in (0.004, 0.257, 0.999)]
    ['under 1%', '26%', 'over 99%']
    """
    if not 0.01 <= probability <= 0.99:
        return "under 1%" if probability < 0.5 else "over 99%"
    return f"{probability:.0%}"


def _when(visit: dict) -> str:
    age = "age unknown" if visit["age"] is None else f"age {visit['age']:.1f}"
    days = visit["days_since_previous"]
    return f"{age}, {days:,.0f} days after the visit before" if days else age


def _codes(patient: dict, number: int) -> list[str]:
    names = [_name(token) for token in patient["tokens"] if token["visit"] == number]
    return _cut(sorted(names, key=lambda name: name != HIDDEN))


def _cut(names: list[str]) -> list[str]:
    num_more = len(names) - SHOWN_CODES
    return [*names[:SHOWN_CODES], *([f"and {num_more} more"] if num_more > 0 else [])]


def _drivers(patient: dict, prediction: dict, title: str) -> Table:
    method, scores = next(iter(prediction["drivers"].items()))
    ages = {visit["visit"]: visit["age"] for visit in patient["visits"]}
    ranked = sorted(zip(scores, patient["tokens"], strict=True), key=lambda pair: -abs(pair[0]))[:SHOWN_DRIVERS]
    rows = [
        [_name(token), _place(ages.get(token["visit"])), f"{score:+.3f}\u00a0{'raised' if score > 0 else 'lowered'}"]
        for score, token in ranked
        if score
    ]
    caption = f"{title}: what drove {_name(prediction)} ({method})"
    return Table(caption, ["recorded", "age", "effect"], rows or [["nothing", "", ""]])


def _place(age: float | None) -> str:
    return "" if age is None else f"{age:.1f}"


def _name(token: dict) -> str:
    name: str = token.get("description") or token.get("code") or token["name"]
    return RARE.get(name, name)
