"""Figures of classification outcomes; bands and bars are 95% intervals over patients."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.metrics
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from behrt_jax.metrics import classification
from behrt_jax.metrics.bootstrap import LEVEL, divide

DPI = 150
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe & Ito: safe for colour blindness
LINES = ("-", "--", "-.", ":")
LEAST: dict[str, Any] = {"color": "0.5", "linewidth": 1, "linestyle": (0, (1, 2))}  # reference lines


def draw_classification(
    models: dict[str, np.ndarray],
    targets: np.ndarray,
    patients: np.ndarray,
    folder: Path,
    title: str,
    fewest: int = 1,
) -> list[Path]:
    """Draws ROC, precision-recall, net-benefit and reliability curves of binary predictions; returns the files.

    Args:
      models: (N,) probabilities by model name; the first model has bands.
      targets: (N,) bool, with both classes present.
      patients: (N,) int, the units of resampling.
      folder: output folder; created if needed.
      title: title of the task.
      fewest: minimum number of patients per reliability bin.
    """
    targets, weights = np.asarray(targets, bool), classification.row_weights(patients)
    share, grid = targets.mean(), np.linspace(0, 1, 101)
    cuts = np.linspace(0, min(0.95, max(3 * share, 0.1)), 100)
    no_model = {"treat all": share - (1 - share) * cuts / (1 - cuts), "treat none": 0.0}
    kinds = {
        "roc": (_roc, grid, "false positive rate", "true positive rate", {"chance": grid}),
        "precision_recall": (_precision, grid[1:], "recall", "precision", {f"chance, {share:.3f}": share}),
        "decision": (_net_benefit, cuts, "threshold probability", "net benefit", no_model),
    }
    files = []
    for kind, (curve, places, xlabel, ylabel, least) in kinds.items():
        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.subplots()
        for place, (name, scores) in enumerate(models.items()):
            draw = partial(_of_both_classes, curve, scores, targets, places)
            drawn_weights = weights if place == 0 else weights[:1]
            curves = np.stack([draw(np.repeat(np.arange(len(each)), each)) for each in drawn_weights])
            draw_band(axes, places, curves, place, name)
        for number, (label, level) in enumerate(least.items()):
            style: dict[str, Any] = LEAST | ({"linestyle": "-"} if number else {})
            axes.plot(places, np.broadcast_to(level, places.shape), label=label, zorder=1, **style)
        bounds = (-0.2 * share, 1.15 * share) if kind == "decision" else (0, 1.01)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(0, places[-1]), ylim=bounds)
        axes.legend(frameon=False)
        files.append(save(figure, folder / f"{kind}.png"))
    bins = {name: classification.most_bins(scores, patients, fewest) for name, scores in models.items()}
    tables = {name: _reliability(models[name], targets, weights, most) for name, most in bins.items() if most}
    labels = {"xlabel": "predicted probability", "ylabel": "observed share", "title": title}
    return [*files, *draw_points(tables, models, labels, folder / "reliability.png")]


def draw_band(axes: Axes, grid: np.ndarray, curves: np.ndarray, place: int, label: str) -> None:
    """Draws the first of (1 + R, T) curves where it is defined, and a band from the others, which are its resamples."""
    known = ~np.isnan(curves[0])
    axes.plot(grid[known], curves[0, known], LINES[place % 4], color=COLORS[place % 6], label=label)
    if len(curves) > 1:
        axes.fill_between(grid[known], *_ends(curves[1:, known]), color=COLORS[place % 6], alpha=0.2, linewidth=0)


def draw_points(
    tables: dict[str, tuple[np.ndarray, np.ndarray]], scores: dict[str, np.ndarray], labels: dict, file: Path
) -> list[Path]:
    """Draws observed against predicted values, with a histogram of the predictions below.

    Args:
      tables: for each model the (bins,) mean predictions and (1 + R, bins) observed shares; the first has error bars.
      scores: (N,) predictions of each model.
      labels: title and axis labels.
      file: the file to write.

    Returns:
      A list with the file; empty without tables.
    """
    if not tables:
        return []
    figure = Figure(figsize=(5, 6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    top = min(1.02, 1.15 * max(max(mean.max(), observed[0].max()) for mean, observed in tables.values()))
    for place, (name, (mean, observed)) in enumerate(tables.items()):
        spans = np.abs(_ends(observed[1:]) - observed[0]) if place == 0 else None
        style = {"fmt": "o" + LINES[place % 4], "markersize": 4, "linewidth": 1.2, "color": COLORS[place % 6]}
        axes.errorbar(mean, observed[0], spans, label=name, capsize=2, **style)
        below.hist(scores[name], np.linspace(0, top, 41), histtype="step", color=COLORS[place % 6])
    axes.plot([0, top], [0, top], label="ideal", **LEAST)
    axes.set(xlim=(0, top), ylim=(0, top), ylabel=labels["ylabel"], title=labels["title"])
    axes.legend(frameon=False, loc="upper left")
    below.set(xlabel=labels["xlabel"], ylabel="rows", yscale="log")
    return [save(figure, file)]


def save(figure: Figure, file: Path) -> Path:
    """Writes a figure; returns the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=DPI)
    return file


def _of_both_classes(curve: Callable, scores, targets, grid, rows) -> np.ndarray:
    labels = targets[rows]
    return curve(scores[rows], labels, grid) if labels.any() and not labels.all() else np.full(len(grid), np.nan)


def _roc(scores, targets, grid) -> np.ndarray:
    return np.interp(grid, *sklearn.metrics.roc_curve(targets, scores)[:2])


def _precision(scores, targets, grid) -> np.ndarray:
    precision, recall, _ = sklearn.metrics.precision_recall_curve(targets, scores)
    return precision[::-1][np.searchsorted(recall[::-1], grid - 1e-9)]


def _net_benefit(scores, targets, grid) -> np.ndarray:
    order = np.sort(scores), np.sort(scores[targets])
    chosen, hits = (len(each) - np.searchsorted(each, grid, side="left") for each in order)
    return (hits - (chosen - hits) * grid / (1 - grid)) / len(scores)


def _reliability(scores, targets, weights, num_bins) -> tuple[np.ndarray, np.ndarray]:
    in_bin = np.eye(num_bins)[classification.equal_mass_bins(scores, num_bins)]
    in_bin = in_bin[:, in_bin.any(axis=0)]
    shares = divide(weights @ (in_bin * targets[:, None]), weights @ in_bin)
    return scores @ in_bin / in_bin.sum(axis=0), shares


def _ends(replicates: np.ndarray) -> np.ndarray:
    known = replicates[~np.isnan(replicates).any(axis=1)]
    known = known if len(known) else np.full_like(replicates[:1], np.nan)
    return np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
