"""Result sections of the report: metrics, paired differences, and groups of patients."""

import numpy as np

from behrt_jax.evaluation import tables
from behrt_jax.evaluation.tables import Selected, format_cell, format_signed
from behrt_jax.report.parts import Figure, Missing, Section, Table, Text, draw
from behrt_jax.report.source import Source

LOWER_IS_BETTER = (*tables.LOWER_IS_BETTER, "perplexity", "calibration_error", "log_days_error")
NEITHER = ("calibration_slope", "calibration_intercept", "d_calibration_p", "coverage")  # best at an intermediate value
UNITS = {
    "mlm": "masked codes",
    "value": "values",
    "next_visit": "visits to predict",
    "time_to_event": "visits",
    "classification": "labels",
    "survival": "labels",
}
OLDER = "An older version wrote this evaluation, without {}. Evaluate the run again to have it:"
GROUP_NAMES = {"sex": "sex", "age": "age, years", "type": "kind of code"}


def headline(source: Source) -> list:
    """Returns a sentence for each objective: its first metric, compared with the best baseline."""
    result = source.read_evaluation()
    if result is None:
        return [missing(source)]
    if not result["metrics"]:
        return [_hidden(source)]
    sentences = []
    for objective in tables.objectives(result):
        selected = tables.select(result, objective)
        first, label = next(iter(selected.columns.items()))
        text = f"{tables.TITLES[objective].capitalize()}: {label} {format_cell(result['metrics'][first])}"
        if selected.best:
            text += f"; the best baseline, {selected.best}, {format_cell(selected.rows[selected.best][first])}"
            if difference := result["versus"].get(selected.best, {}).get(first):
                text += f". The difference is {format_signed(difference)}: {judge(first, difference)}"
        sentences.append(f"{text}.")
    return [Text(sentence) for sentence in sentences]


def held_out(source: Source) -> Section:
    """Makes the section with the metrics of the run and the baselines, and their differences."""
    result, parts = source.read_evaluation(), []
    if result is None or not result["metrics"]:
        part = missing(source) if result is None else _hidden(source)
        return Section("results", "Results on held-out patients", "", [part])
    for objective in tables.objectives(result):
        selected = tables.select(result, objective)
        header = ["model", *selected.columns.values()]
        rows = [[name, *_cells(metrics, selected)] for name, metrics in selected.rows.items()]
        title = f"{tables.TITLES[objective].capitalize()}: {selected.counted:,} {UNITS[objective]}"
        parts += [_draw_forest(selected, title), Table(title, header, rows)]
        others = [name for name in selected.rows if name in result["versus"]]
        others += ["oracle"] * ("oracle" in result["versus"])
        if differences := [[name, *_differences(result["versus"][name], selected)] for name in others]:
            note = "This run minus the other, on the same resampled patients."
            parts.append(
                Table(f"{tables.TITLES[objective].capitalize()}: paired differences", header, differences, note)
            )
    where = "held_out, whom no model has seen" if result["split"] == "held_out" else result["split"]
    where = f"{result['split']} of another data set, {result['data']}" if "data" in result else where
    intro = (
        f"{result['patients']:,} patients of {where}. In brackets 95% intervals over "
        "patients: resampled 1,000 times, whole patients at a time."
    )
    return Section("results", "Results on held-out patients", intro, parts)


def groups(source: Source) -> Section:
    """Makes the section with the first metric by sex, age band and kind of code."""
    result, parts = source.read_evaluation(), []
    if result is None:
        return Section("groups", "By sex and age", "", [missing(source)])
    for objective in tables.objectives(result):
        selected = tables.select(result, objective)
        label = next(iter(selected.columns.values()))
        entries = tables.select_groups(result, selected)
        if objective == "mlm" and not entries and is_older(result):
            parts.append(missing(source, OLDER.format("accuracy of masked codes by sex and age")))
        for kind, title in GROUP_NAMES.items():
            some = {name.partition("=")[2]: each for name, each in entries.items() if name.startswith(f"{kind}=")}
            models = {"run": tables.OWN, "best": selected.best}
            models = {role: name for role, name in models.items() if any(role in each for each in some.values())}
            rows = [
                [
                    name,
                    f"{each['run']['n']:,}",
                    f"{each['run']['patients']:,}" if "patients" in each["run"] else "",
                    *(_cell(each[role]) if role in each else "" for role in models),
                ]
                for name, each in some.items()
            ]
            if rows:
                caption = f"{tables.TITLES[objective].capitalize()}: {label} by {title}"
                parts.append(Table(caption, [title, "how many", "patients", *models.values()], rows))
    intro = "A model that works on average may fail some. Wide intervals are of few patients: they show no difference."
    if source.floor > 1:
        intro += f" Groups of fewer than {source.floor} patients are not shown, nor what would tell of them."
    return Section("groups", "By sex and age", intro, parts or [Text("This evaluation has no groups of patients.")])


def judge(metric: str, difference: dict) -> str:
    """Judges a difference by its interval: `better`, `worse` or `cannot be told apart`; else empty."""
    if metric.endswith(NEITHER):
        return ""
    if difference["low"] <= 0 <= difference["high"]:
        return "cannot be told apart"
    return "better" if (difference["value"] < 0) == metric.endswith(LOWER_IS_BETTER) else "worse"


def _cell(entry: dict) -> str:
    return format_cell(entry).replace(", ", ",\u00a0")  # keeps an interval on one line


def _cells(found: dict, selected: Selected) -> list[str]:
    return [_cell(found[name]) if name in found else "" for name in selected.columns]


def _differences(found: dict, selected: Selected) -> list[str]:
    return [
        f"{format_signed(found[name])} {judge(name, found[name])}".strip().replace(", ", ",\u00a0")
        if name in found
        else ""
        for name in selected.columns
    ]


def _draw_forest(selected: Selected, title: str) -> Figure:
    """Draws the first metric of each model with its interval."""
    first, label = next(iter(selected.columns.items()))
    entries = {name: metrics[first] for name, metrics in selected.rows.items()}

    def paint(axes):
        for place, (name, entry) in enumerate(entries.items()):
            is_run = name == tables.OWN
            spans = np.maximum([[entry["value"] - entry["low"]], [entry["high"] - entry["value"]]], 0)
            style = {"color": "C1" if is_run else "0.35", "fmt": "D" if is_run else "o", "capsize": 3, "markersize": 6}
            axes.errorbar(entry["value"], place, xerr=spans, **style)
        axes.locator_params(axis="x", nbins=5)
        axes.set(xlabel=label, yticks=range(len(entries)), yticklabels=entries)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)

    table = Table(f"{title}: {label}", ["model", label], [[name, _cell(each)] for name, each in entries.items()])
    summary = "; ".join(f"{name} {format_cell(each)}" for name, each in entries.items())
    return draw(f"{title}: {label}, with 95% intervals", summary, table, paint, (4.6, 0.9 + 0.34 * len(entries)))


def _hidden(source: Source) -> Text:
    return Text(f"Results are of fewer than {source.floor} held-out patients, too few to be shown of real ones.")


def is_older(result: dict) -> bool:
    """Returns whether an evaluation is of a version that wrote no reliability curves and no groups of masked codes."""
    return "reliability" not in result


def missing(source: Source, text: str = "The run is not evaluated yet.") -> Missing:
    """Says what is missing, and the command that evaluates the run."""
    return Missing(text, f"python -m experiments.evaluate --workdir={source.folder}")
