"""Chooses the variant of each representation on tuning, and measures it on held-out patients."""

import functools
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from behrt_jax.exploration.measures import (
    Groups,
    report_groups,
    report_probe,
    report_retrieval,
    score_groups,
    score_retrieval,
)
from behrt_jax.exploration.representations import Candidate
from behrt_jax.metrics import embeddings


def measure(families: dict[str, list[Candidate]], groups: Groups) -> dict:
    """Measures each family of representations by its best candidate on tuning, chosen for each measure.

    Args:
      families: candidates by name of the representation.
      groups: the diseases of the patients, by split.

    Returns:
      The results; docs/embeddings.md has their format.
    """
    measures = {"groups": score_groups, "retrieval": score_retrieval}
    scorers = {name: functools.partial(function, groups) for name, function in measures.items()}
    total = sum(map(len, families.values()))
    best, chosen_names = {}, {}
    for name, score in scorers.items():
        with tqdm(total=total, desc=f"choosing by {name}", unit="candidate") as bar:
            selection = {family: choose(candidates, score, bar.update) for family, candidates in families.items()}
        chosen_names[name] = {family: candidate.name for family, candidate in selection.items()}
        best[name] = {family: candidate.make() for family, candidate in selection.items()}
    result = {"groups_found": _describe(groups), "chosen": chosen_names}
    result["groups"] = report_groups(best["groups"], groups)
    result["retrieval"] = report_retrieval(best["retrieval"], groups)
    if groups["held_out"].later.any():
        later = {split: each._replace(has=each.later) for split, each in groups.items()}
        result["retrieval_later"] = report_retrieval(best["retrieval"], later)
    result["probe"] = report_probe(best["retrieval"], groups)
    return result


def choose(candidates: list[Candidate], score: Callable, advance: Callable[[], object]) -> Candidate:
    """Returns the candidate with the highest score on tuning."""
    scores = []
    for candidate in candidates:
        scores.append(score(candidate.make(), "tuning"))
        advance()
    return candidates[int(np.argmax(scores))]


def _describe(groups: Groups) -> dict:
    """Counts the patients with each disease, and those with this disease alone, by split."""
    summary = {}
    for split, each in groups.items():
        alone = embeddings.exclusive_groups(each.has)
        none, several = embeddings.NO_DISEASE, embeddings.SEVERAL
        counts = {"none": int((alone == none).sum()), "several": int((alone == several).sum())}
        counts |= {
            name: {"patients": int(each.has[:, place].sum()), "alone": int((alone == place).sum())}
            for place, name in enumerate(each.names)
        }
        summary[split] = counts
    return summary
