"""Subtypes: clusters of embeddings, their stability, their codes, and the survival of their patients."""

import numpy as np
import polars as pl
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.decomposition import PCA

from behrt_jax.data import histories
from behrt_jax.data.code_counts import count_codes
from behrt_jax.data.metadata import describe_codes
from behrt_jax.data.vocabulary import NUM_SPECIAL
from behrt_jax.exploration.representations import Candidate, Splits
from behrt_jax.metrics import bootstrap, survival
from behrt_jax.metrics import embeddings as embedding_metrics
from behrt_jax.regression import cox

CHOICES = range(2, 11)
DRAWS = 20
CODES = 8
FEWEST = 5  # fewest patients with a code in a cluster, for the code to be listed
CURVE_POINTS = 40
DENSE_DIMENSIONS, DENSE_MEMBERS = 10, 20


def describe(name: str, candidates: list[Candidate], population, found, at, clusters: int) -> dict:
    """Clusters the embeddings of train and describes the clusters; see docs/embeddings.md."""
    splits = next(candidate for candidate in candidates if candidate.name == name).make()
    fit, number = choose_clusters(splits, clusters)
    train, held_out = splits["train"], splits["held_out"]
    labels = fit.predict(held_out)
    draws = embedding_metrics.stability(train, held_out, number, DRAWS)
    clusters_of = {split: fit.predict(each) for split, each in splits.items()}
    silhouette, others = _cluster_scores(held_out, labels)
    result = {
        "embeddings": name,
        "k_means": {"clusters": number, "silhouette": silhouette, **others},
        "stability": bootstrap.interval(float(np.mean(draws)), draws),
        "hdbscan": _density(train, held_out),
        "clusters": _profiles(population, found, clusters_of),
    }
    if at is not None:
        result["survival"] = _survival(population, labels, at)
    return result


def choose_clusters(splits: Splits, clusters: int) -> tuple[KMeans, int]:
    """Fits k-means to train, with the given number of clusters; 0 chooses the best silhouette on tuning."""
    options = [clusters] if clusters else list(CHOICES)
    if (most := max(options)) >= len(splits["train"]):
        raise ValueError(f"--clusters={most}: expected fewer than the {len(splits['train']):,} patients of train")
    fits = [embedding_metrics.fit_clusters(splits["train"], number) for number in options]
    best = int(np.argmax([_cluster_scores(splits["tuning"], fit.predict(splits["tuning"]))[0] for fit in fits]))
    return fits[best], options[best]


def _cluster_scores(embeddings: np.ndarray, labels: np.ndarray) -> tuple[float, dict[str, float]]:
    """Returns the mean silhouette and the other scores; -1 and none without two clusters, one of several members."""
    if not 1 < len(np.unique(labels)) < len(labels):
        return -1.0, {}
    silhouettes, others = embedding_metrics.cluster_scores(embeddings, labels)
    return float(silhouettes.mean()), others


def _density(train: np.ndarray, held_out: np.ndarray) -> dict:
    """Clusters train and held-out patients together by density after PCA; in many dimensions HDBSCAN finds none."""
    pca = PCA(min(DENSE_DIMENSIONS, *train.shape), random_state=0).fit(train)
    components = pca.transform(np.concatenate([train, held_out]))
    clustering = HDBSCAN(min_cluster_size=min(DENSE_MEMBERS, len(components) // 2), copy=True)
    labels = clustering.fit_predict(components)[len(train) :]
    dense = labels >= 0
    return {
        "clusters": int(len(np.unique(labels[dense]))),
        "in_none": float((~dense).mean()),
        "silhouette": _cluster_scores(held_out[dense], labels[dense])[0],
    }


def _profiles(population, found, labels: dict[str, np.ndarray]) -> list[dict]:
    """Describes each cluster over all patients: size, age, diseases, and the codes that distinguish it."""
    tokens, snapshots = found.vocabulary.tokens, [population.snapshots[split] for split in labels]
    presence = np.concatenate([count_codes(snapshot.histories, len(tokens)) > 0 for snapshot in snapshots])
    member = np.concatenate(list(labels.values()))
    has = np.concatenate([population.groups[split].has for split in labels])
    ages = np.concatenate([histories.ages_at(snapshot.histories, snapshot.times) for snapshot in snapshots])
    odds, scores = embedding_metrics.distinguishing_codes(presence, member)
    descriptions = describe_codes(found.recipe.data.path)
    names, profiles = population.groups["train"].names, []
    for cluster in range(len(odds)):
        inside = member == cluster
        ranking = np.where(presence[inside].sum(axis=0) >= FEWEST, scores[cluster], -np.inf)
        ranking[:NUM_SPECIAL] = -np.inf
        best = [code for code in np.argsort(-ranking)[:CODES] if ranking[code] > 0]
        codes = [
            {
                "code": tokens[code],
                "description": descriptions.get(tokens[code].partition("//Q")[0], ""),
                "odds_ratio": float(np.exp(odds[cluster, code])),
                "share": float(presence[inside, code].mean()),
                "share_elsewhere": float(presence[~inside, code].mean()),
            }
            for code in best
        ]
        shares = dict(zip(names, has[inside].mean(axis=0).tolist(), strict=True))
        median = float(np.nanmedian(ages[inside])) if np.isfinite(ages[inside]).any() else None
        size = {split: int((each == cluster).sum()) for split, each in labels.items()}
        profiles.append({"patients": size, "median_age": median, "diseases": shares, "codes": codes})
    return profiles


def _survival(population, labels: np.ndarray, at: np.datetime64) -> dict:
    """Computes survival of held-out patients after the date, by cluster: Kaplan-Meier curves and a log-rank test."""
    people = pl.DataFrame({"subject_id": population.snapshots["held_out"].model_inputs.subject_ids, "cluster": labels})
    people = people.join(population.lives, on="subject_id", how="left", maintain_order="left")
    ends = people.select(pl.coalesce("death", "last")).to_series().to_numpy().astype("datetime64[us]")
    days = (ends - at) / np.timedelta64(1, "D")
    died, seen = people["death"].is_not_null().to_numpy(), days > 0
    curves = []
    for cluster in range(labels.max() + 1):
        members = seen & (labels == cluster)
        times = np.unique(days[members])
        grid = times[np.unique(np.linspace(0, len(times) - 1, CURVE_POINTS).astype(int))] if members.any() else times
        curve = {"patients": int(members.sum()), "deaths": int(died[members].sum()), "days": grid.tolist()}
        ones = np.ones((1, members.sum()))
        died_by = survival.cumulative_incidence(days[members], died[members], ones, grid)[0]
        curves.append({**curve, "alive": (1 - died_by).tolist()})
    result = {"curves": curves, "not_followed": int((~seen).sum())}
    if died[seen].any() and len(np.unique(labels[seen])) > 1:
        statistic, p = cox.log_rank(days[seen], died[seen], labels[seen])
        result |= {"log_rank": statistic, "p": p}
    return result
