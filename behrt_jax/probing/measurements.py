"""Measurements of a few-label task: each size, draw and arm once, kept in a file."""

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from behrt_jax.finetuning import sampling
from behrt_jax.metrics.bootstrap import Estimate
from behrt_jax.probing import arms, few_label_task
from behrt_jax.probing import features as probing_features
from behrt_jax.probing.features import Reader
from behrt_jax.probing.scores import rank
from behrt_jax.probing.table import AGE, SCRATCH, TUNED, show

RESULTS_FILE = "results.jsonl"


class ResultsFile:
    """The measurements of a task: estimates by size, draw and arm, each a line of a file.

    Attributes:
      found: the estimates.
    """

    def __init__(self, folder: Path):
        """Reads earlier measurements; removes a last line that was cut short by a kill."""
        self.file, self.found = folder / RESULTS_FILE, {}
        lines = self.file.read_text().splitlines(keepends=True) if self.file.exists() else []
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
            self.file.write_text("".join(lines))
        for line in map(json.loads, lines):
            estimate = Estimate(line["value"], np.array(line["replicates"]), line["n"])
            self.found[line["size"], line["draw"], line["arm"]] = estimate

    def add(self, size: int, draw: int, arm: str, estimate: Estimate) -> None:
        """Adds an estimate, and a line to the file."""
        self.found[size, draw, arm] = estimate
        line = {"size": size, "draw": draw, "arm": arm, "value": estimate.value, "n": estimate.n}
        with self.file.open("a") as target:
            target.write(json.dumps({**line, "replicates": np.round(estimate.replicates, 6).tolist()}) + "\n")


def measure_task(
    task: few_label_task.Task, results: ResultsFile, todo: list, reader: Reader, compiled: dict, bar: tqdm
) -> None:
    """Measures the missing results of a task: arms without labels first, then those that need labels.

    Args:
      task: the task.
      results: its measurements; the missing ones are added.
      todo: sizes, draws and arms that need labels.
      reader: computes the features of histories.
      compiled: compiled steps of earlier tasks of the same run; see `few_label_task.train_and_score`.
      bar: progress; one unit for each of `todo`.
    """
    train, held_out = task.splits["train"], task.splits["held_out"]
    features = None
    if (0, 0, AGE) not in results.found:
        ages = probing_features.ages(held_out.histories, held_out.labels.prediction_times)
        results.add(0, 0, AGE, rank(ages, held_out.labels))
    for size, draw, arm in todo:
        bar.set_postfix_str(f"{show(size)} patients, draw {draw}, {arm}")
        if (size, draw, arm) not in results.found:
            rows = sampling.draw_rows(train.labels, size, task.recipe.seed, draw)
            if arm in (SCRATCH, TUNED):
                scores = few_label_task.train_and_score(task, rows, draw, arm == TUNED, compiled)
            else:
                features = features or [
                    reader.blocks(part.histories, part.labels.prediction_times) for part in (train, held_out)
                ]
                scores = arms.fit_and_score(arm, features[0], features[1], train.labels, rows)
            results.add(size, draw, arm, rank(scores, held_out.labels))
        bar.update()
