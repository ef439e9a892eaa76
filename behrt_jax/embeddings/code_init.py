"""Initial code embeddings from a user's table."""

import logging
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl
from flax.traverse_util import flatten_dict, unflatten_dict

from behrt_jax.data import events
from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary
from behrt_jax.models.embeddings import CODE_TABLE

logger = logging.getLogger(__name__)


def check(source: str, dim: int) -> None:
    """Raises a ValueError if the table named by `code_init` cannot be used, before any other work."""
    if source:
        read_table(Path(source), dim)


def make_rows(source: str, vocabulary: Vocabulary, dim: int) -> np.ndarray | None:
    """Makes the initial rows of the code table.

    Args:
      source: the key `code_init`: empty, or the file of a table.
      vocabulary: V tokens.
      dim: D, `model.embedding_dim`.

    Returns:
      (V, D) float32 with variance 1 over all known rows and mean 0 in each feature; NaN in the rows of tokens to
      initialise at random. None if all tokens are.

    Raises:
      ValueError: the user's table cannot be used, or has no code of the vocabulary.
    """
    if not source:
        return None
    codes, values = read_table(Path(source), dim)
    places = np.array([vocabulary.ids.get(code, -1) for code in codes])
    rows = np.full((len(vocabulary), values.shape[1]), np.nan, np.float32)
    rows[places[places >= NUM_SPECIAL]] = values[places >= NUM_SPECIAL]
    unused = places < NUM_SPECIAL
    note = f"{unused.sum():,} codes of the table are not in the vocabulary"
    logger.info(f"code_init={source}: {_coverage(rows, vocabulary)}; {note}")
    if unused.all():
        raise ValueError(
            f"code_init={source}: none of its {len(codes):,} codes is in the vocabulary; expected names "
            f"as in the data, such as {vocabulary.codes[0]}"
        )
    known = _known(rows)
    rows[known] -= rows[known].mean(axis=0)
    rows = _narrow(rows, known, dim)
    spread = rows[known].std()
    if not spread > 0:
        raise ValueError(f"code_init={source}: all its rows are alike; expected embeddings that differ")
    rows[known] /= spread
    return rows


def _known(rows: np.ndarray) -> np.ndarray:
    return np.isfinite(rows[:, 0])


def _coverage(rows: np.ndarray, vocabulary: Vocabulary) -> str:
    known = _known(rows)[NUM_SPECIAL:]
    share = np.asarray(vocabulary.counts)[known].sum() / sum(vocabulary.counts)
    coverage = f"{known.sum():,} of {len(known):,} codes begin with a row ({share:.1%} of what train holds)"
    return f"{coverage}, the others at random"


def _narrow(rows: np.ndarray, known: np.ndarray, dim: int) -> np.ndarray:
    """Reduces rows wider than `dim` to their `dim` directions of largest variance (PCA)."""
    if rows.shape[1] <= dim:
        return rows
    narrow = np.full((len(rows), dim), np.nan, np.float32)
    _, _, directions = np.linalg.svd(rows[known], full_matrices=False)
    components = rows[known] @ directions[:dim].T
    narrow[known] = np.pad(components, ((0, 0), (0, dim - components.shape[1])))
    return narrow


def place(variables: Any, rows: np.ndarray) -> Any:
    """Returns variables with the known rows in the code table, scaled like its random rows."""
    flat: dict[str, Any] = flatten_dict(variables, sep="/")
    (path,) = [path for path in flat if f"/{path}".endswith(CODE_TABLE)]
    known, table = np.isfinite(rows), flat[path]
    values = jnp.where(known, np.where(known, rows, 0.0) * table.std(), table)
    return unflatten_dict({**flat, path: values.astype(table.dtype)}, sep="/")


def read_table(file: Path, dim: int) -> tuple[list[str], np.ndarray]:
    """Reads a table of embeddings.

    Args:
      file: Parquet with `code`, unique strings, and `embedding`, lists of numbers of one width.
      dim: the minimum width.

    Returns:
      n codes and their (n, width) float32 embeddings.

    Raises:
      ValueError: the file is not such a table.
    """
    where = f"code_init={file}"
    if not file.is_file():
        raise ValueError(f"{where}: no such file; expected Parquet with columns code and embedding")
    table = events.read_metadata(file)
    for name in ("code", "embedding"):
        if name not in table.columns:
            raise ValueError(f"{where}: column '{name}' is missing (found {', '.join(table.columns)})")
    kind = table.schema["embedding"]
    if not (isinstance(kind, pl.List | pl.Array) and kind.inner.is_numeric()):  # pyright: ignore
        raise ValueError(f"{where}: column 'embedding' is {kind}; expected lists of numbers, such as List(Float32)")
    if table.schema["code"] != pl.String:
        raise ValueError(f"{where}: column 'code' is {table.schema['code']}; expected strings")
    repeats, nameless = table.height - table["code"].n_unique(), table["code"].null_count()
    if not table.height or nameless or repeats:
        raise ValueError(
            f"{where}: holds {table.height:,} rows, {repeats:,} of them of a code seen before, {nameless:,} without a "
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
