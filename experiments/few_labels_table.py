"""The table of few labels: means over draws and runs of both arms, and how far the pre-trained one is above."""

import numpy as np

from behrt_jax import metrics
from behrt_jax.metrics import Estimate
from experiments.labelled import Labelled
from experiments.probe import METRICS
from experiments.tables import format_cell, format_signed

ARMS = ("scratch", "pretrained")
FORETOLD = (0, 0, "foretold")  # by the pre-trained run's forecast, before any label


def average(found: list[dict[tuple[int, int, str], Estimate]], size: int, draws: int, arm: str) -> Estimate:
    """Averages the draws of a size, whose resamples of patients are the same, and then the runs, whose are not."""
    means, numbers = [], 0
    for run, results in enumerate(found):
        values, replicates, counts, _ = zip(*(results[size, draw, arm] for draw in range(draws)), strict=True)
        order = np.random.default_rng(run).permutation(metrics.NUM_RESAMPLES)
        means.append((np.mean(values), np.mean(replicates, axis=0)[order]))
        numbers += counts[0]
    values, replicates = zip(*means, strict=True)
    return Estimate(float(np.mean(values)), np.mean(replicates, axis=0), numbers)


def format_table(found: dict[str, list[dict]], counts: dict[str, str], sizes: list[int], draws: int) -> str:
    """Lays out a table in Markdown: for each task and size both arms, and how far the pre-trained one is above."""
    heads, above = ["", "held out, with the outcome", "foretold, no label"], {size: [] for size in sizes}
    for size in above:
        heads += [f"{show(size)}: scratch", "pre-trained", "difference"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, results in found.items():
        foretold = [each for each in results if FORETOLD in each]
        cells = [name, counts[name], _show_alone(average(foretold, 0, 1, FORETOLD[2])) if foretold else ""]
        for size in above:
            scratch, ours = (average(results, size, draws, arm) for arm in ARMS)
            change = metrics.difference(ours, scratch)
            cells += [f"{scratch.value:.3f}", f"{ours.value:.3f}", format_signed(change)]
            above[size].append((change["value"] > 0, change["low"] > 0))
        lines.append(f"| {' | '.join(cells)} |")
    for size, signs in above.items():
        tasks, surely = np.sum(signs, axis=0)
        lines.append(f"\n{show(size)} patients: above in {tasks} of {len(signs)} tasks, in {surely} with the interval.")
    return "\n".join(lines) + "\n"


def show(size: int) -> str:
    """Writes a number of patients; one that no data set has is `all`."""
    return f"{size:,}" if size < np.iinfo(int).max else "all"


def count(found: list[Labelled]) -> str:
    """Says what is measured, and of how many patients with the outcome."""
    of, came = (sum(len(np.unique(ids)) for ids in each) for each in zip(*map(_owners, found), strict=True))
    return f"{METRICS[found[0].labels.kind]}, {came:,} of {of:,} patients"


def _owners(found: Labelled) -> tuple[np.ndarray, np.ndarray]:
    ids = found.labels.subject_ids
    return ids, ids[found.labels.outcomes()[:, 0]]


def _show_alone(its: Estimate) -> str:
    return format_cell(metrics.interval(its.value, its.replicates))
