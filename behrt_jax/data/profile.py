"""Profile of a MEDS data set as it is, before any preparation: counts and distributions, each with its patients."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from behrt_jax.data import events, sexes, tokenize, visits, vocabulary
from behrt_jax.data.config import DataConfig
from behrt_jax.data.values import TEXT, UNIT_COLUMNS

OLDEST = 90  # years; older patients are one group, as in rules on de-identified data (HIPAA)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_PARTS = 16  # profiles of shards to hold in memory before merging them
_SEPARATOR = "\x1f"  # between code and unit, in the key of a sample of values


@dataclasses.dataclass(frozen=True)
class Profile:
    """Counts of a data set; those of shards, whose subjects are disjoint, add up.

    Attributes:
      findings: `name, events, patients` of each kind of event or patient.
      splits: `split, patients`; the split is null for patients that the splits file lacks.
      sexes: `sex, patients`; F, M, or an empty string if unknown.
      spreads: `name, value:Int64, count, lows, highs`: how often each value of a quantity occurs, and the number of
        patients whose lowest and whose highest value it is.
      codes: `code, events, patients, numbers, texts, without_unit`; the last three count events.
      samples: a sample of the values of each code and unit; see `vocabulary.sample_values`.
      has_units: whether any shard has a column of units.
    """

    findings: pl.DataFrame
    splits: pl.DataFrame
    sexes: pl.DataFrame
    spreads: pl.DataFrame
    codes: pl.DataFrame
    samples: pl.DataFrame
    has_units: bool


def profile_data(config: DataConfig) -> Profile:
    """Profiles a data set in one pass over its shards; holds one shard and the counts in memory.

    Raises:
      ValueError: a file cannot be read, or one of its columns is missing or of another type.
    """
    shards = events.find_shards(config.path)
    listed = events.read_splits(config.path)
    by_folder = events.splits_of_folders(config.path, shards) if listed is None else {}
    parts = []
    for shard in tqdm(shards, unit="shard", leave=False):
        parts.append(_profile_shard(shard, config, by_folder.get(shard), listed))
        parts = parts if len(parts) < MOST_PARTS else [_merge(parts)]
    return _merge(parts)


def count_patients(path: str | Path, groups: dict[str, list[str]]) -> dict[str, int]:
    """Counts the patients with any code of each group."""
    totals = dict.fromkeys(groups, 0)
    for shard in events.find_shards(path):
        pairs = events.read_shard(shard, check_rows=False).select("subject_id", "code").unique().drop_nulls()
        for name, codes in groups.items():
            totals[name] += pairs.filter(pl.col("code").is_in(codes))["subject_id"].n_unique()
    return totals


def spread(name: str, values: pl.DataFrame) -> pl.DataFrame:
    """Counts the values of a quantity, given `subject_id, value`; see `Profile.spreads`."""
    values = values.select("subject_id", pl.col("value").cast(pl.Int64)).drop_nulls()
    ends = values.group_by("subject_id").agg(low=pl.col("value").min(), high=pl.col("value").max())
    counts = values.group_by("value").agg(count=pl.len())
    for column in ("low", "high"):
        patients = ends.group_by(value=column).agg(pl.len().alias(f"{column}s"))
        counts = counts.join(patients, on="value", how="left")
    kinds = {each: pl.Int64 for each in ("value", "count", "lows", "highs")}
    return counts.fill_null(0).select(pl.lit(name).alias("name"), *kinds).cast(kinds)  # pyright: ignore


def quantiles(spread: pl.DataFrame, floor: int) -> dict[str, int | None]:
    """Returns quantiles of one quantity between its smallest and its largest value.

    `floor` patients have a value at or below each, and as many one at or above it; a quantile without them is None.
    """
    ordered = spread.sort("value").with_columns(
        total=pl.col("count").cum_sum(),
        below=pl.col("lows").cum_sum(),
        above=pl.col("highs").cum_sum(reverse=True),
    )
    known = (pl.col("below") >= floor) & (pl.col("above") >= floor)
    result: dict[str, int | None] = {"smallest": ordered.filter(known)["value"].min()}  # pyright: ignore
    for share in QUANTILES:
        at = ordered.filter(pl.col("total") >= share * pl.col("count").sum()).head(1)
        result[f"{share:.0%}"] = at.filter(known)["value"].max()  # pyright: ignore
    return {**result, "largest": ordered.filter(known)["value"].max()}  # pyright: ignore


def value_quantiles(profile: Profile, floor: int) -> list[dict]:
    """Returns quantiles of the values of each code and unit with `floor` patients, to two significant digits.

    Quantiles with values of fewer than `floor` patients at or below, or at or above them, are None.
    """
    rows = []
    for key, values, subjects, patients in (
        profile.samples.sort("patients", "code", descending=[True, False])
        .select("code", "values", "subjects", "patients")
        .iter_rows()
    ):
        if patients < floor:
            continue
        code, _, unit = key.partition(_SEPARATOR)
        values, subjects = np.array(values), np.array(subjects)
        row = {"code": code, "unit": unit, "patients": patients}
        for share in QUANTILES:
            at = float(np.quantile(values, share, method="inverted_cdf"))
            sides = (subjects[values <= at], subjects[values >= at])
            enough = min(len(np.unique(side)) for side in sides) >= floor
            row[f"{share:.0%}"] = vocabulary.round_edge(at, 2) if enough else None
        rows.append(row)
    return rows


def _profile_shard(shard: Path, config: DataConfig, of_folder: str | None, listed: pl.DataFrame | None) -> Profile:
    columns = (*visits.visit_columns(config.visits), *UNIT_COLUMNS, TEXT)
    rows = events.read_shard(shard, columns, check_rows=False)
    table = rows.drop_nulls(["subject_id", "code"]).sort("subject_id", "time", nulls_last=False, maintain_order=True)
    unit = next((name for name in UNIT_COLUMNS if name in table.columns), None)
    unit_text = pl.col(unit).cast(pl.String).str.strip_chars() if unit else pl.lit(None, pl.String)
    table = visits.name_visits(table, config.visits, shard).with_columns(
        birth=events.birth_times(pl.col("time")),
        death=pl.col("time").filter(pl.col("code") == events.DEATH).min().over("subject_id"),
        repeated=~pl.struct(table.columns).is_first_distinct(),
        number=pl.col("numeric_value").is_finite().fill_null(False),
        text=pl.col(TEXT).is_not_null() if TEXT in table.columns else pl.lit(False),
        unit=pl.when(unit_text != "").then(unit_text),
    )
    subjects = table["subject_id"].unique().sort().to_numpy()
    splits = tokenize.splits_of_shard(subjects, of_folder, listed)
    without_unit = pl.col("number") & pl.col("unit").is_null()
    codes = table.group_by("code").agg(
        events=pl.len().cast(pl.Int64),
        patients=pl.col("subject_id").n_unique().cast(pl.Int64),
        numbers=pl.col("number").sum().cast(pl.Int64),
        texts=pl.col("text").sum().cast(pl.Int64),
        without_unit=without_unit.sum().cast(pl.Int64),
    )
    keyed = table.filter(~pl.col("repeated")).with_columns(
        code=pl.concat_str("code", pl.lit(_SEPARATOR), pl.col("unit").fill_null(""))
    )
    return Profile(
        findings=_findings(table, rows, without_unit if unit else pl.lit(False)),
        splits=splits.group_by("split").agg(patients=pl.len().cast(pl.Int64)),
        sexes=_count_sexes(table, config),
        spreads=_spreads(table, config),
        codes=codes,
        samples=vocabulary.sample_values(keyed),
        has_units=unit is not None,
    )


def _findings(table: pl.DataFrame, rows: pl.DataFrame, without_unit: pl.Expr) -> pl.DataFrame:
    """Counts kinds of events, and the patients with any; kinds of patients are those of all of their events."""
    is_birth = (pl.col("code") == events.BIRTH) & pl.col("time").is_not_null()
    kinds = {
        "all": pl.lit(True),
        "without a time": pl.col("time").is_null(),
        "that name a visit": pl.col("visit_name").is_not_null(),
        "with a number": pl.col("number"),
        "with a number that is not finite": pl.col("numeric_value").is_not_null() & ~pl.col("number"),
        "with a text": pl.col("text"),
        "with a number without a unit": without_unit,
        "exact duplicates": pl.col("repeated"),
        "before birth": pl.col("time") < pl.col("birth"),
        "after death": pl.col("time") > pl.col("death"),
        "of patients without a birth": ~is_birth.any().over("subject_id"),
        "of patients with a death": pl.col("death").is_not_null(),
        "of patients with more than one birth": is_birth.sum().over("subject_id") > 1,
    }
    parts = []
    for name, kind in kinds.items():
        chosen = table.filter(kind)
        parts.append((name, chosen.height, chosen["subject_id"].n_unique()))
    incomplete = rows.filter(pl.col("subject_id").is_null() | pl.col("code").is_null())
    parts.append(("without a patient or a code", incomplete.height, incomplete["subject_id"].n_unique()))
    schema = {"name": pl.String, "events": pl.Int64, "patients": pl.Int64}
    return pl.DataFrame(parts, schema=schema, orient="row")


def _count_sexes(table: pl.DataFrame, config: DataConfig) -> pl.DataFrame:
    codes = table["code"].unique().to_list()
    sex_of = {code: name[-1] for code, name in sexes.canonical(codes, config.sex_codes).items()}
    recorded = pl.col("code").replace_strict(sex_of, default=None, return_dtype=pl.String)
    last = table.group_by("subject_id").agg(sex=recorded.drop_nulls().last().fill_null(""))
    return last.group_by("sex").agg(patients=pl.len().cast(pl.Int64))


def _spreads(table: pl.DataFrame, config: DataConfig) -> pl.DataFrame:
    """Counts quantities of patients, visits and events; births are neither visits nor events here."""
    lived = table.filter(pl.col("time").is_not_null() & (pl.col("code") != events.BIRTH))
    ages = (pl.col("time") - pl.col("birth")).dt.total_days() / 365.25
    ages = lived.with_columns(value=ages.floor().clip(upper_bound=OLDEST)).filter(pl.col("value") >= 0)
    grouped = visits.assign_visits(lived, config.visits, config.visit_gap_hours).group_by("subject_id", "visit")
    visit_table = grouped.agg(value=pl.len(), start=pl.col("time").min()).sort("subject_id", "start")
    patients = table.select("subject_id").unique()
    num_visits = patients.join(visit_table.group_by("subject_id").agg(value=pl.len()), on="subject_id", how="left")
    gaps = pl.col("start").diff().over("subject_id").dt.total_days()
    days = (pl.col("time").max() - pl.col("time").min()).dt.total_days()
    return pl.concat(
        [
            spread("visits a patient", num_visits.fill_null(0)),
            spread("codes a visit", visit_table),
            spread("days between visits", visit_table.with_columns(value=gaps)),
            spread("days from the first event to the last", lived.group_by("subject_id").agg(value=days)),
            spread("age at events, years", ages),
            spread("age at the last event, years", ages.group_by("subject_id").agg(pl.col("value").max())),
            spread("year of events", lived.with_columns(value=pl.col("time").dt.year())),
        ]
    )


def _merge(parts: list[Profile]) -> Profile:
    def add(name: str, *keys: str) -> pl.DataFrame:
        tables = pl.concat([getattr(part, name) for part in parts])
        return tables.group_by(keys, maintain_order=True).agg(pl.all().sum())

    samples = [part.samples for part in parts if part.samples.height]
    return Profile(
        findings=add("findings", "name"),
        splits=add("splits", "split"),
        sexes=add("sexes", "sex"),
        spreads=add("spreads", "name", "value"),
        codes=add("codes", "code"),
        samples=vocabulary.merge_samples(samples) if samples else parts[0].samples,
        has_units=any(part.has_units for part in parts),
    )
