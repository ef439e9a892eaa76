"""The result of an evaluation, which every kind of run has, and its file `evaluation.json`."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from behrt_jax.evaluation import tables
from behrt_jax.metrics import bootstrap
from behrt_jax.metrics.bootstrap import PerTargetScores
from behrt_jax.training.workdir import EVALUATION_FILE


class Comparison(NamedTuple):
    """Metrics of a run, of baselines and of the oracle, on the same targets.

    An entry is `{"value", "low", "high", "n", "patients"}`: `n` counts the measured targets, `patients` their patients.
    A difference is `{"value", "low", "high"}`.

    Attributes:
      about: `split`, `patients`, `train_patients`, `evaluated` (a digest of the inputs: `digests.of_evaluation`), and
        with another data set `data`, the name of its folder.
      own: entries of the run by metric.
      baselines: entries by baseline and metric.
      differences: the run minus each baseline and, for simulated outcomes, minus the `oracle`, by name and metric.
      oracle: entries by metric; empty if the true probabilities are unknown.
      oracle_differences: each model minus the oracle, by model and metric; the run is named `BEHRT`.
      reliability: reliability curves of the run by target; see `evaluation.reliability`.
      precision_recall: `{"precision": [...], "recall": [...]}` of the run over all targets, by objective.
      figures: the files drawn; not part of `evaluation.json`.
    """

    about: dict = {}
    own: dict[str, dict] = {}
    baselines: dict[str, dict] = {}
    differences: dict[str, dict] = {}
    oracle: dict[str, dict] = {}
    oracle_differences: dict[str, dict] = {}
    reliability: dict[str, list] = {}
    precision_recall: dict[str, dict] = {}
    figures: tuple[Path, ...] = ()

    def to_dict(self) -> dict:
        """Returns the content of `evaluation.json`."""
        optional = {"oracle": self.oracle, "versus_oracle": self.oracle_differences}
        optional["precision_recall"] = self.precision_recall
        result = {**self.about, "metrics": self.own, "baselines": self.baselines, "versus": self.differences}
        return {**result, **{name: part for name, part in optional.items() if part}, "reliability": self.reliability}

    def table(self) -> str:
        """Formats the metrics as text."""
        return tables.format_result(self.to_dict())


def of_scores(own: PerTargetScores, others: dict[str, PerTargetScores], prefix: str) -> Comparison:
    """Compares the scores of a run with those of others at the same targets; see `bootstrap.report`."""
    report = bootstrap.report(own, others, prefix)
    return Comparison(own=report["metrics"], baselines=report["baselines"], differences=report["versus"])


def join(comparisons: Iterable[Comparison]) -> Comparison:
    """Joins comparisons of several objectives; the entries of a baseline that several have are joined too."""
    *fields, _ = zip(*comparisons, strict=True)
    return Comparison._make([*(functools.reduce(_merge, parts) for parts in fields), ()])


def _merge(left: dict, right: dict) -> dict:
    both = {name: left[name] | right[name] for name in left.keys() & right.keys()}
    return {**left, **right, **both}


def write(folder: Path, comparison: Comparison) -> None:
    """Writes `evaluation.json` to a workdir; an interrupt leaves the file that was there."""
    scratch = folder / f"{EVALUATION_FILE}.tmp"
    scratch.write_text(json.dumps(comparison.to_dict(), indent=1))
    scratch.replace(folder / EVALUATION_FILE)
