"""Labelled histories: labels of patients, the history before each prediction time, and batches of them."""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from behrt_jax.data import batches, dataset
from behrt_jax.data import histories as data_histories
from behrt_jax.data.sexes import sexes
from behrt_jax.labels.labels import Labels
from behrt_jax.models import inference, inputs
from behrt_jax.training.recipe import FinetuningRecipe, HistoryConfig

logger = logging.getLogger(__name__)
SLOTS = 32


class LabeledHistories(NamedTuple):
    """M labels of a split and the histories before their prediction times.

    Attributes:
      labels: sorted by subject, then prediction time.
      histories: complete histories, for baselines.
      model_inputs: the newest tokens that fit in a row and, with `history.prediction_token`, that token at
        the end.
      covariates: (M, F) float32 age and sex; after `head_features.select`, those of `head.features`.
    """

    labels: Labels
    histories: dataset.Patients
    model_inputs: dataset.Patients
    covariates: np.ndarray


def find_histories(
    history: HistoryConfig,
    row_length: int,
    patients: dataset.Patients,
    labels: Labels,
    tokens: tuple[str, ...],
    name: str,
) -> LabeledHistories:
    """Selects the labels of the given patients, truncates histories at their prediction times, and reports counts.

    Args:
      history: what is in a history.
      row_length: tokens per row.
      patients: such as those of a split.
      labels: of these and of other patients.
      tokens: of the vocabulary, by id.
      name: of the patients, for messages.
    """
    patient_labels = labels.take(np.flatnonzero(np.isin(labels.subject_ids, patients.subject_ids)))
    times, include_at = patient_labels.prediction_times, history.include_at
    histories, kept, _ = data_histories.histories_at(patients, patient_labels.subject_ids, times, include_at)
    patient_labels = patient_labels.take(kept)
    rows = data_histories.newest_visits(histories, row_length)
    if history.prediction_token and len(patient_labels):
        rows = data_histories.append_prediction_token(rows, patient_labels.prediction_times, row_length)
    logger.info(
        f"{name}: {len(patient_labels):,} labels of {len(np.unique(patient_labels.subject_ids)):,} patients: "
        f"{describe(patient_labels)}"
    )
    covariates = data_histories.covariates_at(histories, patient_labels.prediction_times, tokens)
    return LabeledHistories(patient_labels, histories, rows, covariates)


def describe(labels: Labels) -> str:
    """Describes the number of labels of each outcome."""
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
    """Describes how many labelled patients have an unknown age or sex; no lines if none have."""
    ids = np.concatenate([part.histories.subject_ids for part in splits.values()])
    covariates = {
        "age": (np.concatenate([part.histories.has_birth for part in splits.values()]), "no MEDS_BIRTH"),
        "sex": (
            np.concatenate([sexes(part.histories, tokens) != "" for part in splits.values()]),
            "no code for it before the prediction time; name others in data.sex_codes",
        ),
    }
    num_patients, lines = len(np.unique(ids)), []
    for covariate, (is_known, reason) in covariates.items():
        if num_unknown := len(np.unique(ids[~is_known])):
            lines.append(f"{covariate}: unknown of {num_unknown:,} of {num_patients:,} labelled patients ({reason})")
    return lines


def add_labels(batch: dict[str, np.ndarray], labelled: LabeledHistories) -> dict[str, np.ndarray]:
    """Adds the inputs of outcome objectives, (B, P): `weights`, `targets` or `days` and `events`, and `covariates`."""
    # The number of histories in a row varies between batches; padding it gives nearly all batches one shape to compile.
    padding = -batch["patient_index"].shape[1] % SLOTS
    index, labels = np.pad(batch["patient_index"], ((0, 0), (0, padding)), constant_values=-1), labelled.labels
    rows, columns = np.maximum(index, 0), {"weights": (index >= 0).astype(np.float32)}
    if labelled.covariates.shape[1]:
        columns["covariates"] = labelled.covariates[rows]
    if labels.kind == "survival":
        columns |= {"days": labels.days[rows].astype(np.float32), "events": labels.events[rows]}
    elif labels.kind != "times":
        values = labels.values[rows]
        columns["targets"] = values if labels.kind == "multilabel" else values[..., 0]
    return {**batch, **columns}


def training_columns(recipe: FinetuningRecipe, train: LabeledHistories, start_step: int) -> Iterator[dict]:
    """Yields the inputs of the train step, from the batch of `start_step` on."""
    length, size, use_sep = recipe.data.row_length, recipe.train.batch_size, recipe.data.use_sep
    stream = batches.training_batches(train.model_inputs, length, size, recipe.seed, start_step, use_sep, newest=True)
    return (inputs.read_columns(add_labels(batch, train)) for batch in stream)


def evaluation_batches(recipe: FinetuningRecipe, found: LabeledHistories) -> Iterator[dict]:
    """Yields batches with each labelled history once, in a fixed order."""
    sizes = (recipe.data.row_length, recipe.evaluation.batch_size, recipe.data.use_sep)
    return (add_labels(batch, found) for batch in batches.evaluation_batches(found.model_inputs, *sizes))


def read_each(
    recipe: FinetuningRecipe, found: LabeledHistories, width: int, read: Callable[[dict], jax.Array]
) -> np.ndarray:
    """Applies a function from a batch to (B, P, width) to all labelled histories; returns (M, width) float32."""
    outputs = np.zeros((len(found.labels), width), np.float32)
    size = inference.limit_rows(recipe.evaluation.batch_size)
    stream = batches.evaluation_batches(found.model_inputs, recipe.data.row_length, size, recipe.data.use_sep)

    def dispatch(batch: dict[str, np.ndarray]):
        return batch["patient_index"], read(inputs.device_columns(add_labels(batch, found)))

    for index, values in inference.fetch(map(dispatch, stream)):
        rows, slots = np.nonzero(index >= 0)
        outputs[index[rows, slots]] = values[rows, slots]
    return outputs
