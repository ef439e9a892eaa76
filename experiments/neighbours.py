"""Measures whether patients near each other share diseases, at several dates and over runs: docs/embeddings.md.

python -m experiments.neighbours --workdir=RUN[,RUN...] --at=DATE,DATE,... [--diseases=FILE] [--windows=all|newest]
  [--output=FILE]

Of several runs, as of the folds of experiments.cross_validate, each is measured on held-out patients of its own data.
"""

import collections
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from tqdm import tqdm

from behrt_jax import metrics, workdir
from behrt_jax.metrics import Outcomes
from experiments import command, explore, explore_measures, explore_tables, moments
from experiments.explore_measures import CHANCE, NEIGHBOURS
from experiments.representations import BAG, BOTH, OWN, Candidate, of_both


class Date(NamedTuple):
    """The patients known at a date: their diseases and ids, and the candidates of each representation."""

    groups: explore_measures.Groups
    subject_ids: dict[str, np.ndarray]
    families: dict[str, list[Candidate]]


def read_date(found: workdir.Loaded, diseases: str, date: str, whole: bool) -> Date:
    """Reads and embeds the patients of a run's data at a date."""
    print(f"{date}:")
    population = explore.read_population(found, diseases, moments.read_date(date), whole)
    ids = {split: moment.rows.subject_ids for split, moment in population.moments.items()}
    return Date(population.groups, ids, explore.find_families(found, population))


def choose(dates: list[Date], family: str) -> list[Candidate]:
    """Returns the candidate of a family that is best on tuning over all dates, as it is at each."""
    same = list(zip(*(date.families[family] for date in dates), strict=True))
    scores = [retrieve(dates, each, "tuning").values["precision"].mean() for each in tqdm(same, desc=family)]
    return list(same[int(np.argmax(scores))])


def retrieve(dates: list[Date], candidates: Sequence[Candidate], split: str) -> Outcomes:
    """Measures the neighbours of a split at all dates, a candidate at each."""
    parts = [
        by_subject(date, split, explore_measures.retrieve(date.groups, candidate.make(), split))
        for date, candidate in zip(dates, candidates, strict=True)
    ]
    return metrics.concatenate(parts)


def by_subject(date: Date, split: str, outcomes: Outcomes) -> Outcomes:
    """Names patients as in the data, so that what one has at several dates is resampled together."""
    return outcomes._replace(patients=date.subject_ids[split][outcomes.patients])


def measure_run(dates: list[Date]) -> tuple[dict[str, Outcomes], dict[str, str]]:
    """Measures the held-out patients of a run.

    Returns:
      Outcomes by representation, and by chance; and which candidate was taken of each representation.

    Raises:
      ValueError: no patient of tuning, or of held_out, has a disease.
    """
    for split in ("tuning", "held_out"):
        if not any(date.groups[split].has.any() for date in dates):
            raise ValueError(
                f"--diseases: no {split} patient has one of the diseases; name other groups or later dates"
            )
    best = {family: choose(dates, family) for family in dates[0].families}
    for date, own, bag in zip(dates, best[OWN], best[BAG], strict=True):
        date.families[BOTH] = of_both(own, bag)
    best[BOTH] = choose(dates, BOTH)
    outcomes = {family: retrieve(dates, each, "held_out") for family, each in best.items()}
    chance = [by_subject(date, "held_out", explore_measures.retrieve_at_random(date.groups)) for date in dates]
    return {**outcomes, CHANCE: metrics.concatenate(chance)}, {family: each[0].name for family, each in best.items()}


def main() -> None:
    """Runs the command."""
    parts, chosen = collections.defaultdict(list), {}
    for run in FLAGS.workdir:
        print(f"{run}:")
        found = workdir.load(Path(run))
        dates = [read_date(found, FLAGS.diseases, date, FLAGS.windows == "all") for date in FLAGS.at]
        outcomes, chosen[run] = measure_run(dates)
        for family, each in outcomes.items():
            parts[family].append(each)
    joined = {family: metrics.concatenate(each) for family, each in parts.items()}
    result = {"workdir": FLAGS.workdir, "at": FLAGS.at, "windows": FLAGS.windows, "chosen": chosen}
    result |= {"patients": len(np.unique(joined[OWN].patients)), "neighbours": NEIGHBOURS}
    for name in (OWN, BOTH):
        others = {family: each for family, each in joined.items() if family not in (OWN, BOTH)}
        result[name] = metrics.report(joined[name], others, "retrieval")
    Path(FLAGS.output).write_text(json.dumps(result, indent=1, allow_nan=False))
    print(explore_tables.format_neighbours(result))
    print(f"written: {FLAGS.output}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_list("workdir", None, "What experiments.pretrain wrote, of one run or several.", required=True)
    flags.DEFINE_list("at", None, "Dates, before which what came is read: YYYY-MM-DD,...", required=True)
    flags.DEFINE_string("diseases", "configs/diseases.yaml", "Groups of diseases by codes.")
    flags.DEFINE_enum("windows", "all", ["newest", "all"], "The newest tokens that a row holds, or the whole history.")
    flags.DEFINE_string("output", "neighbours.json", "The JSON file to write.")
    command.run(main)
