"""Which form of each representation is measured, the best on tuning, and projections of these fitted on train."""

import functools
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from behrt_jax.exploration import projection
from behrt_jax.exploration.measures import (
    Groups,
    report_groups,
    report_probe,
    report_retrieval,
    score_groups,
    score_retrieval,
)
from behrt_jax.exploration.representations import BAG, MEAN, PRINCIPAL, Candidate, Splits
from behrt_jax.metrics import embeddings

DROPOUTS = (0.2, 0.5)  # of a projection


def measure(families: dict[str, list[Candidate]], groups: Groups, with_projections: bool) -> dict:
    """Measures families of candidates, each the best of its candidates on tuning by the measure in question.

    Args:
      families: of candidates.
      groups: the diseases of the patients, by split.
      with_projections: whether to fit and measure projections too.

    Returns:
      See docs/embeddings.md.
    """
    measures = {"groups": score_groups, "retrieval": score_retrieval}
    scored = {name: functools.partial(function, groups) for name, function in measures.items()}
    total = sum(map(len, families.values()))
    best, chosen = {}, {}
    for name, score in scored.items():
        with tqdm(total=total, desc=f"choosing by {name}", unit="candidate") as bar:
            picked = {family: choose(candidates, score, bar.update) for family, candidates in families.items()}
        chosen[name] = {family: candidate.name for family, candidate in picked.items()}
        best[name] = {family: candidate.make() for family, candidate in picked.items()}
    result = {"groups_found": _describe(groups), "chosen": chosen}
    result["groups"] = report_groups(best["groups"], groups)
    result["retrieval"] = report_retrieval(best["retrieval"], groups)
    if groups["held_out"].later.any():
        later = {split: each._replace(has=each.later) for split, each in groups.items()}
        result["retrieval_later"] = report_retrieval(best["retrieval"], later)
    result["probe"] = report_probe(best["retrieval"], groups)
    if with_projections:
        projected = _project_all(families, chosen, groups)
        found = {family: splits for family, (_, splits) in projected.items()}
        plain = {name: {f"{family}, as it is": best[name][family] for family in (BAG, PRINCIPAL)} for name in best}
        result["projected"] = {
            "chosen": {family: label for family, (label, _) in projected.items()},
            "groups": report_groups({**found, **plain["groups"]}, groups),
            "retrieval": report_retrieval({**found, **plain["retrieval"]}, groups),
        }
    return result


def choose(candidates: list[Candidate], score: Callable, advance: Callable[[], object]) -> Candidate:
    """Returns the candidate of the highest score on tuning."""
    scores = []
    for candidate in candidates:
        scores.append(score(candidate.make(), "tuning"))
        advance()
    return candidates[int(np.argmax(scores))]


def _describe(groups: Groups) -> dict:
    """Returns how many patients have each disease and how many this one alone, by split."""
    found = {}
    for split, each in groups.items():
        alone = embeddings.exclusive_groups(each.has)
        none, several = embeddings.NO_DISEASE, embeddings.SEVERAL
        counts = {"none": int((alone == none).sum()), "several": int((alone == several).sum())}
        counts |= {
            name: {"patients": int(each.has[:, place].sum()), "alone": int((alone == place).sum())}
            for place, name in enumerate(each.names)
        }
        found[split] = counts
    return found


def _project_all(families: dict[str, list[Candidate]], chosen: dict, groups: Groups) -> dict[str, tuple[str, Splits]]:
    """Fits projections on train to what was chosen of each family, and takes the best on tuning by its silhouette."""
    tries = [
        (family, candidate, dropout)
        for family, candidates in families.items()
        for candidate in candidates
        if family != MEAN and candidate.name in (chosen["groups"][family], chosen["retrieval"][family])
        for dropout in DROPOUTS
    ]
    best: dict[str, tuple[float, str, Splits]] = {}
    for family, candidate, dropout in tqdm(tries, desc="projecting", unit="fit"):
        found = candidate.make()
        project = projection.fit_projection(found["train"], groups["train"].has, dropout=dropout)
        projected = {split: project(values) for split, values in found.items()}
        score = score_groups(groups, projected, "tuning")
        if family not in best or score > best[family][0]:
            best[family] = score, f"{candidate.name}, dropout {dropout}", projected
    return {family: (label, found) for family, (_, label, found) in best.items()}
