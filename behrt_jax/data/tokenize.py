"""Tokenizes the events of shards in sequence order, after a first pass that validates them and gathers statistics."""

import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import dataset, events, files, sexes, values, visits, vocabulary
from behrt_jax.data.config import DataConfig


def read_events(shard: Path, config: DataConfig) -> pl.DataFrame:
    """Reads a shard with `visit_name:String`, the visit that each event names, or null; and `unit:String` if used."""
    units = values.UNIT_COLUMNS if config.value_encoding == "continuous" or config.unit_table else ()
    texts = (values.TEXT,) if config.text_values else ()
    found = events.read_shard(shard, (*visits.visit_columns(config.visits), *units, *texts))
    if texts and values.TEXT not in found.columns:
        found = found.with_columns(pl.lit(None, pl.String).alias(values.TEXT))
    found = values.add_units(found) if units else found
    found = values.convert_units(found, values.read_unit_table(config.unit_table)) if config.unit_table else found
    return visits.name_visits(found, config.visits, shard)


def select_codes(found: pl.DataFrame, config: DataConfig) -> pl.DataFrame:
    """Keeps the events whose codes pass the include and exclude patterns of the config."""
    names = found["code"].unique().to_list()
    return found.filter(pl.col("code").is_in(events.matching_codes(names, config.codes_include, config.codes_exclude)))


def tokenize(
    shard: Path,
    config: DataConfig,
    fitted: values.FittedValues,
    members: pl.DataFrame,
    visits_named: bool,
    counts: collections.Counter | None = None,
    parents: dict[str, str] | None = None,
    known: frozenset[str] = frozenset(),
) -> pl.DataFrame:
    """Reads one shard of MEDS events and returns its tokens in sequence order.

    Args:
      shard: the file.
      config: the data section of a recipe.
      fitted: how values become tokens.
      members: the subjects to keep, in its column `subject_id`.
      visits_named: whether any event of the data set names its visit; if none does, calendar days are visits.
      counts: if given, counts of events left out are added to it.
      parents: the replacement of tokens, from `roll_up`.
      known: the tokens of a given vocabulary, which stay unchanged if they record a sex.

    Returns:
      `subject_id, token, backed_off:Boolean (by parents), visit:Int32 (-1 for static rows), minutes:Int32 (since birth
      or, if unknown, the first event), microseconds:Int32 (beyond the minute), has_birth:Boolean, origin:Int32 (the
      zero of `minutes`, in minutes since 2000)` and, with continuous values, `value:Float32 (null where a token has
      none)`; sorted by subject, static rows first, then by visit and time.
    """
    shard_events = read_events(shard, config).join(members, on="subject_id", how="semi", maintain_order="left")
    birth = events.birth_times(pl.col("time"))
    shard_events = shard_events.with_columns(
        has_birth=birth.is_not_null(),
        began=pl.coalesce(birth, pl.col("time").min().over("subject_id")).dt.truncate("1m"),
    )
    num_subjects, num_without_visit = shard_events["subject_id"].n_unique(), 0
    if visits_named and config.events_without_visit == "leave_out":
        named_events = shard_events.filter(pl.col("time").is_null() | pl.col("visit_name").is_not_null())
        num_without_visit, shard_events = shard_events.height - named_events.height, named_events
    timed_events = visits.assign_visits(shard_events, config.visits, config.visit_gap_hours)
    tokens = vocabulary.add_tokens(visits.number_visits(select_codes(timed_events, config)), fitted.edges)
    tokens = values.add_texts(tokens, fitted.texts) if config.text_values else tokens
    static_tokens = select_codes(shard_events.filter(pl.col("time").is_null()), config)
    static_tokens = static_tokens.with_columns(visit=pl.lit(-1, pl.Int32), token="code")
    value = ("value",) if config.value_encoding == "continuous" else ()
    tokens = values.add_values(tokens, fitted.scales) if value else tokens
    columns = ("subject_id", "token", "visit", "has_birth", *_times())
    merged = pl.concat([static_tokens.select(columns), tokens.select(*columns, *value)], how="diagonal")
    merged = _rename(merged.sort("subject_id", maintain_order=True), config, parents or {}, known)
    num_read = static_tokens.height + tokens.height
    with_visits = merged.filter(pl.col("visit").max().over("subject_id") >= 0)
    if counts is not None:
        counts.update(values.count_values(tokens) if value else {})
        counts["events_without_visit"] += num_without_visit
        counts["events_left_out_by_pattern"] += shard_events.height - num_read
        counts["repeats_left_out"] += num_read - merged.height
        counts["events_of_patients_without_codes"] += merged.height - with_visits.height
        counts["patients_without_codes"] += num_subjects - with_visits["subject_id"].n_unique()
        counts["visits"] += with_visits.filter(pl.col("visit") >= 0).select("subject_id", "visit").unique().height
    return with_visits


def _times() -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """Returns the expressions of `minutes`, `microseconds` and `origin`; see `tokenize`."""
    elapsed = pl.col("time") - pl.col("began")
    minutes, origin = elapsed.dt.total_minutes(), (pl.col("began") - events.EPOCH).dt.total_minutes()
    remainder = elapsed.dt.total_microseconds() % dataset.MICROSECONDS
    return (
        minutes.fill_null(0).cast(pl.Int32).alias("minutes"),
        remainder.fill_null(0).cast(pl.Int32).alias("microseconds"),
        origin.cast(pl.Int32).alias("origin"),
    )


def _rename(tokens: pl.DataFrame, config: DataConfig, parents: dict[str, str], known: frozenset[str]) -> pl.DataFrame:
    """Gives codes of a sex one form, replaces tokens by their parents, and then drops repeats in a visit.

    A parent gets no value, as a value of one measurement means nothing for another.
    """
    token, names = pl.col("token"), tokens["token"].unique().to_list()
    tokens = tokens.with_columns(token=token.replace(sexes.canonical(names, config.sex_codes, known)))
    tokens = tokens.with_columns(token=token.replace(parents), backed_off=token.is_in(list(parents)))
    value = ["value"] if "value" in tokens.columns else []
    tokens = tokens.with_columns(pl.when(~pl.col("backed_off")).then(pl.col(value)))
    if config.unique_codes_in_visit:
        return tokens.unique(["subject_id", "visit", "token", *value], keep="first", maintain_order=True)
    return tokens


def split_patients(tokens: pl.DataFrame) -> Iterator[dict]:
    """Yields an example for `dataset.PatientTokens` per patient, from the result of `tokenize` with `code_id` added."""
    matrix = tokens.select("code_id", *dataset.TOKEN_COLUMNS[1:]).to_numpy().astype(np.int32)
    if "value" in tokens.columns:
        bits = tokens["value"].fill_null(np.nan).to_numpy().view(np.int32)
        matrix = np.column_stack([matrix, bits])
    subjects, starts = np.unique(tokens["subject_id"].to_numpy(), return_index=True)
    has_birth, origin = tokens["has_birth"].to_numpy(), tokens["origin"].to_numpy()
    for subject, start, stop in zip(subjects, starts, np.append(starts, len(matrix))[1:], strict=True):
        yield {
            "subject_id": int(subject),
            "has_birth": bool(has_birth[start]),
            "origin": int(origin[start]),
            "tokens": matrix[start:stop],
        }


MOST_SAMPLES = 16  # samples of numeric values, one per shard, to hold in memory before merging them


@dataclasses.dataclass(frozen=True)
class ShardStats:
    """Statistics from one pass over the validated shards.

    Attributes:
      splits: `subject_id, split` of every subject in the data.
      shards: for each split, the shards that hold its subjects.
      samples: numeric values of the train split, to fit their bins.
      visits_named: whether any event names its visit.
      unmatched: patterns of the config that match no code of the data.
      codes: all codes of the data.
      texts: counts of texts of the train split (see `values.count_texts`), one table a shard.
    """

    splits: pl.DataFrame
    shards: dict[str, list[Path]]
    samples: list[pl.DataFrame]
    visits_named: bool
    unmatched: list[str]
    codes: frozenset[str]
    texts: list[pl.DataFrame]


def gather_shard_stats(config: DataConfig, counts: collections.Counter, fit: bool) -> ShardStats:
    """Validates every shard and gathers its statistics, with those of values to `fit` on; adds to `counts`."""
    with_samples = config.value_encoding == "continuous" or config.num_bins > 0
    shards, *num_skipped = events.find_files(config.path)
    counts.update(dict(zip(("hidden_files", "other_files"), num_skipped, strict=True)))
    split_table = events.read_splits(config.path)
    by_folder = events.splits_of_folders(config.path, shards) if split_table is None else {}
    counts.update(splits_made=int(split_table is None and not by_folder), splits_of_folders=int(bool(by_folder)))
    subjects: dict[Path, np.ndarray] = {}
    parts, samples, texts, columns, all_codes, num_named = [], [], [], set(), set(), 0
    unmatched = dict.fromkeys((*config.codes_include, *config.codes_exclude))
    for shard in shards:
        shard_events = read_events(shard, config)
        if shard_events.height:
            names = files.scan_parquet(shard).collect_schema().names()
            visits.check_column(names, config.visits, shard)
            columns.update(names)
        num_named += shard_events["visit_name"].count()
        subjects[shard] = shard_events["subject_id"].unique().sort().to_numpy()
        parts.append(splits_of_shard(subjects[shard], by_folder.get(shard), split_table))
        _count_events(shard_events, parts[-1], counts)
        codes = shard_events["code"].unique().to_list()
        all_codes.update(codes)
        unmatched = [pattern for pattern in unmatched if not events.matching_codes(codes, (pattern,), ())]
        if not fit:
            continue
        train = parts[-1].filter(pl.col("split") == "train")
        train_events = select_codes(shard_events.join(train, on="subject_id", how="semi"), config)
        if config.text_values:
            texts.append(values.count_texts(train_events))
        if with_samples:
            keys = values.KEYS if config.value_encoding == "continuous" else ("code",)
            samples.append(vocabulary.sample_values(train_events, keys))
            samples = samples if len(samples) < MOST_SAMPLES else [vocabulary.merge_samples(samples, keys)]
    events.check_disjoint(subjects)
    counts["empty_visit_columns"] = 0 if num_named else _count_empty(config, columns)
    splits = pl.concat(parts)
    if missing := splits["split"].null_count():
        raise ValueError(
            f"{Path(config.path) / events.SPLITS_FILE}: {missing} of {splits.height} subjects of the data have no "
            "split; add them, or remove the file to have splits made from a hash of the subject id"
        )
    members = {split: splits.filter(split=split)["subject_id"].to_numpy() for split in events.SPLITS}
    by_split = {
        split: [shard for shard, ids in subjects.items() if np.isin(ids, members[split]).any()] for split in members
    }
    return ShardStats(splits, by_split, samples, num_named > 0, list(unmatched), frozenset(all_codes), texts)


def splits_of_shard(ids: np.ndarray, of_folder: str | None, listed: pl.DataFrame | None) -> pl.DataFrame:
    """Returns the split of each subject: from the splits file, else the shard's folder, else a hash."""
    if listed is not None:
        return pl.DataFrame({"subject_id": ids}).join(listed, on="subject_id", how="left", maintain_order="left")
    if of_folder:
        return pl.DataFrame({"subject_id": ids}).with_columns(split=pl.lit(of_folder))
    return events.make_splits(ids)


def _count_empty(config: DataConfig, columns: set[str]) -> int:
    """Returns the number of visit columns, all of them empty; raises a ValueError if the recipe names one."""
    empty = columns.intersection(visits.visit_columns(config.visits))
    if empty and config.visits != "auto":
        raise ValueError(
            f"data.visits: column '{config.visits}' names no visit in any row of {config.path}; name another column, "
            "or use auto, day or gap"
        )
    return len(empty)


def _count_events(found: pl.DataFrame, splits: pl.DataFrame, counts: collections.Counter) -> None:
    """Adds the counts of a shard that do not depend on the selection of codes."""
    death = pl.col("time").filter(pl.col("code") == events.DEATH).min().over("subject_id")
    is_birth = (pl.col("code") == events.BIRTH) & pl.col("time").is_not_null()
    other_events = found.join(splits.filter(~pl.col("split").is_in(events.SPLITS)), on="subject_id", how="semi")
    counts["events"] += found.height
    counts["events_after_death"] += found.select((pl.col("time") > death).sum()).item()
    counts["events_in_other_splits"] += other_events.height
    counts["patients_in_other_splits"] += other_events["subject_id"].n_unique()
    counts["patients_without_birth"] += found["subject_id"].n_unique() - found.filter(is_birth)["subject_id"].n_unique()
