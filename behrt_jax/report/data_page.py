"""The page about a data set, from its summary."""

from typing import Any

from behrt_jax.data import profile
from behrt_jax.report.data_summary import mixed_units, show
from behrt_jax.report.page import fill_template
from behrt_jax.report.parts import Figure, Section, Table, Text, draw

MOST_ROWS = 60
QUANTILES = [f"{share:.0%}" for share in profile.QUANTILES]


def render(summary: dict[str, Any]) -> str:
    """Renders a summary of `workflows.describe` as one HTML page that loads no external resources."""
    sections = [patients(summary), visits(summary), codes(summary), values(summary), models(summary)]
    counts, floor = summary["findings"]["all"], summary["min_patients"]
    text = f"{show(counts['patients'], floor)} patients, {show(counts['events'], floor)} events"
    warnings = [Text(f"{each['what']} {each['do']}") for each in summary["warnings"]]
    rule = Text(f"Numbers of fewer than {floor} patients are not shown." if floor > 1 else "All numbers are shown.")
    return fill_template(
        title=f"Data set {summary['name']}",
        goal="",
        is_synthetic=summary["is_synthetic"],
        shows_patients=floor <= 1,
        headline=[Text(text), rule],
        sections=[Section("warnings", "What deserves a look", "", warnings or [Text("Nothing.")]), *sections],
    )


def patients(summary: dict[str, Any]) -> Section:
    """Makes the section on patients: splits, sexes, years, ages, and kinds of events."""
    floor, years = summary["min_patients"], summary["quantiles"]["year of events"]
    span = [["first year of events", _year(years["smallest"])], ["last year of events", _year(years["largest"])]]
    findings = [
        [name, show(each["events"], floor), show(each["patients"], floor)] for name, each in summary["findings"].items()
    ]
    parts = [
        _counts("Patients by split", summary["splits"], floor),
        _counts("Patients by sex", summary["sexes"], floor),
        Table("Years", ["", "year"], span),
        Table("Events", ["events", "number", "patients"], findings),
        _bars("age at the last event, years", summary),
    ]
    return Section("patients", "Patients and events", "", parts)


def visits(summary: dict[str, Any]) -> Section:
    """Makes the section on visits, gaps, and lengths of histories."""
    rows = {name: each for name, each in summary["quantiles"].items() if name != "year of events"}
    note = (
        f"{summary['min_patients']} patients or more have a value at or below each number, and as many one at or above "
        "it; a dash stands for others. Births are neither visits nor events here. Days between visits are from start "
        f"to start; ages end at {profile.OLDEST}."
    )
    header = ["quantity", *next(iter(rows.values()))]
    table = [[name, *(_quantile(value) for value in each.values())] for name, each in rows.items()]
    parts = [Table("Quantiles", header, table, note), _bars("visits a patient", summary)]
    return Section("visits", "Visits and histories", "", parts)


def codes(summary: dict[str, Any]) -> Section:
    """Makes the section on codes."""
    rows = [[_named(row), f"{row['patients']:,}", f"{row['events']:,}"] for row in summary["codes"][:MOST_ROWS]]
    kinds: dict[str, list[int]] = {}
    for row in summary["codes"]:
        kind = kinds.setdefault(row["code"].partition("//")[0], [0, 0])
        kind[0], kind[1] = kind[0] + 1, kind[1] + row["events"]
    shares = sorted(kinds.items(), key=lambda item: -item[1][1])[:MOST_ROWS]
    few = f"{summary['codes_of_few_patients']:,} more codes are of fewer than {summary['min_patients']} patients each."
    parts = [
        Table("Most frequent codes", ["code", "patients", "events"], rows, few),
        Table("Kinds of codes", ["before //", "codes", "events"], [[k, f"{n:,}", f"{m:,}"] for k, (n, m) in shares]),
    ]
    return Section("codes", "Codes", "", parts)


def values(summary: dict[str, Any]) -> Section:
    """Makes the section on numbers and units."""
    by_code, mixed, rows = {row["code"]: row for row in summary["codes"]}, set(mixed_units(summary)), []
    for row in summary["values"][:MOST_ROWS]:
        code = by_code[row["code"]]
        unit = (row["unit"] or "none") + " (mixed)" * (row["code"] in mixed)
        shares = (1 - code["numbers"] / code["events"], code["without_unit"] / code["numbers"])
        cells = [_quantile(value) for name, value in row.items() if name in QUANTILES]
        rows.append([_named(code), unit, f"{row['patients']:,}", *cells, *(f"{share:.0%}" for share in shares)])
    shares = ["events without a number", "numbers without a unit"]
    header = ["code", "unit", "patients", *QUANTILES, *shares]
    note = (
        f"A dash: fewer than {summary['min_patients']} patients. Quantiles of a sample of 10,000 numbers, to two "
        "significant digits. The shares are of all units of a code."
    )
    table = Table("Numbers by code and unit", header, rows or [["none", *[""] * (len(header) - 1)]], note)
    return Section("values", "Numbers and units", "", [table])


def models(summary: dict[str, Any]) -> Section:
    """Makes the section on what the data can carry: rows, objectives, baselines and tasks."""
    prepared, floor, parts = summary["preparation"], summary["min_patients"], []
    if prepared:
        unknown = prepared["unknown_share"]
        facts = [["codes of the vocabulary", show(prepared["vocabulary"], floor)]]
        facts += [["share of [UNK]", show(unknown, floor) if unknown is None else f"{unknown:.2%}"]]
        parts.append(Table("Tokens by the default recipe", ["", "number"], facts))
        rows = [[name, *(show(value, floor) for value in row.values())] for name, row in prepared["rows"].items()]
        header = ["recipe", "tokens a row", "train patients cut", "visits cut", "codes of long visits cut"]
        note = "Evaluation reads the newest visits that fit in a row; training draws a random window of them."
        parts.append(Table("What does not fit in a row", header, rows, note))
    for name in ("objectives", "baselines", "tasks"):
        rows = [[f"{key}: {each['why']}", "yes" if each["possible"] else "no"] for key, each in summary[name].items()]
        parts.append(Table(name.capitalize(), ["what it needs", "possible"], rows))
    return Section("models", "What the data can carry", "", parts)


def _quantile(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:,.6g}"


def _named(row: dict[str, Any]) -> str:
    return f"{row['code']}: {row['description']}" if row["description"] else row["code"]


def _year(year: int | None) -> str:
    return "not shown" if year is None else str(year)


def _counts(caption: str, counts: dict[str, int | None], floor: int) -> Table:
    return Table(caption, ["", "patients"], [[name, show(number, floor)] for name, number in counts.items()])


def _bars(name: str, summary: dict[str, Any]) -> Figure:
    """Draws the patients in bands of a quantity."""
    bands = summary["bands"][name]
    table = _counts(name.capitalize(), bands, summary["min_patients"])

    def paint(axes) -> None:
        axes.bar(list(bands), [number or 0 for number in bands.values()])
        axes.tick_params(axis="x", rotation=45)
        axes.set_xlabel(name)
        axes.set_ylabel("patients")
        axes.grid(False, axis="x")

    return draw(
        f"Patients by {name}",
        f"Number of patients in each band of {name}; bands of too few are left out.",
        table,
        paint,
    )
