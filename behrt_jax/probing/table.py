"""The results table of few-label probing: scores by task, number of patients and arm, and differences to ours."""

import numpy as np

from behrt_jax.evaluation.tables import format_signed
from behrt_jax.labels.labels import Labels
from behrt_jax.metrics import bootstrap
from behrt_jax.metrics.bootstrap import Estimate
from behrt_jax.probing.scores import METRICS

Results = dict[tuple[int, int, str], Estimate]  # by size, draw and arm

AGE, COUNTS, BOOSTING, RANDOM, SCRATCH, TUNED, OURS = (
    "age",
    "counts",
    "boosting",
    "random",
    "scratch",
    "fine_tuned",
    "pretrained",
)
UNLABELED = (AGE,)  # scored once, as size 0 and draw 0
HEADS = {
    AGE: "age alone, no label",
    COUNTS: "counts, age and sex",
    BOOSTING: "gradient boosting",
    RANDOM: "random encoder",
    SCRATCH: "from scratch",
    TUNED: "fine-tuned end to end",
    OURS: "pre-trained",
}
COMPARED = (COUNTS, AGE)


def draws_of(found: Results, size: int, arm: str) -> list[Estimate]:
    """Returns the estimates of an arm at a size, ordered by draw; arms without labels have a single estimate."""
    size = 0 if arm in UNLABELED else size
    return [found[key] for key in sorted(found) if key[0] == size and key[2] == arm]


def average(results: list[Results], size: int, arm: str) -> Estimate:
    """Averages an arm over the draws of each run, then over runs; each run must have the arm.

    Replicates come from a two-level bootstrap: each resamples the held-out patients, identically for all draws and arms
    of a run, and the draws, identically for all arms with as many draws. Runs have different patients, so their
    replicates are independent.
    """
    means, numbers = [], 0
    for run, result in enumerate(results):
        draws = draws_of(result, size, arm)
        indices = np.random.default_rng(0).integers(len(draws), size=(bootstrap.NUM_RESAMPLES, len(draws)))
        replicates = np.stack([draw.replicates for draw in draws], axis=1)
        averages = np.take_along_axis(replicates, indices, axis=1).mean(axis=1)
        order = np.random.default_rng(run).permutation(bootstrap.NUM_RESAMPLES)
        means.append((np.mean([draw.value for draw in draws]), averages[order]))
        numbers += draws[0].n
    values, replicates = zip(*means, strict=True)
    return Estimate(float(np.mean(values)), np.mean(replicates, axis=0), numbers)


def format_table(results: dict[str, list[Results]], counts: dict[str, str], sizes: list[int]) -> str:
    """Formats a Markdown table, one row per task and size, and counts the cells in which ours is better.

    Args:
      results: by task, one `Results` per run, with the arms `OURS` and `COMPARED`.
      counts: by task, the metric and the number of patients; see `count`.
      sizes: numbers of labelled patients, ascending.
    """
    cells = {
        (name, size, arm): average(each, size, arm)
        for name, each in results.items()
        for size in sizes
        for arm in HEADS
        if all(draws_of(result, size, arm) for result in each)
    }
    arms = [arm for arm in HEADS if any(arm == key[2] for key in cells)]
    heads = ["held-out patients with the outcome", "k", *(HEADS[arm] for arm in arms)]
    heads += [f"pre-trained minus {HEADS[arm]}" for arm in COMPARED]
    lines, changes = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"], {arm: [] for arm in COMPARED}
    for name in results:
        for size in sizes:
            row = [f"{name}, {counts[name]}" if size == sizes[0] else "", show(size)]
            row += [f"{cells[name, size, arm].value:.3f}" if (name, size, arm) in cells else "" for arm in arms]
            for arm in COMPARED:
                change = bootstrap.difference(cells[name, size, OURS], cells[name, size, arm])
                changes[arm].append(change)
                row.append(format_signed(change))
            lines.append(f"| {' | '.join(row)} |")
    for arm, each in changes.items():
        above, significant = sum(c["value"] > 0 for c in each), sum(c["low"] > 0 for c in each)
        below = sum(c["high"] < 0 for c in each)
        prefix = f"\nPre-trained against {HEADS[arm]}, {len(each)} cells: above in {above}"
        lines.append(f"{prefix}, in {significant} by the whole interval; below by the whole interval in {below}.")
    return "\n".join(lines) + "\n"


def show(size: int) -> str:
    """Formats a number of patients; the largest integer is `all`."""
    return f"{size:,}" if size < np.iinfo(int).max else "all"


def count(held_out: list[Labels]) -> str:
    """Describes the metric and the numbers of patients, with the outcome and in all."""
    totals = np.zeros(2, int)
    for labels in held_out:
        ids = labels.subject_ids
        totals += [len(np.unique(ids[labels.outcomes()[:, 0]])), len(np.unique(ids))]
    return f"{METRICS[held_out[0].kind]}, {totals[0]:,} of {totals[1]:,}"
