"""Diseases shared by neighbouring patients, at several dates and over several runs."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from behrt_jax.embeddings import snapshots
from behrt_jax.exploration import measures
from behrt_jax.exploration import population as exploration_population
from behrt_jax.exploration.measures import CHANCE
from behrt_jax.exploration.representations import BAG, BOTH, OWN, Candidate, of_both
from behrt_jax.metrics import bootstrap
from behrt_jax.metrics.bootstrap import PerTargetScores
from behrt_jax.training import workdir

logger = logging.getLogger(__name__)


class Date(NamedTuple):
    """The patients known at a date: their diseases, subject ids, and the candidates of each representation."""

    groups: measures.Groups
    subject_ids: dict[str, np.ndarray]
    families: dict[str, list[Candidate]]


def read_date(found: workdir.LoadedRun, diseases: str, date: str, whole: bool) -> Date:
    """Reads and embeds the patients of a run's data as of a date."""
    logger.info(f"{date}:")
    population = exploration_population.read_population(found, diseases, snapshots.read_date(date), whole)
    ids = {split: snapshot.model_inputs.subject_ids for split, snapshot in population.snapshots.items()}
    return Date(population.groups, ids, exploration_population.find_families(found, population))


def choose(dates: list[Date], family: str) -> list[Candidate]:
    """Returns the candidate of a family that is best on tuning over all dates, one instance per date."""
    variants = list(zip(*(date.families[family] for date in dates), strict=True))
    scores = [retrieve(dates, each, "tuning").values["precision"].mean() for each in tqdm(variants, desc=family)]
    return list(variants[int(np.argmax(scores))])


def retrieve(dates: list[Date], candidates: Sequence[Candidate], split: str) -> PerTargetScores:
    """Measures the neighbours of a split's patients at all dates, with one candidate per date."""
    parts = [
        by_subject(date, split, measures.retrieve(date.groups, candidate.make(), split))
        for date, candidate in zip(dates, candidates, strict=True)
    ]
    return bootstrap.concatenate(parts)


def by_subject(date: Date, split: str, outcomes: PerTargetScores) -> PerTargetScores:
    """Replaces patient indices by subject ids, so that all dates of a patient are resampled together."""
    return outcomes._replace(patients=date.subject_ids[split][outcomes.patients])


def measure_run(dates: list[Date]) -> tuple[dict[str, PerTargetScores], dict[str, str]]:
    """Measures the held-out patients of a run.

    Returns:
      Scores by representation and at chance, and the name of the candidate chosen for each representation.

    Raises:
      ValueError: no patient of tuning, or none of held_out, has a disease.
    """
    for split in ("tuning", "held_out"):
        if not any(date.groups[split].has.any() for date in dates):
            raise ValueError(
                f"--diseases: no {split} patient has one of the diseases; name other groups or later dates"
            )
    best = {family: choose(dates, family) for family in dates[0].families}
    for date, embedding, bag in zip(dates, best[OWN], best[BAG], strict=True):
        date.families[BOTH] = of_both(embedding, bag)
    best[BOTH] = choose(dates, BOTH)
    scores = {family: retrieve(dates, each, "held_out") for family, each in best.items()}
    chance = [by_subject(date, "held_out", measures.retrieve_at_random(date.groups)) for date in dates]
    return {**scores, CHANCE: bootstrap.concatenate(chance)}, {family: each[0].name for family, each in best.items()}
