"""The vocabulary: token ids by falling count, fitted on the train split alone, and quantile bins of numeric values."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import polars as pl

from behrt_jax.data.hashing import hash_integers

SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")
PAD, CLS, SEP, MASK, UNK = range(len(SPECIAL_TOKENS))
NUM_SPECIAL = len(SPECIAL_TOKENS)
_VALUES_PER_CODE = 10_000


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Token ids: the special tokens, then codes by falling count in train.

    Attributes:
      codes: the token of each id from `NUM_SPECIAL` on.
      counts: occurrences of each in train, after repeats in a visit were removed.
      patients: how many train patients have each.
      value_edges: for codes whose numeric value becomes part of the token, the inner bin edges.
    """

    codes: tuple[str, ...]
    counts: tuple[int, ...]
    patients: tuple[int, ...]
    value_edges: dict[str, tuple[float, ...]]

    def __len__(self) -> int:
        return NUM_SPECIAL + len(self.codes)

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """Token to id, special tokens included."""
        return {token: index for index, token in enumerate((*SPECIAL_TOKENS, *self.codes))}

    @property
    def tokens(self) -> tuple[str, ...]:
        """Id to token, special tokens included."""
        return (*SPECIAL_TOKENS, *self.codes)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A SHA-256 over everything that gives ids their meaning; checkpoints are checked against it."""
        text = json.dumps([self.codes, self.counts, self.patients, self.value_edges], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(self, tokens: pl.Series) -> pl.Series:
        """Maps tokens to ids (int32); what is not in the vocabulary becomes `[UNK]`."""
        return tokens.replace_strict(
            list(self.codes), list(range(NUM_SPECIAL, len(self))), default=UNK, return_dtype=pl.Int32
        )

    def save(self, file: Path) -> None:
        """Writes the vocabulary as JSON."""
        entries = list(zip(self.codes, self.counts, self.patients, strict=True))
        content = {"special_tokens": SPECIAL_TOKENS, "codes": entries, "value_edges": self.value_edges}
        text = json.dumps({**content, "fingerprint": self.fingerprint}, indent=1, ensure_ascii=False)
        file.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> "Vocabulary":
        """Reads a vocabulary that `save` wrote.

        Raises:
          ValueError: the file is missing, is not such a vocabulary, or its content does not match its fingerprint.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            codes, counts, patients = zip(*content["codes"], strict=True)
            edges = {code: tuple(values) for code, values in content["value_edges"].items()}
            vocabulary = cls(codes, counts, patients, edges)
            matches = vocabulary.fingerprint == content["fingerprint"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: not a vocabulary file ({error}); restore it or prepare the data again"
            ) from error
        if not matches:
            raise ValueError(
                f"{file}: changed since it was written (its fingerprint differs); restore the original file"
            )
        return vocabulary


EMPTY = Vocabulary((), (), (), {})


def sample_values(events: pl.DataFrame) -> pl.DataFrame:
    """Returns numeric values per code for the fit of quantiles, at most 10,000 a code, chosen by a hash.

    Returns:
      `code, values:List(Float32), hashes:List(UInt64), patients:UInt32`, one row a code.
    """
    numeric = events.filter(pl.col("numeric_value").is_finite() & pl.col("time").is_not_null())
    subjects, times, values = (
        numeric[name].to_physical().to_numpy() for name in ("subject_id", "time", "numeric_value")
    )
    hashed = numeric.with_columns(
        _hash=pl.Series(hash_integers(subjects, times, values.view("int32")), dtype=pl.UInt64)
    )
    first = pl.col("_hash").arg_sort().head(_VALUES_PER_CODE)
    return hashed.group_by("code").agg(
        values=pl.col("numeric_value").gather(first),
        hashes=pl.col("_hash").gather(first),
        patients=pl.col("subject_id").n_unique(),
    )


def merge_samples(samples: list[pl.DataFrame]) -> pl.DataFrame:
    """Merges the samples of shards, whose subjects are disjoint, to a sample of the same form and size."""
    together = pl.concat(samples)
    values = (
        together.explode("values", "hashes", empty_as_null=False)
        .sort("code", "hashes", "values")
        .group_by("code", maintain_order=True)
        .agg(pl.col("values", "hashes").head(_VALUES_PER_CODE))
    )
    return values.join(together.group_by("code").agg(pl.col("patients").sum()), on="code", maintain_order="left")


def fit_value_edges(samples: list[pl.DataFrame], num_bins: int, min_patients: int) -> dict[str, tuple[float, ...]]:
    """Fits the inner edges of `num_bins` quantile bins for each code with values from enough patients.

    Equal edges are kept once, so a code with few distinct values has fewer bins.
    """
    samples = [sample for sample in samples if sample.height]
    if not samples or num_bins < 2:
        return {}
    quantiles = [index / num_bins for index in range(1, num_bins)]
    edges = (
        merge_samples(samples)
        .filter(pl.col("patients") >= min_patients)
        .select(
            "code",
            *[
                pl.col("values").list.eval(pl.element().quantile(q, "linear")).list.first().alias(str(q))
                for q in quantiles
            ],
        )
        .sort("code")
    )
    return {row[0]: tuple(sorted(set(row[1:]))) for row in edges.iter_rows()}


def add_tokens(events: pl.DataFrame, value_edges: dict[str, tuple[float, ...]]) -> pl.DataFrame:
    """Adds the column `token`: the code, or the code and its value's bin (`LAB//51087//Q7`) where edges are known."""
    codes = [code for code in events["code"].unique().to_list() if code in value_edges]
    if not codes:
        return events.with_columns(token=pl.col("code"))
    width = max(len(value_edges[code]) for code in codes)
    padded = [[code, *value_edges[code], *[None] * (width - len(value_edges[code]))] for code in codes]
    names = [f"_edge{index}" for index in range(width)]
    table = pl.DataFrame(padded, schema={"code": pl.String, **dict.fromkeys(names, pl.Float64)}, orient="row")
    joined = events.join(table, on="code", how="left", maintain_order="left")
    quantile = 1 + pl.sum_horizontal(
        [(pl.col("numeric_value") > pl.col(name)).fill_null(False).cast(pl.Int32) for name in names]
    )
    has_bin = pl.col(names[0]).is_not_null() & pl.col("numeric_value").is_finite().fill_null(False)
    token = pl.when(has_bin).then(pl.format("{}//Q{}", "code", quantile)).otherwise("code")
    return joined.with_columns(token=token).drop(names)


def count_tokens(events: pl.DataFrame) -> pl.DataFrame:
    """Counts the tokens of one shard: `token, count, patients`. Shards hold disjoint subjects, so counts add up."""
    return events.group_by("token").agg(count=pl.len(), patients=pl.col("subject_id").n_unique())


def fit_vocabulary(
    counts: list[pl.DataFrame],
    value_edges: dict[str, tuple[float, ...]],
    min_patients: int,
    known: Vocabulary = EMPTY,
) -> Vocabulary:
    """Builds the vocabulary from the counts of the train shards, or adds what another does not know to its end.

    Args:
      counts: what `count_tokens` gave for each shard of the train split.
      value_edges: of all codes.
      min_patients: tokens of fewer train patients are left to `[UNK]`; also a privacy floor.
      known: a vocabulary whose ids and counts are kept.

    Raises:
      ValueError: no token reaches the minimum, and none is known.
    """
    total = pl.concat(counts).group_by("token").agg(pl.col("count").sum(), pl.col("patients").sum())
    kept = total.filter(pl.col("patients") >= min_patients).sort("count", "token", descending=[True, False])
    if not (kept.height or known.codes):
        raise ValueError(
            f"data.min_patients: none of the {total.height} codes in the train split occurs in {min_patients} patients "
            f"or more (the most frequent: {total['patients'].max() or 0}); lower it, or check data.codes_include "
            "and data.codes_exclude"
        )
    new = kept.filter(~pl.col("token").is_in(known.codes))
    return Vocabulary(
        (*known.codes, *new["token"]), (*known.counts, *new["count"]), (*known.patients, *new["patients"]), value_edges
    )
