"""Labelled histories: the labels of some patients, what was known at each, and the batches a model reads of them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from behrt_jax.data import batches, dataset
from behrt_jax.data import histories as data_histories
from behrt_jax.data.sexes import sexes
from behrt_jax.labels.labels import Labels
from behrt_jax.models import inputs

SLOTS = 32


class LabeledHistories(NamedTuple):
    """The labels of a split and what was known at each: M of them.

    Attributes:
      labels: sorted by subject, then prediction time.
      histories: whole, for baselines.
      rows: what the model reads: the newest tokens that a row may hold and, with `history.prediction_token`, one
        at the end.
      covariates: (M, F) float32 age and sex, with `history.age_and_sex`; or what a regression on codes says, with
        `history.regression`; F is 0 without both.
    """

    labels: Labels
    histories: dataset.Patients
    rows: dataset.Patients
    covariates: np.ndarray


def find_histories(
    config: ConfigDict,
    patients: dataset.Patients,
    labels: Labels,
    tokens: tuple[str, ...],
    name: str,
    say: Callable[[str], None],
) -> LabeledHistories:
    """Finds the labels of some patients and what was known at each, and says how many there are.

    Args:
      config: its `history` and `data` say what was known and what a row holds.
      patients: such as those of a split.
      labels: of these patients and of others.
      tokens: of the vocabulary, by id.
      name: of the patients.
      say: takes lines of counts.
    """
    mine = labels.take(np.flatnonzero(np.isin(labels.subject_ids, patients.subject_ids)))
    times, include_at = mine.prediction_times, config.history.include_at
    histories, kept, _ = data_histories.histories_at(patients, mine.subject_ids, times, include_at)
    mine = mine.take(kept)
    rows = data_histories.newest_visits(histories, config.data.row_length)
    if config.history.prediction_token and len(mine):
        rows = data_histories.append_prediction_token(rows, mine.prediction_times, config.data.row_length)
    say(f"{name}: {len(mine):,} labels of {len(np.unique(mine.subject_ids)):,} patients: {describe(mine)}")
    covariates = data_histories.covariates_at(histories, mine.prediction_times, tokens)
    return LabeledHistories(mine, histories, rows, covariates[:, : covariates.shape[1] * config.history.age_and_sex])


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


def describe_unknown(splits: dict[str, LabeledHistories], tokens: tuple[str, ...]) -> list[str]:
    """Says of how many labelled patients age or sex is unknown; no lines where both are known of all."""
    ids = np.concatenate([found.histories.subject_ids for found in splits.values()])
    known = {
        "age": (np.concatenate([found.histories.has_birth for found in splits.values()]), "no MEDS_BIRTH"),
        "sex": (
            np.concatenate([sexes(found.histories, tokens) != "" for found in splits.values()]),
            "no code for it before the prediction time; name others in data.sex_codes",
        ),
    }
    number, lines = len(np.unique(ids)), []
    for what, (is_known, why) in known.items():
        if unknown := len(np.unique(ids[~is_known])):
            lines.append(f"{what}: unknown of {unknown:,} of {number:,} labelled patients ({why})")
    return lines


def add_labels(batch: dict[str, np.ndarray], labelled: LabeledHistories) -> dict[str, np.ndarray]:
    """Adds what objectives of outcomes read, (B, P): `weights`, `targets` or `days` and `events`, and `covariates`."""
    # Batches hold more or fewer histories a row; so many slots that nearly all have the same shape compile once.
    spare = -batch["patient_index"].shape[1] % SLOTS
    index, labels = np.pad(batch["patient_index"], ((0, 0), (0, spare)), constant_values=-1), labelled.labels
    of, found = np.maximum(index, 0), {"weights": (index >= 0).astype(np.float32)}
    if labelled.covariates.shape[1]:
        found["covariates"] = labelled.covariates[of]
    if labels.kind == "survival":
        found |= {"days": labels.days[of].astype(np.float32), "events": labels.events[of]}
    elif labels.kind != "times":
        values = labels.values[of]
        found["targets"] = values if labels.kind == "multilabel" else values[..., 0]
    return {**batch, **found}


def training_columns(config: ConfigDict, train: LabeledHistories, start_step: int) -> Iterator[dict]:
    """Yields what the train step takes, beginning with the batch of `start_step`."""
    length, size, use_sep = config.data.row_length, config.train.batch_size, config.data.use_sep
    stream = batches.training_batches(train.rows, length, size, config.seed, start_step, use_sep, newest=True)
    return (inputs.device_columns(add_labels(batch, train)) for batch in stream)


def evaluation_batches(config: ConfigDict, found: LabeledHistories) -> Iterator[dict]:
    """Yields each labelled history once, in a fixed order."""
    sizes = (config.data.row_length, config.evaluation.batch_size, config.data.use_sep)
    return (add_labels(batch, found) for batch in batches.evaluation_batches(found.rows, *sizes))


def read_each(config: ConfigDict, found: LabeledHistories, width: int, read: Callable[[dict], jax.Array]) -> np.ndarray:
    """Returns what a function says of each labelled history, (M, width) float32; it maps a batch to (B, P, width)."""
    said = np.zeros((len(found.labels), width), np.float32)
    for batch in evaluation_batches(config, found):
        rows, slots = np.nonzero(batch["patient_index"] >= 0)
        values = np.asarray(read(inputs.device_columns(batch)))
        said[batch["patient_index"][rows, slots]] = values[rows, slots]
    return said
