"""Figures of the time to an event; bands and bars are 95% intervals over patients."""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sksurv.nonparametric import cumulative_incidence_competing_risks, kaplan_meier_estimator

from behrt_jax import classification_metrics, survival_metrics
from behrt_jax.survival_metrics import Followed
from experiments.plots_outcomes import COLORS, draw_band, draw_points, row_weights, save

RISK_GROUPS = ("lowest quarter of risk", "second", "third", "highest quarter")
DAYS_PER_YEAR = 365.25
POINTS = 120
SHOWN = 0.95  # of rows are followed no longer than the axis is; past it curves rest on few


def draw_survival(
    risks: dict[str, np.ndarray],
    followed: Followed,
    patients: np.ndarray,
    horizon: float,
    folder: Path,
    title: str,
    causes: dict[str, np.ndarray] | None = None,
) -> list[Path]:
    """Draws survival by quarters of risk, calibration at a horizon, and cumulative incidence; returns the files.

    Args:
      risks: (N,) risk of the event by the horizon, by name of the model; the first's is parted and has bars.
      followed: days and events of the rows.
      patients: (N,) int, who are resampled.
      horizon: days.
      folder: where the figures go; it is made if needed.
      title: of the task.
      causes: (N,) bool by name, which event came first, of competing ones; else the event alone is drawn. Cumulative
        incidence is by Aalen & Johansen (1978).
    """
    weights, last = row_weights(patients), float(np.quantile(followed.days, SHOWN))
    unit, size = ("years", DAYS_PER_YEAR) if last > 2 * DAYS_PER_YEAR else ("days", 1.0)
    days, times = np.linspace(0, last, POINTS), np.linspace(0, last / size, POINTS)
    labels = {"title": title, "xlabel": f"{unit} since the prediction time", "xlim": (0, times[-1])}

    groups = classification_metrics.equal_mass_bins(next(iter(risks.values())), len(RISK_GROUPS))
    figure = Figure(figsize=(6.5, 5.5), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for group in np.unique(groups):  # many ties may leave one empty
        draw_band(axes, times, partial(_survival, followed, groups == group, days), weights, group, RISK_GROUPS[group])
    axes.set(ylabel="share without the event", ylim=(0, 1.01), **labels)
    axes.tick_params(labelbottom=True)
    figure.legend(frameon=False, loc="outside lower center", ncols=len(RISK_GROUPS))
    _write_at_risk(below, followed.days / size, groups, [each for each in axes.get_xticks() if each <= times[-1]])
    files = [save(figure, folder / "kaplan_meier.png")]

    tables = {}
    for name, risk in risks.items():
        predicted, observed, _ = survival_metrics.calibration_table(risk, followed, weights.astype(float), horizon)
        tables[name] = predicted[0], observed
    named = {"xlabel": f"predicted risk by {horizon:g} days", "ylabel": "observed (Kaplan-Meier)", "title": title}
    files.append(draw_points(tables, risks, named, folder / "survival_calibration.png"))

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes, causes = figure.subplots(), causes or {"event": followed.events}
    for place, name in enumerate(causes):
        draw_band(axes, times, partial(_incidence, followed, [*causes.values()], place, days), weights, place, name)
    axes.set(ylabel="cumulative incidence", **labels)
    axes.set_ylim(0)
    axes.legend(frameon=False)
    return [*files, save(figure, folder / "cumulative_incidence.png")]


def _write_at_risk(axes: Axes, times: np.ndarray, groups: np.ndarray, ticks: list[float]) -> None:
    """Writes how many rows of each group are still followed."""
    for group in np.unique(groups):
        for tick in ticks:
            left = int(((times >= tick) & (groups == group)).sum())
            axes.text(tick, -group, f"{left:,}", ha="center", va="center", color=COLORS[group], fontsize=8)
    axes.set(ylim=(0.6 - len(RISK_GROUPS), 0.6), xticks=ticks)
    axes.set_title("rows at risk", fontsize=9)
    axes.axis("off")


def _survival(followed: Followed, is_in: np.ndarray, days: np.ndarray, rows: np.ndarray) -> np.ndarray:
    rows = rows[is_in[rows]]
    if not len(rows):
        return np.full(len(days), np.nan)
    times, survival = kaplan_meier_estimator(followed.events[rows], followed.days[rows])
    return np.append(1.0, survival)[np.searchsorted(times, days, side="right")]


def _incidence(followed: Followed, causes: list, place: int, days: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if len(causes) == 1:
        return 1 - _survival(Followed(followed.days, causes[0]), np.ones(len(followed.days), bool), days, rows)
    codes = np.stack(causes, axis=1)[rows] @ np.arange(1, len(causes) + 1)
    if not np.isin(np.arange(1, len(causes) + 1), codes).all():  # it wants each cause
        return np.full(len(days), np.nan)
    times, incidence = cumulative_incidence_competing_risks(codes, followed.days[rows])
    return np.append(0.0, incidence[place + 1])[np.searchsorted(times, days, side="right")]
