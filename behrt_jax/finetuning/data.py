"""Reads the labels of a recipe, matches them to the data, and splits them into train, tuning and held-out."""

import datetime
from collections.abc import Callable

import numpy as np
import polars as pl
from ml_collections import ConfigDict

from behrt_jax.data import dataset
from behrt_jax.data import events as data_events
from behrt_jax.data.config import DataConfig
from behrt_jax.data.hashing import hash_integers
from behrt_jax.data.prepare import Prepared, prepare
from behrt_jax.data.vocabulary import Vocabulary
from behrt_jax.finetuning.labeled_histories import LabeledHistories, describe_unknown, find_histories
from behrt_jax.labels import labels as label_data
from behrt_jax.labels.follow_up import read_lives
from behrt_jax.labels.labels import Labels

FEW = 10  # patients with an outcome, below which bootstrap intervals are too narrow


def read_splits(
    config: ConfigDict, vocabulary: Vocabulary | None, say: Callable[[str], None], add_codes: bool = False
) -> tuple[Prepared, dict[str, LabeledHistories]]:
    """Reads the labels and the data of a config; the data uses the given vocabulary, if any.

    Raises:
      ValueError: labels or data cannot be read or do not fit the config, or a split has no labels.
    """
    cutoff = read_cutoff(config)
    labels = label_data.read_labels(config.labels.split(",") if config.labels else (), say)
    check_kind(config, labels)
    prepared = prepare(DataConfig(**config.data), vocabulary, progress=say, add_codes=add_codes)
    labels = match(labels, read_lives(config.data.path), say)
    splits, wrong_side = {}, 0
    for split in data_events.SPLITS:
        patients = dataset.read(prepared.folder, split)
        mine = labels.take(np.isin(labels.subject_ids, patients.subject_ids))
        kept = mine if cutoff is None else keep_side(config, mine, split, cutoff, say)
        kept = keep_few(config, kept, say) if split == "train" else kept
        wrong_side += len(mine) - len(kept)
        splits[split] = find_histories(config, patients, kept, prepared.vocabulary.tokens, split, say)
    report_rest(len(labels) - wrong_side, list(splits.values()), say)
    for line in describe_unknown(splits, prepared.vocabulary.tokens):
        say(line)
    if empty := [split for split, found in splits.items() if not len(found.labels)]:
        side = f" and temporal_split.cutoff={config.temporal_split.cutoff}" if cutoff else ""
        raise ValueError(f"labels={config.labels}{side}: no label is left in {', '.join(empty)}; expected some in each")
    return prepared, splits


def read_cutoff(config: ConfigDict) -> np.datetime64 | None:
    """Returns the cutoff date of `temporal_split`, or None; raises a ValueError if its keys are not a date and days."""
    chosen = config.temporal_split
    if not chosen.cutoff:
        return None
    try:
        cutoff = np.datetime64(datetime.date.fromisoformat(chosen.cutoff), "us")
    except ValueError as error:
        raise ValueError(f"temporal_split.cutoff: found {chosen.cutoff}; expected a date such as 2015-01-01") from error
    needed = "classification" in config
    if not (chosen.outcome_window_days > 0 or (chosen.outcome_window_days == 0 and not needed)):
        why = ", the outcome's window, as labels of train must be known by the cutoff" if needed else ""
        raise ValueError(
            f"temporal_split.outcome_window_days: found {chosen.outcome_window_days:g}; expected days above 0{why}"
        )
    return cutoff


def keep_side(
    config: ConfigDict, labels: Labels, split: str, cutoff: np.datetime64, say: Callable[[str], None]
) -> Labels:
    """Keeps the labels on a split's side of the cutoff; reports how many are left out, or censored at the cutoff."""
    chosen = config.temporal_split
    kept, censored = label_data.temporal_split(labels, split, cutoff, chosen.outcome_window_days)
    gap = f"{chosen.outcome_window_days:g} days before " if chosen.outcome_window_days else ""
    side = f"before {chosen.cutoff}" if split == "held_out" else f"from {gap}{chosen.cutoff} on"
    left_out = len(labels) - len(kept)
    say(f"out of time, {split}: {left_out:,} labels {side} left out, {censored:,} times to event censored there")
    return kept


def keep_few(config: ConfigDict, labels: Labels, say: Callable[[str], None]) -> Labels:
    """Keeps the labels of at most `train.max_patients` patients, those with the lowest hash of their id."""
    patients, most = np.unique(labels.subject_ids), config.train.max_patients
    if not 0 < most < len(patients):
        return labels
    say(f"train: {most:,} of {len(patients):,} labelled patients are taken (train.max_patients)")
    chosen = patients[np.argsort(hash_integers(patients), kind="stable")[:most]]
    return labels.take(np.isin(labels.subject_ids, chosen))


def kinds(config: ConfigDict) -> tuple[str, ...]:
    """Returns the kinds of labels that a recipe accepts."""
    return ("survival",) if "survival" in config else ("binary", "multiclass", "multilabel")


def check_kind(config: ConfigDict, labels: Labels) -> None:
    """Raises a ValueError if labels are not of the kind of the recipe."""
    if labels.kind not in kinds(config):
        wanted = "survival" if labels.kind == "survival" else "classification"
        raise ValueError(f"labels: found {labels.kind} labels in {config.labels}; use --config=configs/{wanted}.py")


def match(labels: Labels, lives: pl.DataFrame, say: Callable[[str], None]) -> Labels:
    """Keeps the labels of subjects who are in the data, born and alive; reports how many are left out and why."""
    kept, left_out = label_data.match_subjects(labels, lives)
    if left_out:
        say("labels left out: " + ", ".join(f"{number:,} {reason}" for reason, number in left_out.items()))
    return labels.take(kept)


def report_rest(number: int, found: list[LabeledHistories], say: Callable[[str], None]) -> None:
    """Reports how many of `number` labels have no history: no known code before, or a patient of another split."""
    rest = number - sum(len(part.labels) for part in found)
    if rest:
        say(f"labels left out: {rest:,} without an event before that the model reads, or of patients in other splits")


def warn_of_few(labels: Labels, say: Callable[[str], None]) -> None:
    """Warns of outcomes with no or few held-out patients, or with only one class, as their metrics are omitted."""
    if lack := label_data.describe_lack(labels, "held_out"):
        events, classes = "C-index, AUC and calibration slope need events", "AUROC, AUPRC and slope need both classes"
        say(f"warning: {lack}; {events if labels.kind == 'survival' else classes}: left out, as are its figures")
    for name, came in zip(labels.names, labels.outcomes().T, strict=True):
        if 0 < (patients := len(np.unique(labels.subject_ids[came]))) < FEW:
            say(f"warning: patients of held_out with '{name}': {patients}; no interval of so few can be relied on")
