"""Calibration section of the report: predicted against observed frequencies on held-out patients."""

import numpy as np
import polars as pl

from behrt_jax.evaluation.plots_classification import row_weights
from behrt_jax.evaluation.tables import format_cell
from behrt_jax.metrics import bootstrap, survival
from behrt_jax.metrics.classification import most_bins
from behrt_jax.report.parts import Figure, Missing, Section, Table, Text, draw
from behrt_jax.report.scoring import Reliability, Scored, reliability
from behrt_jax.report.source import Source
from behrt_jax.training.recipe import SURVIVAL, OutcomeEvaluationConfig

PREDICTIONS_FILE = "predictions.parquet"
MOST_OUTCOMES = 6
HOW = (
    "Of predictions of 10%, one in ten should come true: points on the diagonal. Each point is of as many predictions "
    "as the others; bars are 95% intervals over patients."
)


def calibration(source: Source, scored: Scored) -> Section:
    """Makes the section with the reliability of each kind of prediction."""
    if source.is_pretrained:
        reliabilities = scored.reliabilities
        command = f"python -m experiments.report --workdir={source.folder} --data=DIR"
    else:
        reliabilities = {title: table for title, table in _of_outcomes(source).items() if table is not None}
        command = f"python -m experiments.evaluate --workdir={source.folder}"
    parts: list = [_draw(title, table) for title, table in reliabilities.items()]
    parts += _errors(source)
    intro = HOW
    if source.floor > 1:
        intro += f" Each point is of {source.floor} patients or more; what is of fewer is not shown."
    missing = Missing("There are no predictions of held-out patients.", command)
    return Section("calibration", "Calibration", intro, parts or [missing])


def _of_outcomes(source: Source) -> dict[str, Reliability | None]:
    """Computes the reliability of a fine-tuned run's held-out predictions; None where patients are too few."""
    file = source.folder / PREDICTIONS_FILE
    if not file.exists():
        return {}
    predictions = pl.read_parquet(file)
    owners = np.unique(predictions["subject_id"].to_numpy(), return_inverse=True)[1]
    names = list(source.facts.names)
    settings = source.recipe.evaluation
    if source.recipe.kind == SURVIVAL and isinstance(settings, OutcomeEvaluationConfig):
        horizon = f"{max(settings.horizons):g}"
        return {
            f"{name} within {horizon} days": _of_survival(predictions, name, place, horizon, owners, source.floor)
            for place, name in enumerate(names, start=1)
            if (predictions["event"] == place).any()
        }
    pairs = {name: (f"probability/{name}", f"value/{name}") for name in names}
    if "predicted_boolean_probability" in predictions.columns:
        pairs = {names[0]: ("predicted_boolean_probability", "boolean_value")}
    columns = {name: [predictions[each].to_numpy()[:, None] for each in pair] for name, pair in pairs.items()}
    selection = dict(list(columns.items())[:MOST_OUTCOMES])
    return {
        name: reliability(predicted.astype(np.float32), observed, owners, source.floor)
        for name, (predicted, observed) in selection.items()
    }


def _of_survival(
    said: pl.DataFrame, name: str, cause: int, horizon: str, owners: np.ndarray, floor: int
) -> Reliability | None:
    risks, weights = said[f"risk/{name}@{horizon}"].to_numpy(), row_weights(owners)
    if not (num_bins := most_bins(risks, owners, floor)):
        return None
    rows = said["days"].to_numpy(), said["event"].to_numpy()
    table = survival.calibration_table(risks, *rows, weights, float(horizon), cause, num_bins)
    predicted, observed, mass = table
    low, high = np.nanquantile(observed[1:], [(1 - bootstrap.LEVEL) / 2, (1 + bootstrap.LEVEL) / 2], axis=0)
    return Reliability(predicted[0], observed[0], low, high, mass[0].astype(int))


def _draw(title: str, found: Reliability) -> Figure:
    distance = np.average(np.abs(found.predicted - found.observed), weights=found.counts)
    top = min(1.0, 1.1 * max(found.predicted.max(), found.high.max(), 1e-3))

    def paint(axes):
        spans = np.maximum([found.observed - found.low, found.high - found.observed], 0)
        axes.plot([0, top], [0, top], color="0.5", linewidth=1, linestyle=":", label="ideal")
        axes.errorbar(found.predicted, found.observed, spans, fmt="o-", markersize=4, capsize=2, label="this run")
        axes.set(xlabel="predicted probability", ylabel="share that came", xlim=(0, top), ylim=(0, top))
        axes.legend(frameon=False, loc="upper left")

    columns = zip(*found, strict=True)
    rows = [
        [f"{predicted:.3f}", f"{observed:.3f} [{low:.3f}, {high:.3f}]", f"{number:,}"]
        for predicted, observed, low, high, number in columns
    ]
    table = Table(title, ["predicted", "observed", "predictions"], rows)
    summary = f"Predictions lie {distance:.3f} from what was observed, on average over {found.counts.sum():,} of them."
    return draw(f"{title}: predicted against observed", summary, table, paint, (4.2, 3.8))


def _errors(source: Source) -> list[Table | Text]:
    """Tabulates the calibration metrics of the evaluation."""
    result = source.read_evaluation() or {"metrics": {}}
    rows = [
        [name.replace("/", ": ").replace("_", " "), format_cell(entry)]
        for name, entry in result["metrics"].items()
        if "calibration" in name and name.count("/") == 1
    ]
    return [Table("Calibration, as evaluation measured it", ["metric", "value"], rows)] if rows else []
