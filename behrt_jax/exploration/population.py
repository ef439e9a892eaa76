"""The patients of a run, with their histories at a date and their diseases."""

import logging
from typing import NamedTuple

import numpy as np
import polars as pl
from tqdm import tqdm

from behrt_jax.data import dataset, events
from behrt_jax.data import prepare as data_prepare
from behrt_jax.data import windows as data_windows
from behrt_jax.data.prepare import prepare
from behrt_jax.embeddings import snapshots
from behrt_jax.embeddings.patients import WEIGHTED, code_rarity, embed
from behrt_jax.embeddings.snapshots import Snapshot
from behrt_jax.exploration import disease_groups
from behrt_jax.exploration import representations as made
from behrt_jax.exploration.disease_groups import DiseaseGroups
from behrt_jax.labels import follow_up
from behrt_jax.training import workdir
from behrt_jax.training.recipe import has_prediction_token

logger = logging.getLogger(__name__)
POOLINGS = ("mean", *WEIGHTED)


class Population(NamedTuple):
    """The patients of each split: histories, diseases, dates of birth and death, and embeddings by pooling."""

    snapshots: dict[str, Snapshot]
    groups: dict[str, DiseaseGroups]
    lives: pl.DataFrame
    pooled: dict[str, dict[str, np.ndarray]]


def read_population(found: workdir.LoadedRun, diseases: str, at, whole: bool) -> Population:
    """Reads the patients of a run's data and embeds them."""
    recipe, data = found.recipe, found.recipe.data
    prepared = prepare(data, found.vocabulary)
    data_prepare.log_coverage(prepared.report, "all")
    lives, split_snapshots = follow_up.read_lives(data.path), {}
    for split in events.SPLITS:
        everyone = dataset.read(prepared.folder, split)
        patients = dataset.sample(everyone, recipe.evaluation.max_patients)
        if len(patients) < len(everyone):
            logger.info(f"{split}: {len(patients):,} of {len(everyone):,} patients are taken (evaluation.max_patients)")
        split_snapshots[split], left_out = snapshots.take_snapshot(
            patients, at, lives, data.row_length, has_prediction_token(recipe), whole
        )
        for reason, number in left_out.items():
            logger.info(f"{split}: {number:,} patients left out, {reason}")
        if not len(split_snapshots[split].model_inputs):
            raise ValueError(f"--at: no patient of {split} was alive with an event before; name a later date")
    pooled = {name: {} for name in POOLINGS}
    for split, snapshot in split_snapshots.items():
        windows = snapshots.windows_of(data, snapshot.model_inputs, whole)
        index = data_windows.index_visits(snapshot.model_inputs, data.row_length, data.use_sep)
        rows = len((windows or data_windows.newest_windows(index)).lengths)
        with tqdm(desc=f"embedding {split}, {rows:,} windows", unit="batch") as bar:
            args = (data, found.model, found.params, snapshot.model_inputs, recipe.evaluation.batch_size, windows)
            for name, values in embed(*args, POOLINGS, found.vocabulary, bar.update).items():
                pooled[name][split] = values
    return Population(split_snapshots, _read_groups(data.path, diseases, split_snapshots, at), lives, pooled)


def _read_groups(data: str, diseases: str, known: dict[str, Snapshot], at) -> dict[str, DiseaseGroups]:
    """Reads the diseases of all patients together, so that each shard is read once, and returns them by split."""
    subjects = np.concatenate([snapshot.model_inputs.subject_ids for snapshot in known.values()])
    times = None if at is None else np.concatenate([snapshot.times for snapshot in known.values()])
    all_groups = disease_groups.read_groups(data, diseases, subjects, times)
    stops = np.cumsum([len(snapshot.times) for snapshot in known.values()])[:-1]
    parts = zip(np.split(all_groups.has, stops), np.split(all_groups.later, stops), strict=True)
    return {split: DiseaseGroups(all_groups.names, *part) for split, part in zip(known, parts, strict=True)}


def find_families(found: workdir.LoadedRun, population: Population) -> dict[str, list[made.Candidate]]:
    """Returns the candidates of each representation to compare."""
    histories = {split: snapshot.histories for split, snapshot in population.snapshots.items()}
    rarity = code_rarity(found.vocabulary)
    return {
        made.OWN: made.of_embeddings(population.pooled),
        made.MEAN: made.of_embeddings({"mean": population.pooled["mean"]}),
        made.BAG: made.of_bags(histories, rarity),
        made.PRINCIPAL: made.of_bags(histories, rarity, found.recipe.model.hidden_dim),
    }
