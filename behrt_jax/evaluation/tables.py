"""Tables of an evaluation, as the commands print them."""

from typing import NamedTuple

OWN, ORACLE = "BEHRT (this run)", "oracle (exact)"
# The columns of each objective's table; the first sorts the baselines.
COLUMNS = {
    "mlm": {"accuracy": "accuracy", "top5_accuracy": "top-5", "top20_accuracy": "top-20", "perplexity": "perplexity"},
    "value": {"quantile_loss": "quantile loss", "skill": "skill", "coverage": "coverage, 80% interval"},
    "next_visit": {
        "average_precision": "average precision",
        "average_precision/new": "AP, new codes",
        "micro_f1": "micro-F1",
        "recall@10": "recall@10",
    },
    "next_visit_known_time": {
        "average_precision": "average precision",
        "average_precision/new": "AP, new codes",
        "micro_f1": "micro-F1",
        "recall@10": "recall@10",
    },
    "time_to_event": {"loss": "loss (nats)"},
    "classification": {
        "auroc": "AUROC",
        "auprc": "AUPRC",
        "accuracy": "accuracy",
        "brier": "Brier score",
        "calibration_slope": "calibration slope",
    },
    "survival": {
        "c_index": "C-index",
        "integrated_brier": "integrated Brier",
        "calibration_slope": "calibration slope",
        "d_calibration_p": "p of D-calibration",
    },
}
TITLES = {
    "mlm": "masked codes",
    "value": "values of masked codes",
    "next_visit": "next visits",
    "next_visit_known_time": "next visits, their start known",
    "time_to_event": "events ahead",
    "classification": "outcomes",
    "survival": "time to event",
}
GROUPS = ("type=", "age=", "sex=")
LOWER_IS_BETTER = ("loss", "brier")


def format_result(result: dict) -> str:
    """Formats an evaluation as text: a table for each objective, and one by group if there are groups."""
    where = f"{result['split']} of {result['data']}" if "data" in result else result["split"]
    parts = [f"{where}: {result['patients']:,} patients, 95% intervals over patients"]
    parts += [_objective_table(result, objective) for objective in objectives(result)]
    return "\n\n".join(parts)


class Selected(NamedTuple):
    """The part of an evaluation that is shown for an objective.

    Attributes:
      columns: labels by metric; the first metric sorts the baselines.
      rows: entries by metric, by model: the oracle if known, the run, then the baselines from best to worst.
      best: the best baseline; empty if there is none.
      counted: number of scored targets.
    """

    columns: dict[str, str]
    rows: dict[str, dict]
    best: str
    counted: int


def objectives(result: dict) -> list[str]:
    """Returns the objectives for which a result has metrics."""
    return [each for each in COLUMNS if any(name.startswith(f"{each}/") for name in result["metrics"])]


def select(result: dict, objective: str) -> Selected:
    """Selects the columns and rows to show for an objective."""
    metrics = {f"{objective}/{name}": label for name, label in COLUMNS[objective].items()}
    columns = {name: label for name, label in metrics.items() if name in result["metrics"]}
    if not columns:  # competing risks have a C-index for each cause
        causes = [name for name in result["metrics"] if name.startswith(next(iter(metrics)))]
        columns = {name: name.removeprefix(f"{objective}/") for name in causes}
    first = next(iter(columns))
    baselines = {name: metrics for name, metrics in result["baselines"].items() if first in metrics}
    sign = 1 if first.endswith(LOWER_IS_BETTER) else -1
    baselines = dict(sorted(baselines.items(), key=lambda item: sign * item[1][first]["value"]))
    rows = {OWN: result["metrics"], **baselines}
    if first in result.get("oracle", {}):
        rows = {ORACLE: result["oracle"], **rows}
    entry = result["metrics"].get(f"{objective}/loss", result["metrics"][first])
    return Selected(columns, rows, next(iter(baselines), ""), entry["n"])


def select_groups(result: dict, selected: Selected) -> dict[str, dict]:
    """Returns the first metric by kind of code, age and sex: `{"type=CONDITION": {"run": entry, "best": entry}}`."""
    prefix = f"{next(iter(selected.columns))}/"
    groups = [name for name in result["metrics"] if name.startswith(tuple(prefix + group for group in GROUPS))]
    rows = {name.removeprefix(prefix): {"run": result["metrics"][name]} for name in groups}
    for name in groups:
        if name in result["baselines"].get(selected.best, {}):
            rows[name.removeprefix(prefix)]["best"] = result["baselines"][selected.best][name]
    return rows


def _objective_table(result: dict, objective: str) -> str:
    selected = select(result, objective)
    columns, best = selected.columns, selected.best
    lines = _grid(f"{TITLES[objective]} ({selected.counted:,})", selected.rows, columns)
    for other in (best, "oracle"):
        pairs = result["versus"].get(other, {})
        differences = [f"{label} {format_signed(pairs[name])}" for name, label in columns.items() if name in pairs]
        lines += [f"difference to {other}: {', '.join(differences)}"] * bool(differences)
    lines += _below_oracle(result, selected)
    groups = select_groups(result, selected) if best else {}
    if groups:
        lines += ["", *_grid(next(iter(columns.values())), groups, {"run": OWN, "best": best})]
    return "\n".join(lines)


def _below_oracle(result: dict, selected: Selected) -> list[str]:
    """Formats the difference of each model to the oracle, if it is known for several models."""
    differences = {
        OWN if name == "BEHRT" else name: entries for name, entries in result.get("versus_oracle", {}).items()
    }
    rows = {
        name: differences[name] for name in selected.rows if selected.columns.keys() & differences.get(name, {}).keys()
    }
    return ["", *_grid("less the oracle", rows, selected.columns, signed=True)] if len(rows) > 1 else []


def _grid(header: str, rows: dict[str, dict], columns: dict[str, str], signed: bool = False) -> list[str]:
    formatter = format_signed if signed else format_cell
    first = max(map(len, [header, *rows])) + 2
    widths = {name: max(len(label), 20) + 2 for name, label in columns.items()}
    lines = [header.ljust(first) + "".join(label.rjust(widths[name]) for name, label in columns.items())]
    for label, entries in rows.items():
        cells = (
            formatter(entries[name]).rjust(widths[name]) if name in entries else "".rjust(widths[name])
            for name in columns
        )
        lines.append((label.ljust(first) + "".join(cells)).rstrip())
    return lines


def format_cell(entry: dict) -> str:
    """Formats a value with its interval: `0.617 [0.601, 0.633]`."""
    largest = max(-entry["low"], entry["high"])
    digits = 3 if largest < 2 else 2 if largest < 10 else 1
    return f"{entry['value']:.{digits}f} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"


def format_signed(entry: dict) -> str:
    """Formats a difference with its interval: `+0.012 [-0.003, +0.027]`."""
    return f"{entry['value']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}]"
