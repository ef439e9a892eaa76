"""Summary of a data set for a page and a JSON file, without numbers of few patients."""

from typing import Any

import polars as pl

from behrt_jax.data import events, profile, sexes
from behrt_jax.data.profile import Profile
from behrt_jax.evaluation.small_cells import format_counts

ADVICE = {  # findings that deserve a look, by the names of `Profile.findings`
    "without a patient or a code": "Fill or drop these rows: preparation refuses them.",
    "before birth": "Correct the births or remove the events: preparation refuses them.",
    "of patients with more than one birth": "Keep one: the first counts.",
    "after death": "Check the deaths: preparation keeps these events.",
    "exact duplicates": "Remove them unless they are real; in a visit, data.unique_codes_in_visit drops repeats.",
    "of patients without a birth": f"Add {events.BIRTH}: the model does not know the ages of these patients.",
    "with a number that is not finite": "Replace NaN and infinity by null; preparation reads them as no value.",
    "with a number without a unit": "Add the units, or check that these numbers are in the unit of the others.",
    "with a text": "Move the text that matters into codes: no model here reads text_value.",
}


def summarize(data: Profile, descriptions: dict[str, str], floor: int) -> dict[str, Any]:
    """Summarizes a profile; None stands for a number of fewer than `floor` patients, or one that would reveal it."""
    findings = {
        name: {"events": num_events if hidden else None, "patients": patients if hidden else None}
        for name, num_events, patients in data.findings.iter_rows()
        for hidden in [not 0 < patients < floor]
    }
    shown = data.codes.filter(pl.col("patients") >= floor).sort("patients", "events", "code", descending=[True] * 3)
    shown_codes = shown["code"].to_list()
    hidden_codes = {events.BIRTH, *sexes.canonical(shown_codes, ())}  # these are counted as findings and sexes
    names = data.spreads["name"].unique(maintain_order=True)
    return {
        "min_patients": floor,
        "findings": findings,
        "splits": show_counts({name or "none": count for name, count in data.splits.sort("split").iter_rows()}, floor),
        "sexes": show_counts({sex or "unknown": count for sex, count in data.sexes.sort("sex").iter_rows()}, floor),
        "quantiles": {name: profile.quantiles(data.spreads.filter(name=name), floor) for name in names},
        "bands": {name: _bands(data, name, edges, floor) for name, edges in BANDS.items()},
        "codes": [
            {"description": descriptions.get(row["code"], ""), **row}
            for row in shown.iter_rows(named=True)
            if row["code"] not in hidden_codes
        ],
        "codes_of_few_patients": data.codes.height - shown.height,
        "has_units": data.has_units,
        "values": profile.value_quantiles(data, floor),
    }


BANDS = {"visits a patient": (0, 1, 2, 5, 10, 20, 50, 100), "age at the last event, years": (0, *range(10, 91, 10))}


def _bands(data: Profile, name: str, edges: tuple[int, ...], floor: int) -> dict[str, int | None]:
    """Counts the patients in bands of a quantity that has one value a patient."""
    values = data.spreads.filter(name=name)
    labels = [f"{low}-{high - 1}" if high - low > 1 else str(low) for low, high in zip(edges, edges[1:], strict=False)]
    bounds = zip(edges, [*edges[1:], float("inf")], strict=True)
    within = [int(values.filter(pl.col("value").is_between(*pair, closed="left"))["count"].sum()) for pair in bounds]
    return show_counts(dict(zip([*labels, f"{edges[-1]}+"], within, strict=True)), floor)


def show_counts(counts: dict[str, int], floor: int) -> dict[str, int | None]:
    """Replaces numbers of few patients by None, and one more where the rest would reveal them; see `format_counts`."""
    texts = format_counts([*counts.values()], floor)
    return {name: n if text == f"{n:,}" else None for (name, n), text in zip(counts.items(), texts, strict=True)}


def show(number: int | float | None, floor: int) -> str:
    """Formats a number of a summary."""
    if number is None:
        return f"fewer than {floor}"
    return f"{number:,.6g}" if isinstance(number, float) else f"{number:,}"


def mixed_units(summary: dict[str, Any]) -> list[str]:
    """Returns the codes whose numbers are in more than one unit."""
    units: dict[str, set[str]] = {}
    for row in summary["values"]:
        units.setdefault(row["code"], set()).update([row["unit"]] if row["unit"] else [])
    return [code for code, names in units.items() if len(names) > 1]


def find_warnings(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Returns what deserves a look, as `what` and `do`, from a summary that has the keys of `workflows.describe`."""
    floor, findings, prepared = summary["min_patients"], summary["findings"], summary["preparation"]
    warnings = []
    if prepared is None:
        what = "The data set cannot be prepared: the command that made this page says why."
        warnings.append((what, "Correct the data; pre-training refuses it for the same reason."))
    for name, advice in ADVICE.items():
        if findings[name]["patients"] != 0:
            numbers = (show(findings[name][each], floor) + f" {each}" for each in ("events", "patients"))
            text = " of ".join(numbers) if findings[name]["patients"] else f"events of fewer than {floor} patients"
            warnings.append((f"{name.capitalize()}: {text}.", advice))
    if summary["sexes"].get("unknown", 0) != 0:
        text = f"Sex unknown: {show(summary['sexes']['unknown'], floor)} patients."
        warnings.append((text, "Name the codes that record it in data.sex_codes."))
    if not findings["that name a visit"]["events"]:
        warnings.append(("No event names its visit: calendar days are visits.", "Add a column visit_id if you can."))
    if findings["with a number"]["events"] and not summary["has_units"]:
        what = f"Numbers have no column of units ({', '.join(profile.UNIT_COLUMNS)})."
        warnings.append((what, "Check that each code has numbers of one unit: the quantiles below help."))
    if mixed := mixed_units(summary):
        what = f"Codes with numbers in more than one unit: {len(mixed):,}, such as {mixed[0]}."
        warnings.append((what, "Convert them to one unit, or make the unit a part of the code."))
    if other := sorted(set(summary["splits"]) - set(events.SPLITS)):
        what = f"Patients outside {', '.join(events.SPLITS)}: in {', '.join(other)}."
        warnings.append((what, f"Correct {events.SPLITS_FILE}: only these splits are read."))
    if not any(row["description"] for row in summary["codes"]):
        warnings.append(("Codes have no descriptions.", f"Add the column description to {events.CODES_FILE}."))
    if prepared and (prepared["unknown_share"] or 0) > 0.05:
        what = f"{prepared['unknown_share']:.1%} of tokens are [UNK], codes of too few train patients."
        warnings.append((what, "Replace them by broader codes, as data.roll_up=('parents', 'icd', 'prefix') does."))
    return [{"what": what, "do": advice} for what, advice in warnings]
