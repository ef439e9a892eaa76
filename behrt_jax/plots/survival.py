"""Figures of time-to-event outcomes; bands and bars are 95% intervals over patients."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from behrt_jax.metrics.classification import equal_mass_bins, most_bins, row_weights
from behrt_jax.metrics.survival import calibration_table, cumulative_incidence
from behrt_jax.plots.classification import COLORS, draw_band, draw_points, save

RISK_GROUPS = ("lowest quarter of risk", "second", "third", "highest quarter")
DAYS_PER_YEAR = 365.25
POINTS = 120
SHOWN = 0.95  # share of rows whose follow-up ends within the time axis; beyond it few are left
SURVIVAL_FILE, INCIDENCE_FILE = "kaplan_meier.png", "incidence_by_risk.png"


def draw_survival(
    risks: dict[str, np.ndarray],
    days: np.ndarray,
    causes: np.ndarray,
    patients: np.ndarray,
    horizon: float,
    folder: Path,
    names: Sequence[str],
    cause: int = 1,
    fewest: int = 1,
) -> list[Path]:
    """Draws curves by quarter of risk, calibration at a horizon, and cumulative incidence; returns the files.

    Observed incidence is the cumulative incidence of Aalen & Johansen (1978); for a single event it equals 1 minus the
    survival of Kaplan & Meier (1958). Quarters of risk are drawn as survival for a single event, else as incidence.

    Args:
      risks: (N,) predicted cumulative incidence of the event by the horizon, by model name. The first model has error
        bars, and its risks define the quarters; fewer groups are used if quarters would have too few patients.
      days: (N,) days of follow-up.
      causes: (N,) int, 0 for censored, 1 to K for the first event.
      patients: (N,) int, the units of resampling.
      horizon: in days.
      folder: output folder; created if needed.
      names: names of the K events.
      cause: the event to draw, 1 to K.
      fewest: minimum number of patients behind a curve or a point; curves end where fewer are followed.
    """
    weights, last, title = row_weights(patients), float(np.quantile(days, SHOWN)), names[cause - 1]
    unit, size = ("years", DAYS_PER_YEAR) if last > 2 * DAYS_PER_YEAR else ("days", 1.0)
    grid = np.linspace(0, last, POINTS)
    labels = {"title": title, "xlabel": f"{unit} since the prediction time", "xlim": (0, last / size)}

    groups, group_names = _risk_groups(next(iter(risks.values())), patients, fewest)
    curves = {
        group_names[group]: _curve(days, causes, weights * (groups == group), grid, cause, patients, fewest)
        for group in np.unique(groups)  # many ties may leave one empty
    }
    files = [_draw_groups(curves, grid / size, days / size, groups, labels, folder, len(names) == 1, patients, fewest)]

    tables = {}
    for name, risk in risks.items():
        if num_bins := most_bins(risk, patients, fewest):
            predicted, observed, _ = calibration_table(risk, days, causes, weights, horizon, cause, num_bins)
            tables[name] = predicted[0], observed
    estimator = "Kaplan-Meier" if len(names) == 1 else "Aalen-Johansen"
    calibration_labels = {"xlabel": f"predicted risk by {horizon:g} days", "ylabel": f"observed ({estimator})"}
    calibration_labels["title"] = title
    files += draw_points(tables, risks, calibration_labels, folder / "survival_calibration.png")

    present = {name: place for place, name in enumerate(names, start=1) if (causes == place).any()}
    incidences = {name: _curve(days, causes, weights, grid, place, patients, fewest) for name, place in present.items()}
    return [*files, _draw_incidences(incidences, names, grid / size, labels, folder)]


def _risk_groups(risk: np.ndarray, patients: np.ndarray, fewest: int) -> tuple[np.ndarray, Sequence[str]]:
    """Returns the (N,) group of each row by its risk, at most four of equal mass, and the names of the groups."""
    number = most_bins(risk, patients, fewest, len(RISK_GROUPS)) or 1
    is_whole = number == len(RISK_GROUPS)
    names = RISK_GROUPS if is_whole else [f"{place + 1} of {number}, by risk" for place in range(number)]
    return equal_mass_bins(risk, number), names


def _draw_incidences(curves, names, grid, labels, folder) -> Path:
    """Draws the (1 + R, T) cumulative incidence of each event; returns the file."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        draw_band(axes, grid, curve, names.index(name), name)
    axes.set(ylabel="cumulative incidence", **labels)
    axes.set_ylim(0)
    axes.legend(frameon=False)
    return save(figure, folder / "cumulative_incidence.png")


def _curve(days, causes, weights, grid, cause, patients, fewest) -> np.ndarray:
    """Returns the (1 + R, T) incidence; NaN where fewer than `fewest` patients are followed."""
    curve = cumulative_incidence(days, causes, weights, grid, cause)
    return np.where(_followed(days, patients, weights[0] > 0, grid) >= fewest, curve, np.nan) if fewest > 1 else curve


def _followed(days, patients, rows, times) -> np.ndarray:
    """Counts the patients of some rows who are still followed at each of (T,) times."""
    owners = np.unique(patients[rows], return_inverse=True)[1]
    last = np.zeros(owners.max(initial=-1) + 1)
    np.maximum.at(last, owners, days[rows])
    return len(last) - np.searchsorted(np.sort(last), times, side="left")


def _draw_groups(curves, grid, times, groups, labels, folder, is_single, patients, fewest) -> Path:
    """Draws the (1 + R, T) incidence of each risk group, as survival for a single event; returns the file."""
    figure = Figure(figsize=(6.5, 5.5), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for group, (name, incidence) in zip(np.unique(groups), curves.items(), strict=True):
        draw_band(axes, grid, 1 - incidence if is_single else incidence, group, name)
    axes.set(ylabel="share without the event" if is_single else "cumulative incidence", **labels)
    axes.set_ylim(0, 1.01 if is_single else None)
    axes.tick_params(labelbottom=True)
    figure.legend(frameon=False, loc="outside lower center", ncols=len(RISK_GROUPS))
    ticks = [float(each) for each in axes.get_xticks() if each <= grid[-1]]
    _write_at_risk(below, times, groups, ticks, patients, fewest)
    if not is_single:  # earlier versions drew competing events by Kaplan-Meier
        (folder / SURVIVAL_FILE).unlink(missing_ok=True)
    return save(figure, folder / (SURVIVAL_FILE if is_single else INCIDENCE_FILE))


def _write_at_risk(axes: Axes, times, groups, ticks: list[float], patients, fewest: int) -> None:
    """Writes the number of rows at risk in each group; leaves counts of too few patients blank."""
    for group in np.unique(groups):
        num_followed = _followed(times, patients, groups == group, ticks)
        for tick, number in zip(ticks, num_followed, strict=True):
            text = f"{int(((times >= tick) & (groups == group)).sum()):,}" if number >= fewest or not number else ""
            axes.text(tick, -group, text, ha="center", va="center", color=COLORS[group], fontsize=8)
    axes.set(ylim=(0.6 - len(RISK_GROUPS), 0.6), xticks=ticks)
    axes.set_title("rows at risk", fontsize=9)
    axes.axis("off")
