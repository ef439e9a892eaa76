"""Training sections of the report: learning curves, and the cost of training."""

from pathlib import Path

import numpy as np

from behrt_jax.report.parts import Figure, Missing, Section, Table, draw
from behrt_jax.report.source import Source
from behrt_jax.training import metrics_writer, workdir
from behrt_jax.training.checkpoints import Checkpoints
from behrt_jax.training.workdir import MACHINE_FILE

CURVE_POINTS = 200
REPORT_ON_RUN = "python -m experiments.report --workdir=RUN"


def curves(source: Source) -> Section:
    """Makes the section with the learning curve of each loss, on train and tuning."""
    lines = metrics_writer.read_metrics(source.folder)
    losses = sorted({name for line in lines for name in line if name == "loss" or name.endswith("/loss")})
    names = [name for name in losses if "/" in name] or losses
    intro = (
        "A loss says how surprised the model is by the truth; lower is better. Tuning patients are not learned from."
    )
    counts = source.prepared.report if source.prepared else {}
    if counts.get("patients/tuning", source.floor) < source.floor:
        lines = [line for line in lines if line["split"] != "tuning"]
        intro += f" They are fewer than {source.floor}, and their losses are not shown."
    parts: list = [_draw_curve(lines, name) for name in names]
    missing = "No losses lie beside this model, as where experiments.publish left them behind. The run itself has them:"
    return Section("curves", "Learning curves", intro, parts or [Missing(missing, REPORT_ON_RUN)])


def _draw_curve(lines: list[dict], name: str) -> Figure:
    series = {}
    for split in ("train", "tuning"):
        points = [(line["step"], line[name]) for line in lines if line["split"] == split and line.get(name) is not None]
        places = np.unique(np.linspace(0, len(points) - 1, min(CURVE_POINTS, len(points))).astype(int))
        series[split] = [points[place] for place in places]
    rows = [[f"{step:,}", f"{value:.4f}"] for step, value in series["tuning"]]
    summary = "No loss on tuning is written yet."
    if series["tuning"]:
        best = min(series["tuning"], key=lambda point: point[1])
        last = series["tuning"][-1]
        where = f"{best[1]:.3f} at step {best[0]:,}; at the last, {last[0]:,}, it is {last[1]:.3f}"
        summary = f"{name} on tuning is lowest with {where}."

    def paint(axes):
        for split, points in series.items():
            marker = "o" if split == "tuning" else ""
            axes.plot(*zip(*points, strict=True), label=split, marker=marker, linewidth=1.3, markersize=4)
        axes.set(xlabel="step", ylabel=name)
        axes.legend(frameon=False)

    table = Table(f"{name} on tuning", ["step", "loss"], rows)
    return draw(f"{name}, in training and on tuning", summary, table, paint)


def cost(source: Source) -> Section:
    """Makes the section on the cost of training, as far as the workdir's files record it."""
    lines = metrics_writer.read_metrics(source.folder)
    speeds = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]
    sessions = len(list((source.folder / "tensorboard").glob("events.out.tfevents.*")))
    seconds = lines[-1].get("seconds") if lines else None
    machine = source.read_json(MACHINE_FILE) or {"machine": "not recorded"}
    settings = source.recipe.train
    rows = [
        ["steps", f"{last_step(source.folder, lines):,} of {settings.num_steps:,}"],
        ["rows a step", f"{settings.batch_size:,}"],
        ["tokens a second, median", f"{np.median(speeds):,.0f}" if speeds else "not recorded"],
        ["wall time, with evaluations on tuning", format_time(seconds) if seconds else "not recorded"],
        ["starts and resumptions", f"{sessions}" if sessions else "not recorded"],
        *map(list, machine.items()),
    ]
    note = "Wall time leaves out pauses, and steps that a resumption repeated."
    return Section("cost", "Training cost", note, [Table("Cost of training", ["what", "value"], rows)])


def last_step(folder: Path, lines: list[dict]) -> int:
    """Returns the last logged step; for a published model, which has no log, the step of its parameters."""
    if lines:
        return max(line["step"] for line in lines)
    checkpoints = Checkpoints(folder / workdir.CHECKPOINTS, workdir.TUNING_LOSS)
    steps = checkpoints.steps()
    checkpoints.close()
    return max(steps, default=0)


def format_time(seconds: float) -> str:
    """Formats a duration in words.

    >>> format_time(3725)
    '1 h 2 min'
    >>> format_time(45.2)
    '45 s'
    """
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes > 1 else f"{seconds:.0f} s"
