"""A user's table of embeddings of codes, read and checked."""

from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import events


def read_table(file: Path, dim: int) -> tuple[list[str], np.ndarray]:
    """Reads a table of embeddings.

    Args:
      file: Parquet with `code`, a string, each once, and `embedding`, lists of numbers of one width.
      dim: the least width.

    Returns:
      n codes and (n, width) float32.

    Raises:
      ValueError: it is not such a table.
    """
    where = f"code_init={file}"
    if not file.is_file():
        raise ValueError(f"{where}: no such file; expected skip_gram, or Parquet with columns code and embedding")
    table = events.read_metadata(file)
    for name in ("code", "embedding"):
        if name not in table.columns:
            raise ValueError(f"{where}: column '{name}' is missing (found {', '.join(table.columns)})")
    kind = table.schema["embedding"]
    if not (isinstance(kind, pl.List | pl.Array) and kind.inner.is_numeric()):  # pyright: ignore
        raise ValueError(f"{where}: column 'embedding' is {kind}; expected lists of numbers, such as List(Float32)")
    if table.schema["code"] != pl.String:
        raise ValueError(f"{where}: column 'code' is {table.schema['code']}; expected strings")
    doubled, nameless = table.height - table["code"].n_unique(), table["code"].null_count()
    if not table.height or nameless or doubled:
        raise ValueError(
            f"{where}: holds {table.height:,} rows, {doubled:,} of them of a code seen before, {nameless:,} without a "
            "code; expected each code once"
        )
    if nulls := table["embedding"].null_count():
        raise ValueError(f"{where}: {nulls:,} rows are null in 'embedding'; remove them, their codes begin at random")
    lists = table["embedding"].cast(pl.List(pl.Float32))
    widths = lists.list.len().unique().sort().to_list()
    if len(widths) > 1 or widths[0] < dim:
        raise ValueError(
            f"{where}: embeddings of width {', '.join(map(str, widths))}; expected one width of model.embedding_dim="
            f"{dim} or more; set --config.model.embedding_dim to that of the table"
        )
    values = lists.explode(empty_as_null=True).to_numpy().reshape(table.height, -1)
    if broken := int((~np.isfinite(values)).any(axis=1).sum()):
        raise ValueError(f"{where}: {broken:,} rows hold NaN, infinity or null; correct them, or remove these codes")
    return table["code"].to_list(), values
