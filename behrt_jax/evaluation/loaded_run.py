"""A finished run, loaded for evaluation: the model, its data, and the patients to score."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from behrt_jax.data import dataset, windows
from behrt_jax.data import prepare as data_prepare
from behrt_jax.data.prepare import prepare
from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary
from behrt_jax.simulation import oracle, world
from behrt_jax.training import digests as training_digests
from behrt_jax.training import pretraining, workdir
from behrt_jax.training.recipe import PretrainingRecipe

logger = logging.getLogger(__name__)


class Run(NamedTuple):
    """A finished run and the patients to score.

    Attributes:
      task: the recipe, the vocabulary, the model and its objectives.
      params: parameters of the best checkpoint.
      source: the MEDS data set of the patients to score.
      split: the split to score.
      train: the run's train split, on which baselines are fitted.
      tuning: the run's tuning split, at most `evaluation.max_patients` patients.
      patients: the patients to score, at most `evaluation.max_patients`.
      digests: digests of the training inputs; see `digests.of_pretraining`.
    """

    task: pretraining.PretrainingTask
    params: Any
    source: Path
    split: str
    train: dataset.Patients
    tuning: dataset.Patients
    patients: dataset.Patients
    digests: dict[str, str]

    @property
    def recipe(self) -> PretrainingRecipe:
        """The recipe of the run."""
        return self.task.recipe

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the model."""
        return self.task.vocabulary

    def index(self, patients: dataset.Patients) -> windows.VisitIndex:
        """Indexes the visits of patients, with the run's row length and separators."""
        return pretraining.index(self.recipe.data, patients)


def load_run(folder: Path, split: str, data: str | None) -> Run:
    """Loads a run from its workdir, together with its data.

    Raises:
      ValueError: the workdir cannot be loaded, or its data differs from the data of training.
    """
    recipe, facts, vocabulary, _, params = workdir.load_pretraining(folder, str(folder))
    prepared = prepare(recipe.data)
    if prepared.vocabulary.fingerprint != vocabulary.fingerprint:
        raise ValueError(
            f"{recipe.data.path}: gives another vocabulary than {folder} was trained with; baselines are fitted on the "
            "train split of the run: restore that data"
        )
    scored_data = prepared
    if data is not None:
        scored = dataclasses.replace(recipe.data, path=data)
        scored_data = prepare(scored, fitted=vocabulary, splits=(split,))
        data_prepare.log_coverage(scored_data.report, split)
    train, tuning = (dataset.read(prepared.folder, name) for name in ("train", "tuning"))
    everyone, max_patients = dataset.read(scored_data.folder, split), recipe.evaluation.max_patients
    train, tuning = dataset.sample(train, recipe.train.max_patients), dataset.sample(tuning, max_patients)
    digests = {"data.path": training_digests.of_patients(pretraining.add_query_tokens(recipe, train), tuning)}
    workdir.check_digests(folder, recipe, digests)
    patients = dataset.sample(everyone, max_patients)
    if len(patients) < len(everyone):
        logger.info(f"scoring {len(patients):,} of {len(everyone):,} patients of {split} (evaluation.max_patients)")
    task = pretraining.make_task(recipe, facts, vocabulary)
    source = Path(data or recipe.data.path)
    return Run(task, params, source, split, train, tuning, patients, digests)


def check_comparable(run: Run, other: Run, folder: str) -> None:
    """Raises a ValueError if `other`, the run in `folder`, does not predict the same targets as `run`."""
    if other.vocabulary.fingerprint != run.vocabulary.fingerprint:
        raise ValueError(f"--compare_to={folder}: has another vocabulary; expected a run of the same data")
    shared = set(run.task.model.objectives) & set(other.task.model.objectives)
    if not shared:
        raise ValueError(
            f"--compare_to={folder}: was trained on nothing that this run was trained on; name another run"
        )
    differences = []
    if shared - {"mlm"} and not np.array_equal(run.task.is_target, other.task.is_target):
        differences.append("targets")
    if "time_to_event" in shared and run.recipe.objective.event_edges != other.recipe.objective.event_edges:
        differences.append("event_edges")
    if differences:
        keys = " and ".join(f"objective.{key}" for key in differences)
        raise ValueError(f"--compare_to={folder}: has other {keys}; expected a run that predicts the same")


def read_simulation(
    source: Path, vocabulary: Vocabulary, patients: dataset.Patients, index: windows.VisitIndex
) -> tuple[world.World, world.Histories]:
    """Reads the world of a simulated data set and the observed histories of its patients, as far as they are prepared.

    They hold the measurements that are in the vocabulary, and the values of those that have values there.

    Args:
      source: the simulated data set.
      vocabulary: the model's vocabulary.
      patients: patients prepared from it.
      index: their visits.

    Raises:
      ValueError: the visits or codes of the prepared data differ from those of the simulation.
    """
    histories, simulated_world = oracle.read_histories(source, patients.subject_ids), world.load_world(source)
    visits, advice = np.diff(index.first_visit), "train with data.events_without_visit=leave_out"
    if not np.array_equal(np.bincount(histories.owner, minlength=len(visits)), visits):
        raise ValueError(
            f"{source}: holds {len(histories.owner):,} visits of these patients, the prepared data {visits.sum():,}, "
            f"or other ones; {advice} to compare with the oracle"
        )
    ids = np.unique(patients.codes[patients.visits >= 0])
    in_bins = {token: token.rpartition("//Q")[0] for token in (vocabulary.tokens[i] for i in ids if i >= NUM_SPECIAL)}
    codes = {code if code in vocabulary.value_edges else token for token, code in in_bins.items()}
    if unknown := sorted(codes - set(simulated_world.codes)):
        raise ValueError(
            f"{source}: {len(unknown):,} codes that the model reads, such as {unknown[0]}, are not of the simulation; "
            f"{advice} and these codes in data.codes_exclude to compare with the oracle"
        )
    seen_world, seen = world.keep_measurements(simulated_world, histories, codes)
    valued = {*vocabulary.value_edges, *vocabulary.value_scales}
    has_value = np.array([code in valued for code in seen_world.codes[seen_world.measured]], bool)
    values = None if seen.values is None else np.where(has_value, seen.values, np.nan)
    return seen_world, dataclasses.replace(seen, values=values)


def is_simulated(source: str | Path) -> bool:
    """Returns whether a data set is simulated, so that the oracle knows its probabilities."""
    return (Path(source) / world.WORLD_FILE).exists()


def score_oracle(run: Run, score: Callable[[], dict]) -> dict:
    """Returns `score()`; empty if the data is not simulated and, with a warning, if `score` raises a ValueError."""
    if not is_simulated(run.source):
        return {}
    logger.info("asking the oracle")
    try:
        return score()
    except ValueError as error:
        logger.warning(f"the oracle is left out: {error}")
        return {}
