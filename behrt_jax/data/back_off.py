"""Back-off: a code that a vocabulary does not know is read as the nearest parent that it knows."""

from pathlib import Path

import polars as pl

from behrt_jax.data import events
from behrt_jax.data.vocabulary import Vocabulary


def find_parents(path: str | Path, known: Vocabulary) -> dict[str, str]:
    """Finds what to read codes as that a vocabulary does not know.

    Parents are those of `parent_codes` in `metadata/codes.parquet`, over any number of levels. Only a token without a
    value stands for another code, as a value of one measurement says nothing of another.

    Args:
      path: a MEDS data set.
      known: the vocabulary of a trained model.

    Returns:
      Code to the nearest ancestor that is known; of several as near the most frequent one, then the first by name.
      Empty where the data set names no parents.

    Raises:
      ValueError: the file cannot be read, or a column of it is missing or of another type.
    """
    links = events.read_codes(path, "parent_codes").rename({"parent_codes": "parent"})
    links = links.explode("parent", empty_as_null=False).drop_nulls()
    nearest = pl.DataFrame({"parent": known.codes, "target": known.codes, "count": known.counts})
    links = links.join(nearest, left_on="code", right_on="parent", how="anti")
    found: dict[str, str] = {}
    while nearest.height:  # one level further from the known codes each time; no code is reached twice
        reached = links.join(nearest, on="parent").sort("count", "target", descending=[True, False])
        reached = reached.unique("code", keep="first", maintain_order=True)
        found.update(zip(reached["code"], reached["target"], strict=True))
        links = links.join(reached, on="code", how="anti")
        nearest = reached.select(pl.col("code").alias("parent"), "target", "count")
    return found
