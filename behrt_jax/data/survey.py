"""The first pass over a data set: every shard is validated and counted before anything is written."""

import collections
import dataclasses
from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import events, files, tokens, visits, vocabulary
from behrt_jax.data.config import DataConfig

MOST_SAMPLES = 16  # samples of numeric values, one a shard, that are held before they are merged


@dataclasses.dataclass(frozen=True)
class Survey:
    """What one pass over the validated shards found.

    Attributes:
      splits: `subject_id, split` of every subject in the data.
      shards: for each split, the shards that hold subjects of it.
      samples: numeric values of the train split, for the fit of their bins.
      visits_named: whether any event names its visit.
      unmatched: patterns of the config that no code of the data matches.
    """

    splits: pl.DataFrame
    shards: dict[str, list[Path]]
    samples: list[pl.DataFrame]
    visits_named: bool
    unmatched: list[str]


def survey_shards(config: DataConfig, counts: collections.Counter, with_samples: bool) -> Survey:
    """Validates every shard and counts its events."""
    shards, *left_out = events.find_files(config.path)
    counts.update(dict(zip(("hidden_files", "other_files"), left_out, strict=True)))
    listed = events.read_splits(config.path)
    of_folders = events.splits_of_folders(config.path, shards) if listed is None else {}
    counts.update(splits_made=int(listed is None and not of_folders), splits_of_folders=int(bool(of_folders)))
    subjects: dict[Path, np.ndarray] = {}
    parts, samples, columns, num_named = [], [], set(), 0
    unmatched = dict.fromkeys((*config.codes_include, *config.codes_exclude))
    for shard in shards:
        found = tokens.read_events(shard, config)
        if found.height:
            names = files.scan_parquet(shard).collect_schema().names()
            visits.check_column(names, config.visits, shard)
            columns.update(names)
        num_named += found["visit_name"].count()
        subjects[shard] = found["subject_id"].unique().sort().to_numpy()
        parts.append(_splits_of_shard(subjects[shard], of_folders.get(shard), listed))
        _count_events(found, parts[-1], counts)
        codes = found["code"].unique().to_list()
        unmatched = [pattern for pattern in unmatched if not events.matching_codes(codes, (pattern,), ())]
        if with_samples:
            train = found.join(parts[-1].filter(pl.col("split") == "train"), on="subject_id", how="semi")
            samples.append(vocabulary.sample_values(tokens.select_codes(train, config)))
            samples = samples if len(samples) < MOST_SAMPLES else [vocabulary.merge_samples(samples)]
    events.check_disjoint(subjects)
    counts["empty_visit_columns"] = 0 if num_named else _count_empty(config, columns)
    splits = pl.concat(parts)
    if missing := splits["split"].null_count():
        raise ValueError(
            f"{Path(config.path) / events.SPLITS_FILE}: {missing} of {splits.height} subjects of the data have no "
            "split; add them, or remove the file to have splits made from a hash of the subject id"
        )
    by_split = {}
    for split in events.SPLITS:
        members = splits.filter(pl.col("split") == split)["subject_id"].to_numpy()
        by_split[split] = [shard for shard, ids in subjects.items() if np.isin(ids, members).any()]
    return Survey(splits, by_split, samples, num_named > 0, list(unmatched))


def _splits_of_shard(ids: np.ndarray, of_folder: str | None, listed: pl.DataFrame | None) -> pl.DataFrame:
    """Returns the split of each subject: as listed, of the shard's folder, or else made from a hash."""
    if listed is not None:
        return pl.DataFrame({"subject_id": ids}).join(listed, on="subject_id", how="left", maintain_order="left")
    return (
        pl.DataFrame({"subject_id": ids}).with_columns(split=pl.lit(of_folder))
        if of_folder
        else events.make_splits(ids)
    )


def _count_empty(config: DataConfig, columns: set[str]) -> int:
    """Returns how many columns could name visits, where none of them does; a ValueError if the recipe names it."""
    empty = columns.intersection(visits.visit_columns(config.visits))
    if empty and config.visits != "auto":
        raise ValueError(
            f"data.visits: column '{config.visits}' names no visit in any row of {config.path}; name another column, "
            "or use auto, day or gap"
        )
    return len(empty)


def _count_events(found: pl.DataFrame, splits: pl.DataFrame, counts: collections.Counter) -> None:
    """Adds a shard's counts that no later choice of codes changes."""
    death = pl.col("time").filter(pl.col("code") == events.DEATH).min().over("subject_id")
    is_birth = (pl.col("code") == events.BIRTH) & pl.col("time").is_not_null()
    elsewhere = found.join(splits.filter(~pl.col("split").is_in(events.SPLITS)), on="subject_id", how="semi")
    counts["events"] += found.height
    counts["events_after_death"] += found.select((pl.col("time") > death).sum()).item()
    counts["events_in_other_splits"] += elsewhere.height
    counts["patients_in_other_splits"] += elsewhere["subject_id"].n_unique()
    counts["patients_without_birth"] += found["subject_id"].n_unique() - found.filter(is_birth)["subject_id"].n_unique()
