"""Labelled histories: the labels of some patients, what was known at each, and the batches a model reads of them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from behrt_jax import evaluate
from behrt_jax.data import at_times, batches, dataset
from behrt_jax.data.labels import Labels
from behrt_jax.data.vocabulary import UNK


class Labelled(NamedTuple):
    """The labels of a split and what was known at each: M of them.

    Attributes:
      labels: sorted by subject, then prediction time.
      histories: whole, for baselines.
      rows: what the model reads: the newest tokens that a row may hold and, with `history.mark`, a mark at the end.
    """

    labels: Labels
    histories: dataset.Patients
    rows: dataset.Patients


def find_histories(
    config: ConfigDict, patients: dataset.Patients, labels: Labels, name: str, say: Callable[[str], None]
) -> Labelled:
    """Finds the labels of some patients and what was known at each, and says how many there are.

    Args:
      config: its `history` and `data` say what was known and what a row holds.
      patients: such as those of a split.
      labels: of these patients and of others.
      name: of the patients.
      say: takes lines of counts.
    """
    mine = labels.take(np.flatnonzero(np.isin(labels.subject_ids, patients.subject_ids)))
    wanted = (patients, mine.subject_ids, mine.prediction_times, config.history.include_at)
    histories, kept, _ = at_times.histories_at(*wanted)
    mine = mine.take(kept)
    rows, _, _ = at_times.histories_at(*wanted, most_tokens=config.data.row_length)
    if config.history.mark and len(mine):
        rows = at_times.mark_times(rows, mine.prediction_times, config.data.row_length)
    say(f"{name}: {len(mine):,} labels of {len(np.unique(mine.subject_ids)):,} patients: {describe(mine)}")
    return Labelled(mine, histories, rows)


def describe(labels: Labels) -> str:
    """Says how many labels are of each outcome."""
    names = labels.names
    if labels.kind == "times":
        return "outcomes not known"
    if labels.kind == "survival":
        names, counts = ("censored", *names), np.bincount(labels.events, minlength=len(names) + 1)
    elif labels.kind == "multiclass":
        counts = np.bincount(labels.values[:, 0].astype(int), minlength=len(names))
    else:
        counts = labels.values.sum(axis=0).astype(int)
    return ", ".join(f"{count:,} {name}" for name, count in zip(names, counts, strict=True))


def describe_coverage(found: Labelled) -> str:
    """Says what share of tokens and of patients a vocabulary from elsewhere knows."""
    known = found.histories.codes != UNK
    whole = np.bincount(found.histories.owners[~known], minlength=len(found.histories)) == 0
    return (
        f"coverage: the vocabulary knows {known.mean():.2%} of the codes in the histories of train, and every code of "
        f"{whole.mean():.1%} of them; the others are [UNK]"
    )


def add_labels(batch: dict[str, np.ndarray], labels: Labels) -> dict[str, np.ndarray]:
    """Adds what objectives of outcomes read, (B, P) each: `weights`, and `targets` or `days` and `events`."""
    index = batch["patient_index"]
    of, found = np.maximum(index, 0), {"weights": (index >= 0).astype(np.float32)}
    if labels.kind == "survival":
        found |= {"days": labels.days[of].astype(np.float32), "events": labels.events[of]}
    elif labels.kind != "times":
        values = labels.values[of]
        found["targets"] = values if labels.kind == "multilabel" else values[..., 0]
    return {**batch, **found}


def training_columns(config: ConfigDict, train: Labelled, start_step: int) -> Iterator[dict]:
    """Yields what the train step takes, beginning with the batch of `start_step`."""
    length, size, separators = config.data.row_length, config.train.batch_size, config.data.separators
    stream = batches.training_batches(train.rows, length, size, config.seed, start_step, separators, newest=True)
    return (evaluate.device_columns(add_labels(batch, train.labels)) for batch in stream)


def evaluation_batches(config: ConfigDict, found: Labelled) -> Iterator[dict]:
    """Yields each labelled history once, in a fixed order."""
    sizes = (config.data.row_length, config.evaluation.batch_size, config.data.separators)
    return (add_labels(batch, found.labels) for batch in batches.evaluation_batches(found.rows, *sizes))
