"""Measures what the embeddings of a run hold of diseases, beside bags of codes: docs/embeddings.md.

python -m experiments.explore --workdir=DIR [--data=DIR] [--diseases=FILE] [--at=last|DATE] [--clusters=K]
  [--windows=all|newest] [--project] [--output=FILE]

Everything is fitted on train, chosen on tuning and measured on held-out patients; `DIR/embedding_quality.json` has it.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from absl import flags
from tqdm import tqdm

from behrt_jax import workdir
from behrt_jax.data import dataset, disease_groups, events, sequences
from behrt_jax.data.config import DataConfig
from behrt_jax.data.disease_groups import DiseaseGroups
from behrt_jax.data.prepare import prepare
from experiments import command, explore_choices, explore_tables, labelled, moments, outcome_data, subtypes
from experiments import representations as made
from experiments.embeddings import WEIGHTED, code_rarity, embed

POOLINGS = ("mean", *WEIGHTED)
QUALITY_FILE = "embedding_quality.json"


class Population(NamedTuple):
    """The patients of each split and what is known of them: histories, diseases, lives, embeddings by pooling."""

    moments: dict[str, moments.Moment]
    groups: dict[str, DiseaseGroups]
    lives: pl.DataFrame
    pooled: dict[str, dict[str, np.ndarray]]


def read_population(found: workdir.Loaded, diseases: str, at, whole: bool) -> Population:
    """Reads the patients of a run's data and embeds them."""
    config = found.config
    prepared = prepare(DataConfig(**config.data), found.vocabulary, progress=print)
    print(labelled.describe_coverage(prepared.report, "all"))
    lives, known = outcome_data.read_lives(config.data.path), {}
    for split in events.SPLITS:
        everyone = dataset.read(prepared.folder, split)
        patients = dataset.sample(everyone, config.evaluation.max_patients)
        if len(patients) < len(everyone):
            print(f"{split}: {len(patients):,} of {len(everyone):,} patients are taken (evaluation.max_patients)")
        known[split], left_out = moments.find_moment(config, patients, at, lives, whole)
        for reason, number in left_out.items():
            print(f"{split}: {number:,} patients left out, {reason}")
        if not len(known[split].rows):
            raise ValueError(f"--at: no patient of {split} was alive with an event before; name a later date")
    pooled = {name: {} for name in POOLINGS}
    for split, moment in known.items():
        windows = moments.windows_of(config, moment.rows, whole)
        index = sequences.index_visits(moment.rows, config.data.row_length, config.data.separators)
        rows = len((windows or sequences.newest_windows(index)).lengths)
        with tqdm(desc=f"embedding {split}, {rows:,} windows", unit="batch") as bar:
            given = (config, found.model, found.params, moment.rows, windows, POOLINGS, found.vocabulary, bar.update)
            for name, values in embed(*given).items():
                pooled[name][split] = values
    return Population(known, _read_groups(config.data.path, diseases, known, at), lives, pooled)


def _read_groups(data: str, diseases: str, known: dict[str, moments.Moment], at) -> dict[str, DiseaseGroups]:
    """Reads the diseases of all patients at once, so that a shard is read once, and parts them again."""
    subjects = np.concatenate([moment.rows.subject_ids for moment in known.values()])
    times = None if at is None else np.concatenate([moment.times for moment in known.values()])
    all_groups = disease_groups.read_groups(data, diseases, subjects, times, print)
    stops = np.cumsum([len(moment.times) for moment in known.values()])[:-1]
    parts = zip(np.split(all_groups.has, stops), np.split(all_groups.later, stops), strict=True)
    return {split: DiseaseGroups(all_groups.names, *part) for split, part in zip(known, parts, strict=True)}


def find_families(found: workdir.Loaded, population: Population) -> dict[str, list[made.Candidate]]:
    """Returns the candidates of each representation that is compared."""
    histories = {split: moment.histories for split, moment in population.moments.items()}
    rarity = code_rarity(found.vocabulary)
    return {
        made.OWN: made.of_embeddings(population.pooled),
        made.MEAN: made.of_embeddings({"mean": population.pooled["mean"]}),
        made.BAG: made.of_bags(histories, rarity),
        made.PRINCIPAL: made.of_bags(histories, rarity, found.config.model.hidden_dim),
    }


def main() -> None:
    """Runs the command."""
    folder, at = Path(FLAGS.workdir), moments.read_date(FLAGS.at)
    found = workdir.load(folder)
    with found.config.unlocked():
        found.config.data.path = FLAGS.data or found.config.data.path
    population = read_population(found, FLAGS.diseases, at, FLAGS.windows == "all")
    families = find_families(found, population)
    result = {
        "workdir": str(folder),
        "data": found.config.data.path,
        "at": FLAGS.at,
        "windows": FLAGS.windows,
        "dimensions": found.config.model.hidden_dim,
        "patients": {split: len(moment.histories) for split, moment in population.moments.items()},
        **explore_choices.measure(families, population.groups, FLAGS.project),
    }
    result["subtypes"] = subtypes.describe(
        result["chosen"]["groups"][made.OWN], families[made.OWN], population, found, at, FLAGS.clusters
    )
    output = Path(FLAGS.output) if FLAGS.output else folder / QUALITY_FILE
    output.write_text(json.dumps(result, indent=1, allow_nan=False))
    print(explore_tables.format_quality(result))
    print(f"written: {output}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain or experiments.finetune wrote.", required=True)
    flags.DEFINE_string("data", None, "A MEDS data set; that of the run if not given.")
    flags.DEFINE_string("diseases", "configs/diseases.yaml", "Groups of diseases by codes.")
    flags.DEFINE_string("at", moments.LAST, "Only what came strictly before this date is read; or last: all of it.")
    flags.DEFINE_enum("windows", "all", ["newest", "all"], "The newest tokens that a row holds, or the whole history.")
    flags.DEFINE_integer("clusters", 0, "Of k-means; 0: as many as do best on tuning.", lower_bound=0)
    flags.DEFINE_boolean("project", False, "Whether to measure supervised projections too, of all representations.")
    flags.DEFINE_string("output", None, f"The JSON file to write; WORKDIR/{QUALITY_FILE} if not given.")
    command.run(main)
