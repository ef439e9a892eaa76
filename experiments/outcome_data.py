"""The labels of a recipe and the data they belong to: which can be predicted, and what was known at each."""

from collections.abc import Callable

import numpy as np
import polars as pl
from ml_collections import ConfigDict

from behrt_jax.data import dataset, events
from behrt_jax.data import labels as label_files
from behrt_jax.data.config import DataConfig
from behrt_jax.data.labels import Labels
from behrt_jax.data.prepare import Prepared, prepare
from behrt_jax.data.vocabulary import Vocabulary
from experiments.labelled import Labelled, find_histories


def read_splits(
    config: ConfigDict, vocabulary: Vocabulary | None, say: Callable[[str], None]
) -> tuple[Prepared, dict[str, Labelled]]:
    """Reads the labels and the data of a config, the latter in a vocabulary from elsewhere if one is given."""
    labels = label_files.read_labels(config.labels.split(",") if config.labels else (), say)
    check_kind(config, labels)
    prepared = prepare(DataConfig(**config.data), vocabulary, progress=say)
    labels = match(labels, read_lives(config.data.path), say)
    splits = {}
    for split in events.SPLITS:
        splits[split] = find_histories(config, dataset.read(prepared.folder, split), labels, split, say)
    report_rest(labels, list(splits.values()), say)
    return prepared, splits


def kinds(config: ConfigDict) -> tuple[str, ...]:
    """Returns the kinds of labels that a recipe takes."""
    return ("survival",) if "survival" in config else ("binary", "multiclass", "multilabel")


def check_kind(config: ConfigDict, labels: Labels) -> None:
    """Raises a ValueError where labels are not of the recipe's kind."""
    if labels.kind not in kinds(config):
        wanted = "survival" if labels.kind == "survival" else "classification"
        raise ValueError(f"labels: found {labels.kind} labels in {config.labels}; use --config=configs/{wanted}.py")


def read_lives(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads (S,) subject ids, ascending, and their times of birth and death as datetime64[us], NaT where unknown."""
    wanted = (events.BIRTH, events.DEATH)
    found = pl.concat(
        events.read_shard(shard)
        .group_by("subject_id")
        .agg(pl.col("time").filter(pl.col("code") == code).min().alias(code) for code in wanted)
        for shard in events.find_shards(path)
    ).sort("subject_id")
    births, deaths = (found[code].to_numpy().astype("datetime64[us]") for code in wanted)
    return found["subject_id"].to_numpy(), births, deaths


def match(labels: Labels, lives: tuple, say: Callable[[str], None]) -> Labels:
    """Returns the labels of subjects who are in the data, born and alive, and says how many are left out and why."""
    kept, left_out = label_files.match_subjects(labels, *lives)
    if left_out:
        say("labels left out: " + ", ".join(f"{number:,} {reason}" for reason, number in left_out.items()))
    return labels.take(kept)


def report_rest(labels: Labels, found: list[Labelled], say: Callable[[str], None]) -> None:
    """Says how many labels have no history: none of a code that is kept came before, or the split is another."""
    rest = len(labels) - sum(len(part.labels) for part in found)
    if rest:
        say(f"labels left out: {rest:,} without an event before that the model reads, or of patients in other splits")
