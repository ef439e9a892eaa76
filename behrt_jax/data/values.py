"""Values of events beside quantile bins: continuous ones, scaled per code and unit, and frequent texts.

Both are fitted on the train split only.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from behrt_jax.data import files
from behrt_jax.data.vocabulary import MIN_BIN_PATIENTS, ValueScale, ValueScales, merge_samples, round_edge

UNIT_COLUMNS = ("unit", "units", "unit_source_value", "valueuom")  # the first that a shard has holds units of values
KEYS = ("code", "unit")
UNIT_TABLE = ("code", "unit", "factor", "offset", "new_unit")
TEXT = "text_value"
LONGEST_TEXT = 200  # characters; a longer text is a note, which is no value
LIMIT = 10.0  # values beyond this many robust standard deviations from the median are clipped
# Quantile ranges and their width in standard deviations of a normal distribution. The second is for codes whose
# interquartile range is 0.
RANGES = ((0.25, 0.75, 1.349), (0.05, 0.95, 3.290))


class FittedValues(NamedTuple):
    """How values become tokens, as fitted on train.

    Attributes:
      edges: quantile bins of numeric values, by code.
      scales: of continuous values, with `data.value_encoding="continuous"`.
      texts: tokens of texts, with `data.text_values`; an event with another text has the token of its code.
    """

    edges: dict[str, tuple[float, ...]]
    scales: ValueScales = {}
    texts: frozenset[str] = frozenset()


def add_units(events: pl.DataFrame) -> pl.DataFrame:
    """Adds the column `unit:String`, the unit of each value, from the first of `UNIT_COLUMNS`; empty if unknown."""
    name = next((name for name in UNIT_COLUMNS if name in events.columns), None)
    text = pl.col(name).cast(pl.String).str.strip_chars().fill_null("") if name else pl.lit("")
    return events.with_columns(unit=text)


def read_unit_table(file: str) -> pl.DataFrame:
    """Reads the table of `data.unit_table`: `code, unit (empty: unknown), factor, offset (0 if absent), new_unit`.

    Raises:
      ValueError: the file cannot be read, lacks a column or a cell, has a factor of 0 or less, or repeats a code and
        unit.
    """
    table = files.read_text_table(Path(file), "data.unit_table")
    if missing := set(UNIT_TABLE) - set(table.columns) - {"offset"}:
        raise ValueError(f"{file}: columns {', '.join(table.columns)}; expected also {', '.join(sorted(missing))}")
    table = table if "offset" in table.columns else table.with_columns(offset=pl.lit("0"))
    table = table.select(*UNIT_TABLE).with_columns(pl.col("factor", "offset").cast(pl.Float64, strict=False))
    table = table.with_columns(pl.col("unit").fill_null(""))
    if not (table["factor"] > 0).fill_null(False).all() or table.null_count().sum_horizontal().item():
        raise ValueError(f"{file}: expected a code, a factor above 0, a number as offset and a new unit in each row")
    if repeated := table.height - table.unique(KEYS).height:
        raise ValueError(f"{file}: {repeated} rows repeat a code and unit; expected each once")
    return table


def convert_units(events: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    """Converts numbers of codes and units of a unit table, and names their new `unit`."""
    joined = events.join(table, on=KEYS, how="left", maintain_order="left")
    number = pl.col("numeric_value") * pl.col("factor") + pl.col("offset")
    converted = joined.with_columns(
        numeric_value=pl.coalesce(number.cast(pl.Float32), "numeric_value"), unit=pl.coalesce("new_unit", "unit")
    )
    return converted.drop("factor", "offset", "new_unit")


def fit_scales(samples: list[pl.DataFrame], min_patients: int, digits: int = 0) -> ValueScales:
    """Fits a median and a robust standard deviation for each code and unit.

    The deviation is the interquartile range / 1.349, or the range from 5% to 95% / 3.29 where that is 0. Codes and
    units with both ranges 0 are left out.

    Args:
      samples: the results of `vocabulary.sample_values` by `KEYS` for the shards of the train split.
      min_patients: fewest train patients with a value of a code and unit.
      digits: significant digits to round deviations to. Medians are rounded to the last of these digits, so that they
        are no patient's exact value, and at least `MIN_BIN_PATIENTS` patients are needed. 0 keeps exact numbers.
    """
    samples = [sample for sample in samples if sample.height]
    if not samples:
        return {}
    fewest = max(min_patients, MIN_BIN_PATIENTS) if digits else min_patients
    scales: ValueScales = {}
    for row in merge_samples(samples, KEYS).filter(pl.col("patients") >= fewest).sort(KEYS).iter_rows(named=True):
        values = np.array(row["values"], np.float64)
        deviations = (np.subtract(*np.quantile(values, (high, low))) / width for low, high, width in RANGES)
        if deviation := next((float(each) for each in deviations if each > 0), 0.0):
            scale = ValueScale(float(np.median(values)), deviation, row["patients"])
            scales.setdefault(row["code"], {})[row["unit"]] = round_scale(scale, digits) if digits else scale
    return scales


def round_scale(scale: ValueScale, digits: int) -> ValueScale:
    """Rounds the deviation to `digits` significant digits, and the median to the last of them.

    >>> round_scale(ValueScale(138.23, 3.456, 99), 2)
    ValueScale(median=138.2, deviation=3.5, patients=99)
    """
    deviation = round_edge(scale.deviation, digits)
    median = round(scale.median, digits - 1 - math.floor(math.log10(deviation)))
    return scale._replace(median=median, deviation=deviation)


def add_values(events: pl.DataFrame, scales: ValueScales) -> pl.DataFrame:
    """Adds the column `value:Float32`: (numeric value - median) / deviation, clipped to `LIMIT` on both sides.

    It is null where an event has no finite number, or where its code and unit have no scale.
    """
    rows = [(code, unit, *scale[:2]) for code, units in scales.items() for unit, scale in units.items()]
    names = ("_median", "_deviation")
    schema = {**dict.fromkeys(KEYS, pl.String), **dict.fromkeys(names, pl.Float64)}
    joined = events.join(pl.DataFrame(rows, schema=schema, orient="row"), on=KEYS, how="left", maintain_order="left")
    scaled = (pl.col("numeric_value").cast(pl.Float64) - pl.col("_median")) / pl.col("_deviation")
    value = pl.when(pl.col("numeric_value").is_finite()).then(scaled.clip(-LIMIT, LIMIT)).cast(pl.Float32)
    return joined.with_columns(value=value).drop(names)


def count_values(events: pl.DataFrame) -> dict[str, int]:
    """Counts the finite numbers of the result of `add_values`: kept, clipped, and left out for lack of a scale."""
    numbers = events.filter(pl.col("numeric_value").is_finite())
    return {
        "values": numbers["value"].count(),
        "values_clipped": int((numbers["value"].abs() == LIMIT).sum()),
        "values_left_out": numbers["value"].null_count(),
    }


def text_tokens() -> pl.Expr:
    """Returns the expression of the token of an event with a text and no number, `CODE//TEXT`; null for others."""
    text = pl.col(TEXT).cast(pl.String).str.strip_chars()
    is_text = text.str.len_chars().is_between(1, LONGEST_TEXT) & ~pl.col("numeric_value").is_finite().fill_null(False)
    return pl.when(is_text).then(pl.format("{}//{}", "code", text))


def count_texts(events: pl.DataFrame) -> pl.DataFrame:
    """Counts the patients of each text of a code in a shard: `token, patients`."""
    found = events.filter(pl.col("time").is_not_null()).select("subject_id", token=text_tokens()).drop_nulls()
    return found.group_by("token").agg(patients=pl.col("subject_id").n_unique())


def choose_texts(counts: list[pl.DataFrame], min_patients: int) -> frozenset[str]:
    """Returns the tokens of texts that `min_patients` patients of train have, from the counts of its shards."""
    if not counts:
        return frozenset()
    total = pl.concat(counts).group_by("token").agg(pl.col("patients").sum())
    return frozenset(total.filter(pl.col("patients") >= min_patients)["token"])


def add_texts(events: pl.DataFrame, known: frozenset[str]) -> pl.DataFrame:
    """Replaces `token` by that of the event's text where it is known."""
    tokens = events.select(text_tokens()).to_series()
    return events.with_columns(token=pl.when(tokens.is_in(list(known))).then(tokens).otherwise("token"))
