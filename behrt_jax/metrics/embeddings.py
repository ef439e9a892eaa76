"""Metrics of patient embeddings: clustering, nearest neighbours and linear probes of diseases, and subtypes."""

from collections.abc import Callable

import numpy as np
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    adjusted_rand_score,
    calinski_harabasz_score,
    davies_bouldin_score,
    pairwise_distances,
    roc_auc_score,
    silhouette_samples,
)
from sklearn.preprocessing import normalize

from behrt_jax.metrics.bootstrap import PerTargetScores, divide

NO_DISEASE, SEVERAL = -1, -2
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
MANY = 1024  # inputs, above which a solver that inverts their matrix is slow
CELLS = 20_000_000  # distances, or diseases of neighbours, in memory at once
SMOOTHING = 0.5


def directions(train: np.ndarray, centre: bool = True) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that scales (N, D) embeddings to unit length, by default after subtracting the mean of train.

    Distances between unit vectors order neighbours as cosine similarity does. The mean is common to all patients and
    carries little information (Mu & Viswanath 2018); without it, the vectors point in all directions.
    """
    middle = train.mean(axis=0) if centre else np.zeros(train.shape[1], train.dtype)
    return lambda embeddings: normalize(np.asarray(embeddings - middle, np.float64))


def exclusive_groups(has: np.ndarray) -> np.ndarray:
    """Converts (N, G) bool diseases to (N,) mutually exclusive groups: the only disease of each patient.

    Patients without a disease get `NO_DISEASE`, those with several get `SEVERAL`; neither is a group.
    """
    number = has.sum(axis=1)
    return np.where(number == 1, has.argmax(axis=1), np.where(number == 0, NO_DISEASE, SEVERAL))


def cluster_scores(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """Scores how well (N,) groups, two or more and one of several members, are separated by Euclidean distance.

    Returns:
      (N,) silhouettes of the rows, -1 to 1, whose mean is the score (Rousseeuw 1987); and a dictionary with
      `davies_bouldin` (1979), lower is better, and `calinski_harabasz` (1974), higher is better, which grows with N.
    """
    return silhouette_samples(embeddings, labels), {
        "davies_bouldin": float(davies_bouldin_score(embeddings, labels)),
        "calinski_harabasz": float(calinski_harabasz_score(embeddings, labels)),
    }


def resampled_silhouettes(embeddings: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Computes the mean silhouette of resampled rows, each resample from its rows only.

    The mean distance of a row to its group leaves out all copies of that row: their distances of 0 would make groups
    look tighter than they are. A row that is alone in its group scores 0, as usual. A group without a sampled row
    is ignored.

    Args:
      embeddings: (N, D).
      labels: (N,) int, two groups or more.
      weights: (R, N) the count of each row in each resample.

    Returns:
      (R,) float64; NaN where fewer than two groups are sampled.
    """
    distances, step = pairwise_distances(embeddings), max(CELLS // (8 * len(labels)), 1)
    starts = range(0, len(weights), step)
    return np.concatenate([_mean_silhouettes(distances, labels, weights[start : start + step]) for start in starts])


def _mean_silhouettes(distances: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    weights = weights.astype(np.float64)
    within, num_others, between = np.zeros(weights.shape), np.zeros(weights.shape), np.full(weights.shape, np.inf)
    for label in np.unique(labels):
        in_group = labels == label
        counts, sums = weights[:, in_group].sum(axis=1, keepdims=True), weights[:, in_group] @ distances[in_group]
        num_others[:, in_group] = counts - weights[:, in_group]
        within[:, in_group] = sums[:, in_group] / np.maximum(num_others[:, in_group], 1)
        between[:, ~in_group] = np.minimum(
            between[:, ~in_group], np.where(counts > 0, sums[:, ~in_group] / np.maximum(counts, 1), np.inf)
        )
    several = np.isfinite(between.max(axis=1))
    between = np.where(several[:, None], between, 0)
    scores = divide(between - within, np.maximum(between, within))
    totals = np.where(num_others > 0, np.nan_to_num(scores), 0) * weights
    return np.where(several, divide(totals.sum(axis=1), weights.sum(axis=1)), np.nan)


def retrieval(near: np.ndarray, own: np.ndarray, gallery: np.ndarray) -> PerTargetScores:
    """Measures whether nearest neighbours share the diseases of the queries, for queries with a disease.

    Args:
      near: (Q, k) rows of the gallery, the neighbours; all rows of the gallery give the scores of random neighbours.
      own: (Q, G) bool diseases of the queries.
      gallery: (N, G) bool diseases of the gallery.

    Returns:
      For each query with a disease: `precision`, the share of neighbours with any of its diseases; `shared`, the share
      with a given disease of it, averaged over its diseases; `jaccard`, diseases that both have over those that either
      has.
    """
    rows = np.flatnonzero(own.any(axis=1))
    values = {name: np.zeros(len(rows)) for name in ("precision", "shared", "jaccard")}
    step = max(CELLS // max(near.shape[1] * own.shape[1], 1), 1)
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        neighbour_diseases, diseases = gallery[near[chunk]], own[chunk][:, None]
        num_shared = (neighbour_diseases & diseases).sum(axis=-1)
        slots = slice(start, start + len(chunk))
        values["precision"][slots] = (num_shared > 0).mean(axis=1)
        values["shared"][slots] = (num_shared / diseases.sum(axis=-1)).mean(axis=1)
        values["jaccard"][slots] = (num_shared / (neighbour_diseases | diseases).sum(axis=-1)).mean(axis=1)
    return PerTargetScores(rows, values)


def probe(inputs: dict[str, np.ndarray], has: dict[str, np.ndarray], tick: Callable[[], object] = bool) -> np.ndarray:
    """Fits a ridge logistic regression to each disease on train, its strength chosen by AUROC on tuning.

    Args:
      inputs: (N, D) embeddings by split: `train`, `tuning` and `held_out`; standardised here by train.
      has: (N, G) bool diseases by split; train and tuning need patients with and without each disease.
      tick: called after each disease.

    Returns:
      (held-out patients, G) float64 probabilities.
    """
    mean, deviation = inputs["train"].mean(axis=0), inputs["train"].std(axis=0)
    kept = deviation > 0
    features = {name: (each[:, kept] - mean[kept]) / deviation[kept] for name, each in inputs.items()}
    solver, predictions = "newton-cholesky" if kept.sum() <= MANY else "lbfgs", []
    for group in range(has["train"].shape[1]):
        target = has["train"][:, group]
        ridges = [LogisticRegression(C=each, solver=solver, max_iter=2000) for each in STRENGTHS]
        fits = [ridge.fit(features["train"], target) for ridge in ridges]
        scores = [roc_auc_score(has["tuning"][:, group], fit.decision_function(features["tuning"])) for fit in fits]
        predictions.append(fits[int(np.argmax(scores))].predict_proba(features["held_out"])[:, 1])
        tick()
    return np.stack(predictions, axis=1)


def fit_clusters(train: np.ndarray, clusters: int, seed: int = 0) -> KMeans:
    """Fits k-means (the best of four starts) to (N, D) embeddings; its `predict` assigns others to clusters."""
    return KMeans(clusters, n_init=4, random_state=seed).fit(train)


def stability(train: np.ndarray, others: np.ndarray, clusters: int, draws: int, seed: int = 0) -> np.ndarray:
    """Measures the stability of clusters: compares k-means fitted to resamples of train with the fit to all of it.

    Returns:
      (draws,) adjusted Rand indices (Hubert & Arabie 1985) of clusters of `others`, (M, D): 1 if equal, 0 at chance.
    """
    rng, reference = np.random.default_rng(seed), fit_clusters(train, clusters, seed).predict(others)
    samples = (train[rng.integers(len(train), size=len(train))] for _ in range(draws))
    clusterings = (fit_clusters(sample, clusters, draw + 1).predict(others) for draw, sample in enumerate(samples))
    return np.array([adjusted_rand_score(reference, labels) for labels in clusterings])


def distinguishing_codes(presence: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores how much more common each code is in a cluster than in the others.

    `presence` is (N, V) bool, the codes of each patient, `labels` (N,) int, clusters from 0 to K - 1.

    Returns:
      (K, V) log odds ratios, with half a patient added to each cell, and (K, V) the same over their standard errors
      (Woolf 1955), which ranks codes by how certain the difference is.
    """
    inside = np.stack([presence[labels == cluster].sum(axis=0) for cluster in range(labels.max() + 1)]).astype(float)
    sizes, total = np.bincount(labels)[:, None], presence.sum(axis=0)
    cells = [inside, sizes - inside, total - inside, len(labels) - sizes - (total - inside)]
    a, b, c, d = (cell + SMOOTHING for cell in cells)
    odds = np.log(a * d / (b * c))
    return odds, odds / np.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
