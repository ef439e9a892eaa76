"""Two-dimensional layouts of points by UMAP and t-SNE, and their colourings."""

import logging
import warnings
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from behrt_jax.evaluation.small_cells import MIN_PATIENTS

logger = logging.getLogger(__name__)
SIDE = 400.0  # side of the square that a map is drawn in
MARGIN = 8.0
CELLS, SHOWN = 28, 0.8  # the most cells along a side, and the least share of points in shown cells
SHARES = ((0.1, 0.3, 0.5, 0.7), ("under 10%", "10-30%", "30-50%", "50-70%", "70% and more"))


class Colouring(NamedTuple):
    """Values to colour points by: (N,), NaN if unknown, in bands separated by `edges`.

    Attributes:
      name: label of the colouring in the page's menu.
      values: (N,) float.
      edges: boundaries between bands.
      labels: of the bands, one more than edges.
      is_kinds: whether the bands have no order.
    """

    name: str
    values: np.ndarray
    edges: tuple[float, ...]
    labels: tuple[str, ...]
    is_kinds: bool = False

    @property
    def style(self) -> str:
        """The colour scheme: `two` bands, `ordered` bands, or `kinds` without an order."""
        return "kinds" if self.is_kinds else "two" if len(self.labels) == 2 else "ordered"

    def bands(self) -> np.ndarray:
        """Returns the band of each point, (N,) int; -1 if unknown."""
        return np.where(np.isnan(self.values), -1, np.digitize(self.values, self.edges))


def lay_out(vectors: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Lays out (N, D) vectors by UMAP and t-SNE, each (N, 2) in a square of `SIDE`; deterministic given the seed."""
    if len(vectors) < 4:
        return {}
    logger.info(f"UMAP of {len(vectors):,} points (the first use compiles for half a minute)")
    with warnings.catch_warnings():  # umap warns that TensorFlow, which is not needed, is absent
        warnings.filterwarnings("ignore", message="Tensorflow not installed", category=ImportWarning)
        import umap
    neighbours = min(15, len(vectors) - 1)
    start = PCA(2, random_state=seed).fit_transform(vectors).astype(np.float32)
    start *= 10 / np.maximum(np.abs(start).max(), 1e-9)  # the scale of UMAP's own initialisation
    settings = {"n_neighbors": neighbours, "init": start, "random_state": seed, "n_jobs": 1}
    layouts = {"UMAP": umap.UMAP(**settings).fit_transform(vectors)}
    logger.info(f"t-SNE of {len(vectors):,} points")
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    layouts["t-SNE"] = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)
    return {name: fit_square(np.asarray(points)) for name, points in layouts.items()}


def fit_square(points: np.ndarray) -> np.ndarray:
    """Scales points to fill a square of `SIDE`, each axis independently; the second axis points up."""
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (SIDE - 2 * MARGIN) / np.maximum(high - low, 1e-9)
    centred = (points - (low + high) / 2) * scale
    return centred * [1, -1] + SIDE / 2


def gather(points: np.ndarray, colourings: list[Colouring]) -> tuple[np.ndarray, np.ndarray, list[Colouring]]:
    """Aggregates points in the cells of a grid, so that no single point is shown.

    Args:
      points: (N, 2) in the square.
      colourings: of the points.

    Returns:
      For cells with `MIN_PATIENTS` points or more: the (C, 2) mean of a cell's points, their (C,) number, and the
      colourings by mean, or by share for values of 0 and 1. The grid is the finest that shows most points (`SHOWN`).
    """
    for side in range(CELLS, 0, -1):
        cell = (np.clip(points / SIDE, 0, 0.999) * side).astype(int) @ [1, side]
        _, which, counts = np.unique(cell, return_inverse=True, return_counts=True)
        kept = counts >= MIN_PATIENTS
        if counts[kept].sum() >= SHOWN * len(points):
            break

    def means(values: np.ndarray) -> np.ndarray:
        known = ~np.isnan(values)
        sums = np.bincount(which[known], values[known], len(counts))
        numbers = np.bincount(which[known], minlength=len(counts))
        return np.divide(sums, numbers, out=np.full(len(counts), np.nan), where=numbers >= MIN_PATIENTS)[kept]

    middle = np.column_stack([means(points[:, axis]) for axis in (0, 1)])
    cell_colourings = []
    for colouring in colourings:
        is_share = set(np.unique(colouring.values[~np.isnan(colouring.values)])) <= {0.0, 1.0}
        edges, labels = SHARES if is_share else (colouring.edges, colouring.labels)
        name = f"{colouring.name}: share {colouring.labels[1]}" if is_share else f"{colouring.name}, mean"
        cell_colourings.append(Colouring(name, means(colouring.values), edges, labels))
    return middle, counts[kept], cell_colourings
