"""Bootstrap intervals over patients, and means from masked sums and counts that are merged and divided once."""

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


def divide(above, below) -> np.ndarray:
    """Divides arrays in float64; NaN where the denominator is not above 0."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


class PerTargetScores(NamedTuple):
    """Scores of each target, with the patient it belongs to.

    Attributes:
      patients: (n,) int, the patient of each target.
      values: name to (n,) float; `loss` is in nats.
    """

    patients: np.ndarray
    values: dict[str, np.ndarray]


def concatenate(parts: list[PerTargetScores]) -> PerTargetScores:
    """Concatenates scores that have the same names."""
    names = parts[0].values
    return PerTargetScores(
        np.concatenate([part.patients for part in parts]),
        {name: np.concatenate([part.values[name] for part in parts]) for name in names},
    )


class Estimate(NamedTuple):
    """A metric on the data and on bootstrap resamples of patients.

    Attributes:
      value: the metric on the data itself.
      replicates: (1000,) the metric on each resample; NaN where it is undefined.
      n: number of items measured.
      patients: number of patients they belong to; 0 if unknown.
    """

    value: float
    replicates: np.ndarray
    n: int
    patients: int = 0

    def summary(self) -> dict[str, float]:
        """Returns `{"value", "low", "high", "n", "patients"}` with a 95% percentile interval."""
        return {**interval(self.value, self.replicates), "n": self.n, "patients": self.patients}


def skill(loss: Estimate, reference: Estimate) -> Estimate:
    """Returns the skill score, 1 - loss / loss of a reference; both must use the same resamples of patients."""
    ratios = divide(loss.replicates, reference.replicates)
    return loss._replace(value=1.0 - float(divide(loss.value, reference.value)), replicates=1.0 - ratios)


def interval(value: float, replicates: np.ndarray) -> dict[str, float]:
    """Returns `{"value", "low", "high"}` with a 95% percentile interval."""
    low, high = np.nanquantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": float(value), "low": float(low), "high": float(high)}


def difference(first: Estimate, second: Estimate) -> dict[str, float]:
    """Returns the `interval` of the first estimate minus the second; both must use the same resamples of patients."""
    return interval(first.value - second.value, first.replicates - second.replicates)


def compare(first: dict[str, Estimate], second: dict[str, Estimate]) -> dict[str, dict[str, float]]:
    """Returns the `difference` of every metric that both have."""
    return {name: difference(first[name], second[name]) for name in first if name in second}


def resamples(num_patients: int, seed: int = 0) -> np.ndarray:
    """Samples the count of each patient in each resample, (1000, num_patients), a function of both arguments."""
    rng = np.random.default_rng(seed)
    uniform = np.full(num_patients, 1.0 / num_patients)
    draws = (rng.multinomial(num_patients, uniform) for _ in range(NUM_RESAMPLES))
    return np.stack([counts.astype(np.uint16) for counts in draws])


def estimate(outcomes: PerTargetScores, prefix: str, seed: int = 0) -> dict[str, Estimate]:
    """Averages scores on the data and on 1,000 resamples of whole patients; `loss` also as `perplexity`."""
    _, owners = np.unique(outcomes.patients, return_inverse=True)
    num_patients = int(owners.max()) + 1
    columns = [values.astype(np.float64) for values in outcomes.values.values()] + [np.ones(len(owners))]
    table = np.stack([np.bincount(owners, values, num_patients) for values in columns], axis=1)
    sums = np.stack([counts @ table for counts in resamples(num_patients, seed)])
    means = sums[:, :-1] / sums[:, -1:]
    values = table[:, :-1].sum(axis=0) / table[:, -1].sum()
    estimates = {}
    for index, name in enumerate(outcomes.values):
        result = estimates[f"{prefix}/{name}"] = Estimate(
            float(values[index]), means[:, index], len(owners), num_patients
        )
        if name == "loss":
            perplexity = result._replace(value=np.exp(result.value), replicates=np.exp(result.replicates))
            estimates[f"{prefix}/perplexity"] = perplexity
    return estimates


def summarize(outcomes: PerTargetScores, prefix: str, seed: int = 0) -> dict[str, dict[str, float]]:
    """Averages scores, with 95% percentile bootstrap intervals over patients (Efron 1979); see `estimate`.

    Targets of one patient are not independent, so whole patients are sampled with replacement, 1,000 times.

    Returns:
      Name, as `mlm/accuracy` with the prefix `mlm`, to `{"value", "low", "high", "n", "patients"}`, with the numbers of
      targets and patients; `loss` also as `perplexity`.
    """
    return summaries(estimate(outcomes, prefix, seed))


def summaries(estimates: dict[str, Estimate]) -> dict[str, dict[str, float]]:
    """Returns the `summary` of each estimate."""
    return {name: result.summary() for name, result in estimates.items()}


def paired(first: PerTargetScores, second: PerTargetScores, prefix: str, seed: int = 0) -> dict[str, dict[str, float]]:
    """Compares the means of two models at the same targets, in any order, by paired differences.

    Returns:
      Name to `{"value", "low", "high"}` of the first model's mean minus the second's.

    Raises:
      ValueError: the two differ in their patients or in the number of targets of a patient.
    """
    counts = [np.unique(outcomes.patients, return_counts=True) for outcomes in (first, second)]
    if not all(np.array_equal(*pair) for pair in zip(*counts, strict=True)):
        raise ValueError("only outcomes at the same targets of the same patients can be compared")
    return compare(estimate(first, prefix, seed), estimate(second, prefix, seed))


def report(own: PerTargetScores, compared: dict[str, PerTargetScores], prefix: str) -> dict[str, dict]:
    """Returns `metrics` of a model, and at the same targets those of `baselines` and the differences, `versus`."""
    return {
        "metrics": summarize(own, prefix),
        "baselines": {name: summarize(baseline, prefix) for name, baseline in compared.items()},
        "versus": {name: paired(own, baseline, prefix) for name, baseline in compared.items()},
    }


def average_folds(found: list[dict[str, dict[str, Estimate]]]) -> dict[str, dict[str, Estimate]]:
    """Averages over folds the estimates that all folds have, with their replicates; `found` is by model and metric.

    The replicates of folds must be independent of each other.
    """
    means = {}
    for model, metric in [(name, metric) for name, metrics in found[0].items() for metric in metrics]:
        parts = [fold[model][metric] for fold in found if metric in fold.get(model, {})]
        if len(parts) == len(found):
            values, replicates, *counts = zip(*parts, strict=True)
            mean = Estimate(float(np.mean(values)), np.mean(replicates, axis=0), *map(sum, counts))
            means.setdefault(model, {})[metric] = mean
    return means
