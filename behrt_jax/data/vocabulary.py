"""The vocabulary: token ids by descending count and quantile bins of numeric values, fitted on the train split only."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from behrt_jax.data.hashing import hash_integers

SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")
PAD, CLS, SEP, MASK, UNK = range(len(SPECIAL_TOKENS))
NUM_SPECIAL = len(SPECIAL_TOKENS)
_VALUES_PER_CODE = 10_000
MIN_BIN_PATIENTS = 10  # minimum number of patients with values in a bin with rounded edges


class ValueScale(NamedTuple):
    """Median and robust standard deviation of the values of a code and unit, and the number of their train patients."""

    median: float
    deviation: float
    patients: int


ValueScales = dict[str, dict[str, ValueScale]]  # by code and unit


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Token ids: the special tokens, then codes by descending count in train.

    Attributes:
      codes: the token of each id from `NUM_SPECIAL` on.
      counts: occurrences of each token in train, after removing repeats in a visit.
      patients: number of train patients with each token.
      value_edges: the inner bin edges of codes whose numeric value becomes part of the token.
      value_scales: the scales of continuous values, by code and unit ("" if unknown).
    """

    codes: tuple[str, ...]
    counts: tuple[int, ...]
    patients: tuple[int, ...]
    value_edges: dict[str, tuple[float, ...]]
    value_scales: ValueScales = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return NUM_SPECIAL + len(self.codes)

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token, including special tokens."""
        return {token: index for index, token in enumerate((*SPECIAL_TOKENS, *self.codes))}

    @property
    def count_of(self) -> dict[str, int]:
        """Occurrences in train by code."""
        return dict(zip(self.codes, self.counts, strict=True))

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens by id, including special tokens."""
        return (*SPECIAL_TOKENS, *self.codes)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the meaning of ids; checkpoints are checked against it."""
        scales = [self.value_scales] if self.value_scales else []  # those without keep their fingerprint of before
        text = json.dumps([self.codes, self.counts, self.patients, self.value_edges, *scales], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(self, tokens: pl.Series) -> pl.Series:
        """Maps tokens to ids (int32); unknown tokens become `[UNK]`."""
        return tokens.replace_strict(
            list(self.codes), list(range(NUM_SPECIAL, len(self))), default=UNK, return_dtype=pl.Int32
        )

    def save(self, file: Path) -> None:
        """Writes the vocabulary as JSON."""
        entries = list(zip(self.codes, self.counts, self.patients, strict=True))
        content = {"special_tokens": SPECIAL_TOKENS, "codes": entries, "value_edges": self.value_edges}
        content |= {"value_scales": self.value_scales} if self.value_scales else {}
        text = json.dumps({**content, "fingerprint": self.fingerprint}, indent=1, ensure_ascii=False)
        file.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> "Vocabulary":
        """Reads a vocabulary that `save` wrote; a ValueError if it is missing, malformed, or changed since."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            codes, counts, patients = zip(*content["codes"], strict=True)
            edges = {code: tuple(values) for code, values in content["value_edges"].items()}
            scales = {
                code: {unit: ValueScale(*scale) for unit, scale in units.items()}
                for code, units in content.get("value_scales", {}).items()
            }
            vocabulary = cls(codes, counts, patients, edges, scales)
            matches = vocabulary.fingerprint == content["fingerprint"]
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: not a vocabulary file ({error}); restore it or prepare the data again"
            ) from error
        if not matches:
            raise ValueError(
                f"{file}: changed since it was written (its fingerprint differs); restore the original file"
            )
        return vocabulary


EMPTY = Vocabulary((), (), (), {})


def sample_values(events: pl.DataFrame, keys: tuple[str, ...] = ("code",)) -> pl.DataFrame:
    """Samples numeric values to fit quantiles, at most 10,000 per code (or other `keys`), by a hash.

    Returns:
      The keys and `values:List(Float32), subjects:List(Int64), hashes:List(UInt64), patients:UInt32`, one row per code;
      `subjects` are the subjects of the sampled values, `patients` counts the subjects of all values.
    """
    numeric = events.filter(pl.col("numeric_value").is_finite() & pl.col("time").is_not_null())
    subjects, times, values = (
        numeric[name].to_physical().to_numpy() for name in ("subject_id", "time", "numeric_value")
    )
    hashed = numeric.with_columns(
        _hash=pl.Series(hash_integers(subjects, times, values.view("int32")), dtype=pl.UInt64)
    )
    first = pl.col("_hash").arg_sort().head(_VALUES_PER_CODE)
    return hashed.group_by(keys).agg(
        values=pl.col("numeric_value").gather(first),
        subjects=pl.col("subject_id").gather(first),
        hashes=pl.col("_hash").gather(first),
        patients=pl.col("subject_id").n_unique(),
    )


def merge_samples(samples: list[pl.DataFrame], keys: tuple[str, ...] = ("code",)) -> pl.DataFrame:
    """Merges the samples of shards, whose subjects are disjoint, into one sample of the same form and size."""
    combined = pl.concat(samples)
    values = (
        combined.explode("values", "subjects", "hashes", empty_as_null=False)
        .sort(*keys, "hashes", "values")
        .group_by(keys, maintain_order=True)
        .agg(pl.col("values", "subjects", "hashes").head(_VALUES_PER_CODE))
    )
    return values.join(combined.group_by(keys).agg(pl.col("patients").sum()), on=keys, maintain_order="left")


def fit_value_edges(
    samples: list[pl.DataFrame], num_bins: int, min_patients: int, digits: int = 0
) -> dict[str, tuple[float, ...]]:
    """Fits the inner edges of `num_bins` quantile bins for each code with values from `min_patients` of train or more.

    Equal edges are kept once, so a code with few distinct values has fewer bins. Below 2 bins, there are none.

    Args:
      samples: the results of `sample_values` for the shards of the train split.
      num_bins: number of quantile bins.
      min_patients: fewest train patients with a value of a code.
      digits: significant digits to round edges to, so that no edge is a patient's exact value; neighbouring bins are
        then merged until each holds values of at least `MIN_BIN_PATIENTS` and `min_patients` patients. 0 keeps exact
        quantiles.
    """
    samples = [sample for sample in samples if sample.height]
    if not samples or num_bins < 2:
        return {}
    quantiles = [index / num_bins for index in range(1, num_bins)]
    merged = merge_samples(samples).filter(pl.col("patients") >= min_patients).sort("code")
    exact = merged.select(
        pl.col("values").list.eval(pl.element().quantile(q, "linear")).list.first().alias(str(q)) for q in quantiles
    )
    edges = {code: tuple(sorted(set(row))) for code, row in zip(merged["code"], exact.iter_rows(), strict=True)}
    if not digits:
        return edges
    fewest, columns = max(MIN_BIN_PATIENTS, min_patients), zip(merged["values"], merged["subjects"], strict=True)
    coarse = {
        code: coarsen_edges(exact, values.to_numpy(), subjects.to_numpy(), digits, fewest)
        for (code, exact), (values, subjects) in zip(edges.items(), columns, strict=True)
    }
    return {code: rounded for code, rounded in coarse.items() if rounded}


def round_edge(edge: float, digits: int) -> float:
    """Rounds to `digits` significant digits: 137.2 to 140 with two."""
    return float(f"{edge:.{digits}g}")


def coarsen_edges(
    edges: tuple[float, ...], values: np.ndarray, subjects: np.ndarray, digits: int, fewest: int
) -> tuple[float, ...]:
    """Rounds edges and merges neighbouring bins until each holds values of `fewest` subjects; () if none can."""
    rounded = sorted({round_edge(edge, digits) for edge in edges})
    bins = np.searchsorted(np.array(rounded, np.float32), values, side="left")
    owners = np.unique(subjects, return_inverse=True)[1]
    present = np.zeros((len(rounded) + 1, owners.max() + 1), bool)
    present[bins, owners] = True
    coarse, in_group = [], np.zeros(present.shape[1], bool)
    for edge, in_bin in zip(rounded, present, strict=False):
        in_group = in_group | in_bin
        if in_group.sum() >= fewest:
            coarse.append(edge)
            in_group = np.zeros_like(in_group)
    if (in_group | present[-1]).sum() < fewest:
        del coarse[-1:]
    return tuple(coarse)


def add_tokens(events: pl.DataFrame, value_edges: dict[str, tuple[float, ...]]) -> pl.DataFrame:
    """Adds the column `token`: the code, or the code and its value's bin (`LAB//51087//Q7`) if it has edges.

    A value equal to an edge is in the bin below it. Edges are compared as float32, like the stored values, so that 0.7
    equals an edge of 0.7.
    """
    codes = [code for code in events["code"].unique().to_list() if code in value_edges]
    if not codes:
        return events.with_columns(token=pl.col("code"))
    width = max(len(value_edges[code]) for code in codes)
    padded = [[code, *value_edges[code], *[None] * (width - len(value_edges[code]))] for code in codes]
    names = [f"_edge{index}" for index in range(width)]
    table = pl.DataFrame(padded, schema={"code": pl.String, **dict.fromkeys(names, pl.Float32)}, orient="row")
    joined = events.join(table, on="code", how="left", maintain_order="left")
    quantile = 1 + pl.sum_horizontal(
        [(pl.col("numeric_value") > pl.col(name)).fill_null(False).cast(pl.Int32) for name in names]
    )
    has_bin = pl.col(names[0]).is_not_null() & pl.col("numeric_value").is_finite().fill_null(False)
    token = pl.when(has_bin).then(pl.format("{}//Q{}", "code", quantile)).otherwise("code")
    return joined.with_columns(token=token).drop(names)


def count_tokens(events: pl.DataFrame) -> pl.DataFrame:
    """Counts the tokens of one shard: `token, count, patients`. Subjects of shards are disjoint, so counts add up."""
    return events.group_by("token").agg(count=pl.len(), patients=pl.col("subject_id").n_unique())


def fit_vocabulary(
    counts: list[pl.DataFrame],
    value_edges: dict[str, tuple[float, ...]],
    min_patients: int,
    known: Vocabulary = EMPTY,
    value_scales: ValueScales | None = None,
) -> Vocabulary:
    """Builds the vocabulary from the `count_tokens` of the train shards, or appends new tokens to a `known` one.

    Tokens with fewer train patients than `min_patients` become `[UNK]`: also a privacy threshold. Ids and counts of the
    known vocabulary are kept. Scales of values of codes that become `[UNK]` are left out.

    Raises:
      ValueError: no token reaches the minimum, and `known` is empty.
    """
    total = pl.concat(counts).group_by("token").agg(pl.col("count").sum(), pl.col("patients").sum())
    frequent = total.filter(pl.col("patients") >= min_patients).sort("count", "token", descending=[True, False])
    if not (frequent.height or known.codes):
        raise ValueError(
            f"data.min_patients: none of the {total.height} codes in the train split occurs in {min_patients} patients "
            f"or more (the most frequent: {total['patients'].max() or 0}); lower it, or check data.codes_include "
            "and data.codes_exclude"
        )
    new = frequent.filter(~pl.col("token").is_in(known.codes))
    codes = (*known.codes, *new["token"])
    scales = {code: value_scales[code] for code in codes if code in value_scales} if value_scales else {}
    return Vocabulary(codes, (*known.counts, *new["count"]), (*known.patients, *new["patients"]), value_edges, scales)
