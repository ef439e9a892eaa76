"""Figures of a pre-trained run: the learning curve, and reliability and precision-recall curves of next visits."""

from pathlib import Path

from matplotlib.figure import Figure

from behrt_jax.plots.classification import save
from behrt_jax.training import metrics_writer


def draw_pretraining(folder: Path, evaluation: dict) -> list[Path]:
    """Draws the learning curve of a workdir and the curves of an evaluation, the content of `evaluation.json`.

    Returns:
      The files, all in the workdir's folder `figures`; what was not logged or not scored is not drawn.
    """
    target, files = folder / "figures", []
    lines = metrics_writer.read_metrics(folder)
    if names := sorted({name for line in lines for name in line if name.endswith("/loss")}):
        files.append(_draw_learning_curve(lines, names, target / "learning_curve.png"))
    if curves := evaluation["reliability"].get("next_visit"):
        files.append(_draw_reliability(curves[0], target / "reliability.png"))
    if curve := evaluation.get("precision_recall", {}).get("next_visit"):
        files.append(_draw_precision_recall(**curve, file=target / "precision_recall.png"))
    return files


def _draw_learning_curve(lines: list[dict], names: list[str], file: Path) -> Path:
    """Draws each loss over steps, on train and tuning."""
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split in ("train", "tuning"):
            points = [(line["step"], line[name]) for line in lines if line["split"] == split and name in line]
            axes.plot(*zip(*points, strict=True), label=split, marker="o" if split == "tuning" else "", linewidth=1)
        axes.set(xlabel="step", ylabel="loss", title=name)
        axes.legend()
    return save(figure, file)


def _draw_reliability(curve: list[dict], file: Path) -> Path:
    """Draws the observed frequency of codes against their predicted probability, in bins of equal mass."""
    means, shares = ([point[name] for point in curve] for name in ("predicted", "value"))
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    lowest = max(min([*means, *(share for share in shares if share > 0)]), 1e-6)
    axes.plot([lowest, 1], [lowest, 1], color="0.7", linewidth=1)
    axes.loglog(means, [max(share, lowest) for share in shares], marker="o", linewidth=1)
    axes.set(xlabel="predicted probability", ylabel="observed frequency", title="Next visits: reliability")
    return save(figure, file)


def _draw_precision_recall(precision: list[float], recall: list[float], file: Path) -> Path:
    """Draws the precision-recall curve over all visits and codes."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(recall, precision, linewidth=1.5)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1), title="Next visits: all codes")
    return save(figure, file)
