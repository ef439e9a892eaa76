"""Calibration section of the report: predicted against observed frequencies on held-out patients."""

import numpy as np

from behrt_jax.evaluation.tables import format_cell
from behrt_jax.report.parts import Figure, Section, Table, Text, draw
from behrt_jax.report.scores import OLDER, is_older, missing
from behrt_jax.report.source import Source

MOST_CURVES = 6
TITLES = {
    "mlm": "Masked codes, the most likely code",
    "next_visit": "Next visits, every code",
    "next_visit_known_time": "Next visits, their start known, every code",
}
HOW = (
    "Of predictions of 10%, one in ten should come true: points on the diagonal. Each point is of as many predictions "
    "as the others; bars are 95% intervals over patients."
)


def calibration(source: Source) -> Section:
    """Makes the section with the reliability curves and the calibration metrics of the evaluation."""
    result, intro = source.read_evaluation(), HOW
    if result is None:
        return Section("calibration", "Calibration", intro, [missing(source)])
    curves = list(result.get("reliability", {}).items())[:MOST_CURVES]
    parts: list = [_draw(TITLES[name] if name in TITLES else name, finest) for name, (finest, *_) in curves]
    if source.floor > 1:
        intro += f" Each point is of {source.floor} patients or more; what is of fewer is not shown."
    if is_older(result):
        parts.append(missing(source, OLDER.format("calibration by predicted probability")))
    parts += _errors(result)
    return Section("calibration", "Calibration", intro, parts or [Text("This evaluation has no reliability curves.")])


def _draw(title: str, curve: list[dict]) -> Figure:
    predicted, observed, low, high, counts = (
        np.array([point[name] for point in curve]) for name in ("predicted", "value", "low", "high", "n")
    )
    distance = np.average(np.abs(predicted - observed), weights=counts)
    top = min(1.0, 1.1 * max(predicted.max(), high.max(), 1e-3))

    def paint(axes):
        spans = np.maximum([observed - low, high - observed], 0)
        axes.plot([0, top], [0, top], color="0.5", linewidth=1, linestyle=":", label="ideal")
        axes.errorbar(predicted, observed, spans, fmt="o-", markersize=4, capsize=2, label="this run")
        axes.set(xlabel="predicted probability", ylabel="observed frequency", xlim=(0, top), ylim=(0, top))
        axes.legend(frameon=False, loc="upper left")

    rows = [[f"{point['predicted']:.3f}", format_cell(point), f"{point['n']:,}"] for point in curve]
    table = Table(title, ["predicted", "observed", "predictions"], rows)
    summary = f"Predictions lie {distance:.3f} from what was observed, on average over {counts.sum():,} of them."
    return draw(f"{title}: predicted against observed", summary, table, paint, (4.2, 3.8))


def _errors(result: dict) -> list[Table]:
    """Tabulates the calibration metrics of the evaluation."""
    rows = [
        [name.replace("/", ": ").replace("_", " "), format_cell(entry)]
        for name, entry in result["metrics"].items()
        if "calibration" in name and name.count("/") == 1
    ]
    return [Table("Calibration, as evaluation measured it", ["metric", "value"], rows)] if rows else []
