"""Metrics: masked sums and counts, merged and divided once, and bootstrap intervals over patients."""

import functools
from typing import NamedTuple

import jax
import numpy as np

NUM_RESAMPLES = 1000
LEVEL = 0.95


def merge_sums(sums: list[dict]) -> dict:
    """Adds up dictionaries of (sum, count) pairs."""
    return functools.reduce(lambda left, right: jax.tree.map(np.add, left, right), sums)


def mean_metrics(sums: dict) -> dict[str, float]:
    """Divides (sum, count) pairs; a count of 0 gives NaN."""
    return {name: float(total / count) if count else float("nan") for name, (total, count) in sums.items()}


class Outcomes(NamedTuple):
    """What was measured at each target, with the patient it belongs to.

    Attributes:
      patients: (n,) int, which patient.
      values: name to (n,) float; the loss in nats under `loss`.
    """

    patients: np.ndarray
    values: dict[str, np.ndarray]


def concatenate(parts: list[Outcomes]) -> Outcomes:
    """Joins outcomes of the same measurements."""
    names = parts[0].values
    return Outcomes(
        np.concatenate([part.patients for part in parts]),
        {name: np.concatenate([part.values[name] for part in parts]) for name in names},
    )


def summarize(outcomes: Outcomes, prefix: str, seed: int = 0) -> dict[str, dict[str, float]]:
    """Averages outcomes, with percentile bootstrap intervals over patients (Efron 1979).

    Targets of one patient are not independent, so whole patients are drawn with replacement, 1,000 times.

    Args:
      outcomes: at least one target.
      prefix: put before each name, as `mlm` in `mlm/accuracy`.
      seed: of the resamples.

    Returns:
      Name to `{"value", "low", "high", "n"}` with 95% intervals and n targets; `loss` also as `perplexity`.
    """
    _, owners = np.unique(outcomes.patients, return_inverse=True)
    names = list(outcomes.values)
    num_patients = int(owners.max()) + 1
    measured = [outcomes.values[name].astype(np.float64) for name in names] + [np.ones(len(owners))]
    table = np.stack([np.bincount(owners, values, num_patients) for values in measured], axis=1)
    rng = np.random.default_rng(seed)
    uniform = np.full(num_patients, 1.0 / num_patients)
    resampled = np.stack([rng.multinomial(num_patients, uniform) @ table for _ in range(NUM_RESAMPLES)])
    means = resampled[:, :-1] / resampled[:, -1:]
    lows, highs = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    values = table[:, :-1].sum(axis=0) / table[:, -1].sum()
    summary = {}
    for name, *numbers in zip(names, values, lows, highs, strict=True):
        summary[f"{prefix}/{name}"] = dict(zip(("value", "low", "high"), map(float, numbers), strict=True))
        if name == "loss":
            exponentials = map(float, np.exp(numbers))
            summary[f"{prefix}/perplexity"] = dict(zip(("value", "low", "high"), exponentials, strict=True))
    return {name: {**numbers, "n": len(owners)} for name, numbers in summary.items()}
