"""Preparation: a MEDS data set becomes a vocabulary and a TFDS data set of tokens, cached by a fingerprint."""

import collections
import dataclasses
import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import dataset, events, visits, vocabulary

FORMAT = 2
MOST_SAMPLES = 16  # samples of numeric values, one a shard, that are held before they are merged


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
        for key in ("codes_include", "codes_exclude"):
            if isinstance(getattr(self, key), str):
                raise ValueError(f"data.{key}: found one string; expected a tuple of patterns, such as ('LAB//*',)")
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


@dataclasses.dataclass(frozen=True)
class Survey:
    """What one pass over the validated shards found.

    Attributes:
      splits: `subject_id, split` of every subject in the data.
      shards: for each split, the shards that hold subjects of it.
      samples: numeric values of the train split, for the fit of their bins.
    """

    splits: pl.DataFrame
    shards: dict[str, list[Path]]
    samples: list[pl.DataFrame]


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
    prepared = _load(folder)
    if prepared is None:
        try:
            prepared = _prepare(config, fitted, splits, folder, progress)
        except OSError as error:
            raise ValueError(
                f"{folder.parent}: cannot write the prepared data ({error}); free space there, or name a folder that "
                "can be written in data.prepared_dir"
            ) from error
    return prepared


def _load(folder: Path) -> Prepared | None:
    """Reads what `_prepare` wrote; None where there is nothing or it was cut short."""
    try:
        report = json.loads((folder / "report.json").read_text())
        return Prepared(folder, vocabulary.Vocabulary.load(folder / "vocabulary.json"), report)
    except (OSError, ValueError):
        return None


def _prepare(config: DataConfig, fitted, needed: tuple[str, ...], folder: Path, progress) -> Prepared:
    """Reads the data set, then writes `folder` in one move."""
    counts: collections.Counter = collections.Counter()
    progress(f"reading {config.path}")
    survey = _survey(config, counts, with_samples=fitted is None and config.value_bins > 1)
    needed = needed if fitted else tuple(dict.fromkeys(("train", *needed)))
    for split in needed:
        if not survey.shards[split]:
            raise ValueError(
                f"{config.path}: split '{split}' has no patient; expected some in each of {', '.join(needed)}; "
                f"{'add patients or' if counts['splits_made'] else 'correct'} {events.SPLITS_FILE}"
            )
    if fitted is None:
        progress("fitting the vocabulary on the train split")
        edges = vocabulary.fit_value_edges(survey.samples, config.value_bins, config.min_patients)
        parts = [vocabulary.count_tokens(tokens) for tokens in _tokenized(survey, "train", config, edges)]
        fitted = vocabulary.fit_vocabulary(parts, edges, config.min_patients)
    progress("writing the prepared data")
    examples = _first_examples(survey, config, fitted, needed, counts)
    return Prepared(folder, fitted, _write(folder, examples, survey, fitted, counts))


def _write(folder: Path, examples: dict[str, Iterator], survey: Survey, fitted, counts) -> dict:
    """Writes prepared data beside `folder` and moves it there; returns the report."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        dataset.write(scratch, examples)
        if counts["splits_made"]:
            survey.splits.write_parquet(scratch / "subject_splits.parquet")
        fitted.save(scratch / "vocabulary.json")
        counts["codes"] = len(fitted.codes)
        counts.update({f"{what}/{split}": 0 for what in ("patients", "tokens", "unknown") for split in events.SPLITS})
        report = dict(sorted(counts.items()))
        (scratch / "report.json").write_text(json.dumps(report, indent=1))
        if _load(folder) is None:  # no other process was faster
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


def _survey(config: DataConfig, counts: collections.Counter, with_samples: bool) -> Survey:
    """Validates every shard and counts its events."""
    listed = events.read_splits(config.path)
    counts["splits_made"] = int(listed is None)
    subjects: dict[Path, np.ndarray] = {}
    samples: list[pl.DataFrame] = []
    for shard in events.find_shards(config.path):
        found = events.read_shard(shard, _visit_columns(config))
        visits.visit_column(list(pl.read_parquet_schema(shard)), config.visits, shard)
        subjects[shard] = found["subject_id"].unique().sort().to_numpy()
        splits = events.make_splits(subjects[shard]) if listed is None else listed
        _count_events(found, splits, counts)
        if with_samples:
            train = found.join(splits.filter(pl.col("split") == "train"), on="subject_id", how="semi")
            samples.append(vocabulary.sample_values(_select_codes(train, config)))
            samples = samples if len(samples) < MOST_SAMPLES else [vocabulary.merge_samples(samples)]
    events.check_disjoint(subjects)
    splits = _splits_of_all(config, np.concatenate(list(subjects.values())), listed)
    shards = {}
    for split in events.SPLITS:
        members = splits.filter(pl.col("split") == split)["subject_id"].to_numpy()
        shards[split] = [shard for shard, ids in subjects.items() if np.isin(ids, members).any()]
    return Survey(splits, shards, samples)


def _splits_of_all(config: DataConfig, subject_ids: np.ndarray, listed: pl.DataFrame | None) -> pl.DataFrame:
    """Returns the split of each subject, as listed or else made from a hash."""
    if listed is None:
        return events.make_splits(subject_ids)
    splits = pl.DataFrame({"subject_id": subject_ids}).join(listed, on="subject_id", how="left", maintain_order="left")
    if missing := splits["split"].null_count():
        raise ValueError(
            f"{Path(config.path) / events.SPLITS_FILE}: {missing} of {splits.height} subjects of the data have no "
            "split; add them, or remove the file to have splits made from a hash of the subject id"
        )
    return splits


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


def _tokenized(survey: Survey, split: str, config: DataConfig, edges, counts=None) -> Iterator[pl.DataFrame]:
    """Reads the shards of a split as tokens, one at a time."""
    members = survey.splits.filter(pl.col("split") == split)
    return (tokenize(shard, config, edges, members, counts) for shard in survey.shards[split])


def _first_examples(survey: Survey, config: DataConfig, fitted, needed, counts) -> dict[str, Iterator]:
    """Returns a generator of examples for each split that has any.

    Raises:
      ValueError: a split that is needed has no patient with a code left.
    """
    present = {}
    for split in events.SPLITS:
        examples = _examples(survey, split, config, fitted, counts)
        first = next(examples, None)
        if first is not None:
            present[split] = itertools.chain([first], examples)
        elif split in needed:
            raise ValueError(
                f"{config.path}: no patient of split '{split}' has a code left in the sequence; check "
                "data.codes_include and data.codes_exclude"
            )
    return present


def _examples(survey: Survey, split: str, config: DataConfig, fitted, counts) -> Iterator[tuple[int, dict]]:
    """Yields each patient of a split as tokens, and counts them."""
    for tokens in _tokenized(survey, split, config, fitted.value_edges, counts):
        tokens = tokens.with_columns(code_id=fitted.encode(tokens["token"]))
        counts[f"tokens/{split}"] += tokens.height
        counts[f"unknown/{split}"] += int((tokens["code_id"] == vocabulary.UNK).sum())
        for example in _patients(tokens):
            counts[f"patients/{split}"] += 1
            yield example["subject_id"], example


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
        counts["events_of_patients_without_codes"] += merged.height - with_visits.height
        counts["patients_without_codes"] += found["subject_id"].n_unique() - with_visits["subject_id"].n_unique()
        counts["visits"] += with_visits.filter(pl.col("visit") >= 0).select("subject_id", "visit").unique().height
    return with_visits


def _patients(tokens: pl.DataFrame) -> Iterator[dict]:
    matrix = tokens.select("code_id", "visit", "moment", "minutes").to_numpy().astype(np.int32)
    subjects, starts = np.unique(tokens["subject_id"].to_numpy(), return_index=True)
    has_birth = tokens["has_birth"].to_numpy()
    for subject, start, stop in zip(subjects, starts, np.append(starts, len(matrix))[1:], strict=True):
        yield {"subject_id": int(subject), "has_birth": bool(has_birth[start]), "tokens": matrix[start:stop]}
