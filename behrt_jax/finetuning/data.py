"""Reads the labels of a recipe, matches them to the data, and splits them into train, tuning and held-out."""

import datetime
import logging

import numpy as np
import polars as pl

from behrt_jax.data import dataset
from behrt_jax.data import events as data_events
from behrt_jax.data.hashing import hash_integers
from behrt_jax.data.prepare import Prepared, prepare
from behrt_jax.data.vocabulary import Vocabulary
from behrt_jax.finetuning.labeled_histories import LabeledHistories, describe_unknown, find_histories
from behrt_jax.labels import labels as label_data
from behrt_jax.labels.follow_up import read_lives
from behrt_jax.labels.labels import Labels
from behrt_jax.training.recipe import CLASSIFICATION, SURVIVAL, FinetuningRecipe, TemporalSplitConfig

logger = logging.getLogger(__name__)
FEW = 10  # patients with an outcome, below which bootstrap intervals are too narrow


def read_splits(
    recipe: FinetuningRecipe, vocabulary: Vocabulary | None, add_codes: bool = False
) -> tuple[Prepared, dict[str, LabeledHistories]]:
    """Reads the labels and the data of a recipe; the data uses the given vocabulary, if any.

    Raises:
      ValueError: labels or data cannot be read or do not fit the recipe, or a split has no labels.
    """
    cutoff = read_cutoff(recipe)
    labels = label_data.read_labels(recipe.labels.split(",") if recipe.labels else ())
    check_kind(recipe, labels)
    prepared = prepare(recipe.data, vocabulary, add_codes=add_codes)
    labels = match(labels, read_lives(recipe.data.path))
    splits, num_wrong_side = {}, 0
    tokens, row_length = prepared.vocabulary.tokens, recipe.data.row_length
    for split in data_events.SPLITS:
        patients = dataset.read(prepared.folder, split)
        split_labels = labels.take(np.isin(labels.subject_ids, patients.subject_ids))
        usable_labels = (
            split_labels if cutoff is None else keep_side(recipe.temporal_split, split_labels, split, cutoff)
        )
        usable_labels = keep_few(recipe.train.max_patients, usable_labels) if split == "train" else usable_labels
        num_wrong_side += len(split_labels) - len(usable_labels)
        splits[split] = find_histories(recipe.history, row_length, patients, usable_labels, tokens, split)
    report_rest(len(labels) - num_wrong_side, list(splits.values()))
    for line in describe_unknown(splits, tokens):
        logger.info(line)
    if empty := [split for split, part in splits.items() if not len(part.labels)]:
        side = f" and temporal_split.cutoff={recipe.temporal_split.cutoff}" if cutoff else ""
        raise ValueError(f"labels={recipe.labels}{side}: no label is left in {', '.join(empty)}; expected some in each")
    return prepared, splits


def read_cutoff(recipe: FinetuningRecipe) -> np.datetime64 | None:
    """Returns the cutoff date of `temporal_split`, or None; raises a ValueError if its keys are not a date and days."""
    settings = recipe.temporal_split
    if not settings.cutoff:
        return None
    try:
        cutoff = np.datetime64(datetime.date.fromisoformat(settings.cutoff), "us")
    except ValueError as error:
        raise ValueError(
            f"temporal_split.cutoff: found {settings.cutoff}; expected a date such as 2015-01-01"
        ) from error
    is_classification = recipe.kind == CLASSIFICATION
    if not (settings.outcome_window_days > 0 or (settings.outcome_window_days == 0 and not is_classification)):
        reason = ", the outcome's window, as labels of train must be known by the cutoff" if is_classification else ""
        raise ValueError(
            f"temporal_split.outcome_window_days: found {settings.outcome_window_days:g}; expected days above 0{reason}"
        )
    return cutoff


def keep_side(settings: TemporalSplitConfig, labels: Labels, split: str, cutoff: np.datetime64) -> Labels:
    """Keeps the labels on a split's side of the cutoff; reports how many are left out, or censored at the cutoff."""
    kept_labels, num_censored = label_data.temporal_split(labels, split, cutoff, settings.outcome_window_days)
    gap = f"{settings.outcome_window_days:g} days before " if settings.outcome_window_days else ""
    side = f"before {settings.cutoff}" if split == "held_out" else f"from {gap}{settings.cutoff} on"
    num_left_out = len(labels) - len(kept_labels)
    logger.info(
        f"out of time, {split}: {num_left_out:,} labels {side} left out, {num_censored:,} times to event censored there"
    )
    return kept_labels


def keep_few(max_patients: int, labels: Labels) -> Labels:
    """Keeps the labels of at most `train.max_patients` patients, those with the lowest hash of their id."""
    patients = np.unique(labels.subject_ids)
    if not 0 < max_patients < len(patients):
        return labels
    logger.info(f"train: {max_patients:,} of {len(patients):,} labelled patients are taken (train.max_patients)")
    sample = patients[np.argsort(hash_integers(patients), kind="stable")[:max_patients]]
    return labels.take(np.isin(labels.subject_ids, sample))


def kinds(recipe: FinetuningRecipe) -> tuple[str, ...]:
    """Returns the kinds of labels that a recipe accepts."""
    return ("survival",) if recipe.kind == SURVIVAL else ("binary", "multiclass", "multilabel")


def check_kind(recipe: FinetuningRecipe, labels: Labels) -> None:
    """Raises a ValueError if labels are not of the kind of the recipe."""
    if labels.kind not in kinds(recipe):
        expected = "survival" if labels.kind == "survival" else "classification"
        raise ValueError(f"labels: found {labels.kind} labels in {recipe.labels}; use --config=configs/{expected}.py")


def match(labels: Labels, lives: pl.DataFrame) -> Labels:
    """Keeps the labels of subjects who are in the data, born and alive; reports how many are left out and why."""
    kept, left_out = label_data.match_subjects(labels, lives)
    if left_out:
        logger.info("labels left out: " + ", ".join(f"{number:,} {reason}" for reason, number in left_out.items()))
    return labels.take(kept)


def report_rest(number: int, found: list[LabeledHistories]) -> None:
    """Reports how many of `number` labels have no history: no known code before, or a patient of another split."""
    num_missing = number - sum(len(part.labels) for part in found)
    if num_missing:
        logger.info(
            f"labels left out: {num_missing:,} without an event before that the model reads, "
            "or of patients in other splits"
        )


def warn_of_few(labels: Labels) -> None:
    """Warns of outcomes with no or few held-out patients, or with only one class, as their metrics are omitted."""
    if lack := label_data.describe_lack(labels, "held_out"):
        events, classes = "C-index, AUC and calibration slope need events", "AUROC, AUPRC and slope need both classes"
        logger.warning(f"{lack}; {events if labels.kind == 'survival' else classes}: left out, as are its figures")
    for name, is_positive in zip(labels.names, labels.outcomes().T, strict=True):
        if 0 < (patients := len(np.unique(labels.subject_ids[is_positive]))) < FEW:
            logger.warning(f"patients of held_out with '{name}': {patients}; no interval of so few can be relied on")
