"""Code embeddings: nearest neighbours, how often they share a group, and a PPMI-SVD baseline."""

from typing import Any

import numpy as np
import scipy.sparse.linalg
from flax.traverse_util import flatten_dict

from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary
from behrt_jax.metrics.bootstrap import PerTargetScores
from behrt_jax.models.embeddings import CODE_TABLE

QUERIES_AT_A_TIME = 1024  # bounds the memory to this many times V
SMOOTHING = 0.75


def code_table(params: Any) -> np.ndarray:
    """Returns the (V, D) float32 code embeddings in a model's parameters, by id."""
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    (table,) = [leaf for path, leaf in flat.items() if f"/{path}".endswith(CODE_TABLE)]
    return np.asarray(table, np.float32)


def find_codes(query: str, vocabulary: Vocabulary, descriptions: list[str]) -> list[int]:
    """Finds codes by name, or by words in their name or description, in any case and order.

    Returns:
      Ids, the most frequent first; a single id if the query is the name of a code.

    Raises:
      ValueError: no code matches.
    """
    if query in vocabulary.codes:
        return [vocabulary.ids[query]]
    words = query.lower().split()
    texts = [
        f"{token} {description}".lower() for token, description in zip(vocabulary.tokens, descriptions, strict=True)
    ]
    matches = [
        place for place, text in enumerate(texts) if place >= NUM_SPECIAL and all(word in text for word in words)
    ]
    if not matches or not words:
        raise ValueError(
            f"query {query!r}: no code of the vocabulary has these words in its name or description (codes of few "
            "patients are not in it, see data.min_patients); try fewer or other words"
        )
    return matches


def nearest(
    table: np.ndarray, queries: np.ndarray | list[int], k: int, among: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest codes by cosine similarity, excluding the query itself.

    Args:
      table: (V, D).
      queries: (n,) ids.
      k: number of neighbours; fewer are returned if there are fewer codes.
      among: (m,) ids of the candidate neighbours; all codes if not given.

    Returns:
      (n, k) ids, nearest first, and their (n, k) cosines.
    """
    among = np.arange(NUM_SPECIAL, len(table)) if among is None else np.asarray(among)
    units = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    queries, k = np.asarray(queries, np.int64), min(k, len(among) - 1)
    neighbours, cosines = np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k), np.float32)
    for start in range(0, len(queries), QUERIES_AT_A_TIME):
        part = slice(start, start + QUERIES_AT_A_TIME)
        similarities = units[queries[part]] @ units[among].T
        similarities[queries[part][:, None] == among[None]] = -np.inf
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        neighbours[part], cosines[part] = among[order], np.take_along_axis(similarities, order, axis=1)
    return neighbours, cosines


def agreement(table: np.ndarray, groups: np.ndarray, k: int) -> PerTargetScores:
    """Measures the share of a code's k nearest neighbours that are in its group, as Med2Vec (Choi et al. 2016) does.

    Only codes in a group with other codes take part. For a code with fewer than k others in its group, only as many
    neighbours are considered, so that 1 can be reached.

    Args:
      table: (V, D).
      groups: (V,) int; -1 for tokens without a group.
      k: neighbours.

    Returns:
      `precision` of each code that takes part, by id, with its group as `patients`, so that intervals are over groups.
    """
    codes, labels, others = _members(groups)
    neighbours, _ = nearest(table, codes, min(k, int(others.max())), among=codes)
    num_neighbours = np.minimum(k, others)
    counted = np.arange(neighbours.shape[1]) < num_neighbours[:, None]
    hits = (groups[neighbours] == labels[:, None]) & counted
    return PerTargetScores(labels, {"precision": hits.sum(axis=1) / num_neighbours})


def chance(groups: np.ndarray) -> PerTargetScores:
    """Returns the expected `agreement` of random neighbours."""
    codes, labels, others = _members(groups)
    return PerTargetScores(labels, {"precision": others / (len(codes) - 1)})


def _members(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the codes in a group with others, their groups, and the number of others in each group."""
    sizes = np.bincount(groups[groups >= 0], minlength=1)
    codes = np.flatnonzero((groups >= 0) & (sizes[groups] > 1))
    if len(np.unique(groups[codes])) < 2:
        raise ValueError("groups of codes: expected two groups with two or more codes each")
    return codes, groups[codes], sizes[groups[codes]] - 1


def ppmi_svd(held: scipy.sparse.csr_array, dim: int) -> np.ndarray:
    """Embeds codes by co-occurrence in visits, a baseline without a network.

    Factorises positive pointwise mutual information with smoothed contexts: the largest singular vectors, each times
    the square root of its singular value (Levy, Goldberg and Dagan 2015).

    Args:
      held: (visits, V), the codes of each visit.
      dim: D.

    Returns:
      (V, D) float32; zeros for codes that share no visit with another, and in columns beyond the rank.
    """
    pairs = (held.T.astype(np.float64) @ held.astype(np.float64)).tocoo()
    distinct = pairs.row != pairs.col
    rows, columns, counts = pairs.row[distinct], pairs.col[distinct], pairs.data[distinct]
    size = held.shape[1]
    code, context = np.bincount(rows, counts, size), np.bincount(columns, counts, size) ** SMOOTHING
    information = np.log(counts * context.sum() / (code[rows] * context[columns]))
    positive = information > 0
    matrix = scipy.sparse.csr_array((information[positive], (rows[positive], columns[positive])), shape=(size, size))
    rank = min(dim, size - 1)
    vectors, values, _ = scipy.sparse.linalg.svds(matrix, k=rank, v0=np.ones(size))  # fixed start, for reproducibility
    vectors[np.diff(matrix.indptr) == 0] = 0.0  # otherwise rounding errors would give these a direction
    return np.pad(vectors * np.sqrt(values), ((0, 0), (0, dim - rank))).astype(np.float32)
