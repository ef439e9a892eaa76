"""Figures of a pre-trained run: the learning curve, and reliability and precision-recall curves of next visits."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from behrt_jax.evaluation.loaded_run import load_run
from behrt_jax.evaluation.next_visit import find_examples, predict
from behrt_jax.metrics import multilabel

DPI = 150


def draw(folder: Path, split: str, data: str | None = None) -> list[Path]:
    """Draws the figures of a workdir; returns the files, all in its folder `figures`."""
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    files = [_draw_learning_curve(folder, target / "learning_curve.png")]
    run = load_run(folder, split, data)
    if "next_visit" in run.task.model.objectives:
        scored = find_examples(run, run.patients)
        if not len(scored.examples):
            return files
        probabilities = predict(run, None, scored)[0].scored
        files.append(_draw_reliability(probabilities, scored.examples.targets, target / "reliability.png"))
        files.append(_draw_precision_recall(probabilities, scored.examples.targets, target / "precision_recall.png"))
    return files


def _draw_learning_curve(folder: Path, file: Path) -> Path:
    """Draws each loss over steps, on train and tuning."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = sorted({name for line in lines for name in line if name.endswith("/loss") and "/" in name})
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split in ("train", "tuning"):
            points = [(line["step"], line[name]) for line in lines if line["split"] == split and name in line]
            axes.plot(*zip(*points, strict=True), label=split, marker="o" if split == "tuning" else "", linewidth=1)
        axes.set(xlabel="step", ylabel="loss", title=name)
        axes.legend()
    return _save(figure, file)


def _draw_reliability(probabilities, targets, file: Path) -> Path:
    """Draws the observed frequency of codes against their predicted probability, in bins of equal mass."""
    means, shares, _ = multilabel.reliability(probabilities, targets)
    figure, axes = _square()
    lowest = max(min(means.min(), shares[shares > 0].min(initial=1.0)), 1e-6)
    axes.plot([lowest, 1], [lowest, 1], color="0.7", linewidth=1)
    axes.loglog(means, shares.clip(lowest), marker="o", linewidth=1)
    axes.set(xlabel="predicted probability", ylabel="share that came", title="Next visits: reliability")
    return _save(figure, file)


def _draw_precision_recall(probabilities, targets, file: Path) -> Path:
    """Draws the precision-recall curve over all visits and codes."""
    precision, recall, _ = multilabel.precision_recall(probabilities, targets)
    figure, axes = _square()
    axes.plot(recall, precision, linewidth=1.5)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1), title="Next visits: all codes")
    return _save(figure, file)


def _square():
    figure = Figure(figsize=(5, 5), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file, dpi=DPI)
    return file
