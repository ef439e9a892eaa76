"""Preparation: a MEDS data set becomes a vocabulary and a TFDS data set of tokens, cached by a fingerprint."""

import collections
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import dataset, events, visits, vocabulary

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What of a MEDS data set becomes tokens; the section `data` of a recipe.

    Attributes:
      path: the MEDS data set.
      prepared_dir: where prepared data is cached, one folder a fingerprint.
      visits: `auto`, `day`, `gap`, or the name of a visit column (see `visits.visit_column`).
      visit_gap_hours: the pause that starts a new visit with `visits="gap"`.
      codes_include: shell patterns of the codes that enter the sequence.
      codes_exclude: shell patterns of the codes that do not.
      unique_codes_in_visit: keep only the first of a code's repeats within a visit.
      min_patients: codes of fewer train patients become `[UNK]`.
      value_bins: quantile bins of numeric values; below 2, values are left out.
      row_length: L, tokens a row; also the longest window of one patient.
    """

    path: str
    prepared_dir: str
    visits: str
    visit_gap_hours: float
    codes_include: tuple[str, ...]
    codes_exclude: tuple[str, ...]
    unique_codes_in_visit: bool
    min_patients: int
    value_bins: int
    row_length: int

    def __post_init__(self):
        bounds = {"visit_gap_hours": 0.0, "min_patients": 1, "value_bins": 0, "row_length": 8}
        for key, lowest in bounds.items():
            if getattr(self, key) < lowest:
                raise ValueError(f"data.{key}: found {getattr(self, key)}; expected {lowest} or more")

    def fingerprint(self, fitted: str = "") -> str:
        """A digest of the source's files and of the keys that shape prepared data.

        Args:
          fitted: the fingerprint of a vocabulary from elsewhere, if one is used.
        """
        root = Path(self.path)
        shards = events.find_shards(root)
        files = [*shards, *([root / events.SPLITS_FILE] if (root / events.SPLITS_FILE).exists() else [])]
        sources = [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        keys = dataclasses.asdict(self)
        for unrelated in ("path", "prepared_dir", "row_length"):
            del keys[unrelated]
        return hashlib.sha256(json.dumps([FORMAT, sources, keys, fitted], sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Prepared data: the folder, the vocabulary and what was counted on the way."""

    folder: Path
    vocabulary: vocabulary.Vocabulary
    report: dict


def prepare(
    config: DataConfig,
    fitted: vocabulary.Vocabulary | None = None,
    splits: tuple[str, ...] = events.SPLITS,
    progress: Callable[[str], None] = lambda message: None,
) -> Prepared:
    """Prepares a data set, or finds it prepared.

    Args:
      config: the data section of a recipe.
      fitted: the vocabulary of a trained model, for other data than it was trained on; fitted on train if None.
      splits: those that must have patients; others may be empty where `fitted` is given.
      progress: called with a line for each stage.

    Returns:
      The prepared data; `report` counts what was read, left out and cut.

    Raises:
      ValueError: the data set breaks the standard or nothing is left of it; nothing is written then.
    """
    name = f"{Path(config.path).resolve().name}-{config.fingerprint(fitted.fingerprint if fitted else '')}"
    folder = Path(config.prepared_dir) / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
        try:
            _write(config, fitted, splits, scratch, progress)
            if not folder.exists():
                scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    report = json.loads((folder / "report.json").read_text())
    return Prepared(folder, vocabulary.Vocabulary.load(folder / "vocabulary.json"), report)


def _write(config: DataConfig, fitted, needed: tuple[str, ...], folder: Path, progress) -> None:
    counts: collections.Counter = collections.Counter()
    progress(f"reading {config.path}")
    splits, shards_of_split, samples = _survey(config, counts)
    for split in needed:
        if not shards_of_split[split]:
            raise ValueError(
                f"{config.path}: split '{split}' has no patient; expected some in each of {', '.join(needed)}; "
                "check metadata/subject_splits.parquet"
            )
    edges = (
        fitted.value_edges if fitted else vocabulary.fit_value_edges(samples, config.value_bins, config.min_patients)
    )
    if fitted is None:
        progress("fitting the vocabulary on the train split")
        train = splits.filter(pl.col("split") == "train")
        tokens = [tokenize(shard, config, edges, train) for shard in shards_of_split["train"]]
        fitted = vocabulary.fit_vocabulary(
            [vocabulary.count_tokens(part) for part in tokens], edges, config.min_patients
        )
        del tokens
    fitted.save(folder / "vocabulary.json")

    def examples(split: str) -> Iterator[tuple[int, dict]]:
        members = splits.filter(pl.col("split") == split)
        for shard in shards_of_split[split]:
            tokens = tokenize(shard, config, edges, members, counts)
            tokens = tokens.with_columns(code_id=fitted.encode(tokens["token"]))
            counts[f"tokens/{split}"] += tokens.height
            counts[f"unknown/{split}"] += int((tokens["code_id"] == vocabulary.UNK).sum())
            for example in _patients(tokens):
                counts[f"patients/{split}"] += 1
                yield example["subject_id"], example
        if not counts[f"patients/{split}"]:
            raise ValueError(
                f"{config.path}: no patient of split '{split}' has a code left in the sequence; check data.codes_include "
                "and data.codes_exclude"
            )

    progress("writing the prepared data")
    present = [split for split in events.SPLITS if shards_of_split[split]]
    dataset.write(folder, {split: lambda split=split: examples(split) for split in present})
    if counts["splits_made"]:
        splits.write_parquet(folder / "subject_splits.parquet")
    counts["codes"] = len(fitted.codes)
    counts.update({f"{what}/{split}": 0 for what in ("patients", "tokens", "unknown") for split in events.SPLITS})
    (folder / "report.json").write_text(json.dumps(dict(sorted(counts.items())), indent=1))


def _survey(config: DataConfig, counts: collections.Counter):
    """Validates every shard; returns the splits, the shards that each split needs and samples of numeric values."""
    listed = events.read_splits(config.path)
    columns = _visit_columns(config)
    subjects: dict[Path, np.ndarray] = {}
    samples: list[pl.DataFrame] = []
    for shard in events.find_shards(config.path):
        found = events.read_shard(shard, columns)
        visits.visit_column(found.columns, config.visits)
        subjects[shard] = found["subject_id"].unique().to_numpy()
        counts["events"] += found.height
        counts["events_after_death"] += found.select((pl.col("time") > _death_times()).sum()).item()
        counts["patients_without_birth"] += found.select(
            pl.col("subject_id").n_unique() - pl.col("subject_id").filter(pl.col("code") == events.BIRTH).n_unique()
        ).item()
        if config.value_bins > 1:
            train = (
                found
                if listed is None
                else found.join(listed.filter(pl.col("split") == "train"), on="subject_id", how="semi")
            )
            if listed is None:
                made = events.make_splits(subjects[shard]).filter(pl.col("split") == "train")
                train = found.join(made, on="subject_id", how="semi")
            samples.append(vocabulary.sample_values(_select_codes(train, config)))
    events.check_disjoint(subjects)
    everyone = np.concatenate(list(subjects.values()))
    splits = events.make_splits(everyone) if listed is None else listed
    counts["splits_made"] = int(listed is None)
    joined = pl.DataFrame({"subject_id": everyone}).join(splits, on="subject_id", how="left")
    if missing := joined["split"].null_count():
        raise ValueError(
            f"{Path(config.path) / events.SPLITS_FILE}: {missing} of {everyone.size} subjects of the data have no split; "
            "add them, or remove the file to have splits made from a hash of the subject id"
        )
    counts["patients_in_other_splits"] = joined.filter(~pl.col("split").is_in(events.SPLITS)).height
    owner = {split: set(joined.filter(pl.col("split") == split)["subject_id"]) for split in events.SPLITS}
    needed = {
        split: [shard for shard, ids in subjects.items() if not owner[split].isdisjoint(ids.tolist())]
        for split in events.SPLITS
    }
    return joined, needed, samples


def _death_times() -> pl.Expr:
    return pl.col("time").filter(pl.col("code") == events.DEATH).min().over("subject_id")


def _visit_columns(config: DataConfig) -> tuple[str, ...]:
    return visits.VISIT_COLUMNS if config.visits == "auto" else (config.visits,)


def _select_codes(found: pl.DataFrame, config: DataConfig) -> pl.DataFrame:
    names = found["code"].unique().to_list()
    return found.filter(pl.col("code").is_in(events.matching_codes(names, config.codes_include, config.codes_exclude)))


def tokenize(
    shard: Path,
    config: DataConfig,
    value_edges: dict[str, tuple[float, ...]],
    members: pl.DataFrame,
    counts: collections.Counter | None = None,
) -> pl.DataFrame:
    """Reads one shard as tokens in sequence order.

    Args:
      shard: a parquet file of MEDS events.
      config: the data section of a recipe.
      value_edges: bins of numeric values.
      members: the subjects to keep, by `subject_id`.
      counts: if given, what was left out is added to it.

    Returns:
      `subject_id, token, visit:Int32, moment:Int32 (-1 for static rows), minutes:Int32 (since birth, or since the
      first event where no birth is known), has_birth:Boolean`, by subject, static rows first, then by visit and time.
    """
    found = events.read_shard(shard, _visit_columns(config)).join(
        members, on="subject_id", how="semi", maintain_order="left"
    )
    birth = events.birth_times(pl.col("time"))
    found = found.with_columns(
        has_birth=birth.is_not_null(), origin=pl.coalesce(birth, pl.col("time").min().over("subject_id"))
    )
    static = found.filter(pl.col("time").is_null()).with_columns(visit=pl.lit(None, pl.UInt32))
    timed = visits.assign_visits(found, config.visits, config.visit_gap_hours)
    kept_timed, kept_static = _select_codes(timed, config), _select_codes(static, config)
    tokens = vocabulary.add_tokens(visits.number_visits(kept_timed), value_edges)
    static_tokens = kept_static.with_columns(
        visit=pl.lit(-1, pl.Int32), moment=pl.lit(-1, pl.Int32), token=pl.col("code")
    )
    minutes = (pl.col("time") - pl.col("origin")).dt.total_minutes().fill_null(0).cast(pl.Int32)
    columns = ("subject_id", "token", "visit", "moment", minutes.alias("minutes"), "has_birth")
    merged = pl.concat([static_tokens.select(columns), tokens.select(columns)]).sort("subject_id", maintain_order=True)
    read = merged.height
    if config.unique_codes_in_visit:
        merged = merged.unique(["subject_id", "visit", "token"], keep="first", maintain_order=True)
    with_visits = merged.filter(pl.col("visit").max().over("subject_id") >= 0)
    if counts is not None:
        counts["events_left_out_by_pattern"] += found.height - read
        counts["repeats_left_out"] += read - merged.height
        counts["patients_without_codes"] += found["subject_id"].n_unique() - with_visits["subject_id"].n_unique()
        counts["visits"] += with_visits.filter(pl.col("visit") >= 0).select("subject_id", "visit").unique().height
    return with_visits


def _patients(tokens: pl.DataFrame) -> Iterator[dict]:
    matrix = tokens.select("code_id", "visit", "moment", "minutes").to_numpy().astype(np.int32)
    subjects, starts = np.unique(tokens["subject_id"].to_numpy(), return_index=True)
    has_birth = tokens["has_birth"].to_numpy()
    for subject, start, stop in zip(subjects, starts, [*starts[1:], len(matrix)], strict=True):
        yield {"subject_id": int(subject), "has_birth": bool(has_birth[start]), "tokens": matrix[start:stop]}
