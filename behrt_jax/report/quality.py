"""Quality of patient and code embeddings compared with baselines, as measured by other commands."""

from behrt_jax.evaluation.tables import format_cell, format_signed
from behrt_jax.report.parts import Missing, Table, Text
from behrt_jax.report.source import Source
from behrt_jax.training.workdir import CODE_EMBEDDINGS_FILE, EMBEDDING_QUALITY_FILE

MEASURES = {
    "groups": {"groups/silhouette": "silhouette by disease, of patients with one disease or none"},
    "retrieval": {"retrieval/precision": "share of the nearest patients who share a disease"},
    "retrieval_later": {"retrieval/precision": "share of the nearest who get the same disease later"},
    "probe": {"probe/auroc": "AUROC of linear probes for diseases"},
}


def of_patients(source: Source) -> list:
    """Tabulates the measures of experiments.explore, one table each."""
    result = source.read_json(EMBEDDING_QUALITY_FILE)
    if result is None:
        command = f"python -m experiments.explore --workdir={source.folder}"
        return [Missing("How well the embeddings part diseases is not measured yet.", command)]
    measures = {name: columns for name, columns in MEASURES.items() if result.get(name, {}).get("metrics")}
    tables = [(label, metric, result[name]) for name, each in measures.items() for metric, label in each.items()]
    shown = [each for each in tables if _patients(each[2]["metrics"][each[1]]) >= source.floor]
    hidden = [Text(f"Measures of fewer than {source.floor} patients are not shown.")] * (len(shown) < len(tables))
    return [_compare(*each) for each in shown] + hidden


def of_codes(source: Source) -> list:
    """Tabulates how often neighbours of a code share its group, as measured by experiments.codes."""
    result = source.read_json(CODE_EMBEDDINGS_FILE)
    if result is None:
        command = f"python -m experiments.codes --workdir={source.folder}"
        return [Missing("How often nearest codes are of one group is not measured yet.", command)]
    label = "share of the nearest codes of the same {}"
    return [_compare(label.format(name), "codes/precision", each) for name, each in result["agreement"].items()]


def _patients(entry: dict) -> int:
    return entry.get("patients") or entry["n"]  # older runs have one value per patient


def _compare(label: str, metric: str, found: dict) -> Table:
    """Tabulates a metric of this run and of baselines, with paired differences."""
    rows = [["this run", format_cell(found["metrics"][metric]), ""]]
    for name, metrics in found["baselines"].items():
        if metric in metrics:
            difference = found["versus"].get(name, {}).get(metric)
            rows.append([name, format_cell(metrics[metric]), format_signed(difference) if difference else ""])
    rows = [[cell.replace(", ", ",\u00a0") for cell in row] for row in rows]
    return Table(label[0].upper() + label[1:], ["", "value", "this run minus it"], rows)
