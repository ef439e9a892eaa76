"""Measures of representations, with intervals: separation of groups, diseases of neighbours, disease probes."""

import numpy as np
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

from behrt_jax.exploration.disease_groups import DiseaseGroups
from behrt_jax.exploration.representations import OWN, Splits
from behrt_jax.metrics import bootstrap, classification
from behrt_jax.metrics import embeddings as embedding_metrics
from behrt_jax.metrics.bootstrap import PerTargetScores

NEIGHBOURS = 10
SMALLEST = 5  # fewest patients with and without a disease in each split, to fit a probe for it
ALONE = 8  # fewest train patients with a disease alone, for it to be an exclusive group
CHANCE = "chance"
Groups = dict[str, DiseaseGroups]


def score_groups(groups: Groups, found: Splits, split: str) -> float:
    """Returns the mean silhouette of patients with one disease or none."""
    rows, labels = exclusive(groups, split)
    return float(embedding_metrics.cluster_scores(found[split][rows], labels)[0].mean())


def score_retrieval(groups: Groups, found: Splits, split: str) -> float:
    """Returns the precision of the nearest train patients."""
    return float(retrieve(groups, found, split).values["precision"].mean())


def exclusive(groups: Groups, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of a split's patients with one disease or none, and their exclusive groups.

    A group needs at least `ALONE` patients in train, and two in the split, the fewest for which a silhouette exists.
    """
    train, labels = (embedding_metrics.exclusive_groups(groups[name].has) for name in ("train", split))
    unique_labels, counts = np.unique(train, return_counts=True)
    large = set(unique_labels[(counts >= ALONE) & (unique_labels != embedding_metrics.SEVERAL)])
    used = [label for label in large if (labels == label).sum() > 1]
    if len(used) < 2:
        raise ValueError(
            f"--diseases: {len(used)} groups of patients with one disease or none have {ALONE} members in train, 2 in "
            f"{split}; expected two or more such groups; name broader ones, or use more patients"
        )
    rows = np.flatnonzero(np.isin(labels, used))
    return rows, labels[rows]


def retrieve(groups: Groups, found: Splits, split: str) -> PerTargetScores:
    """Measures the diseases that patients of a split share with their nearest train patients."""
    neighbours = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(found["train"]))).fit(found["train"])
    near = neighbours.kneighbors(found[split], return_distance=False)
    return embedding_metrics.retrieval(near, groups[split].has, groups["train"].has)


def retrieve_at_random(groups: Groups) -> PerTargetScores:
    """Measures all train patients as neighbours of held-out patients, the expectation of random neighbours."""
    queries, train = groups["held_out"].has, groups["train"].has
    everyone = np.broadcast_to(np.arange(len(train)), (len(queries), len(train)))
    return embedding_metrics.retrieval(everyone, queries, train)


def report_groups(best: dict[str, Splits], groups: Groups) -> dict:
    """Measures the separation of held-out patients by exclusive group; intervals resample patients."""
    rows, labels = exclusive(groups, "held_out")
    owners, weights = classification.patient_weights(rows, len(rows), seed=0)
    estimates, others = {}, {}
    for family, splits in best.items():
        embeddings = splits["held_out"][rows]
        values = {"silhouette": embedding_metrics.resampled_silhouettes(embeddings, labels, weights[:, owners])}
        estimates[family] = classification.estimates(values, "groups/", "", owners)
        others[family] = embedding_metrics.cluster_scores(embeddings, labels)[1]
    names = ("none", *groups["held_out"].names)
    members = {names[label + 1]: int((labels == label).sum()) for label in np.unique(labels)}
    return {**_compare(estimates), "members": members, "others": others}


def _compare(found: dict[str, dict[str, bootstrap.Estimate]]) -> dict:
    """Returns the metrics of the embeddings and of the other representations, with paired differences."""
    run_estimates = found.pop(OWN)
    return {
        "metrics": bootstrap.summaries(run_estimates),
        "baselines": {family: bootstrap.summaries(each) for family, each in found.items()},
        "versus": {family: bootstrap.compare(run_estimates, each) for family, each in found.items()},
    }


def report_retrieval(best: dict[str, Splits], groups: Groups) -> dict:
    """Measures how often held-out patients share diseases with their nearest train patients, and with random ones."""
    if not groups["held_out"].has.any():
        raise ValueError(
            "--diseases: no held-out patient has one of the diseases; name other groups, or use more patients"
        )
    scores = {family: retrieve(groups, splits, "held_out") for family, splits in best.items()}
    scores[CHANCE] = retrieve_at_random(groups)
    result = bootstrap.report(scores.pop(OWN), scores, "retrieval")
    return {"neighbours": NEIGHBOURS, **result}


def report_probe(best: dict[str, Splits], groups: Groups) -> dict:
    """Measures how well logistic regressions predict each disease that has enough patients in all splits."""
    enough = [np.minimum(each.has.sum(axis=0), (~each.has).sum(axis=0)) >= SMALLEST for each in groups.values()]
    used = np.flatnonzero(np.all(enough, axis=0))
    if not len(used):
        return {}
    has = {split: each.has[:, used] for split, each in groups.items()}
    names = [groups["train"].names[place] for place in used]
    estimates = {}
    with tqdm(total=len(used) * len(best), desc="probing", unit="disease") as bar:
        for family, inputs in best.items():
            probabilities = embedding_metrics.probe(inputs, has, bar.update)
            estimates[family] = _areas(probabilities, has["held_out"], names)
    return _compare(estimates)


def _areas(said: np.ndarray, has: np.ndarray, names: list[str]) -> dict[str, bootstrap.Estimate]:
    """Returns the AUROC of each disease and its mean over diseases, on the data and on resamples of patients."""
    owners, weights = classification.patient_weights(np.arange(len(has)), len(has), seed=0)
    each = [classification.auroc(said[:, place], has[:, place], weights[:, owners]) for place in range(len(names))]
    aurocs = {"auroc": classification.mean_over(each)}
    aurocs |= {f"auroc/disease={name}": values for name, values in zip(names, each, strict=True)}
    return classification.estimates(aurocs, "probe/", "", owners)
