"""A finished run, loaded for evaluation: the model, its data, and the patients to score."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from behrt_jax.data import dataset, windows
from behrt_jax.data import prepare as data_prepare
from behrt_jax.data.config import DataConfig
from behrt_jax.data.prepare import prepare
from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary
from behrt_jax.simulation import oracle, world
from behrt_jax.training import digests as training_digests
from behrt_jax.training import pretraining, workdir


class Run(NamedTuple):
    """A finished run and the patients to score.

    Attributes:
      config: the run's config.
      vocabulary: the model's vocabulary.
      trained: the model and its objectives.
      params: parameters of the best checkpoint.
      source: the MEDS data set of the patients to score.
      split: the split to score.
      train: the run's train split, on which baselines are fitted.
      tuning: the run's tuning split, at most `evaluation.max_patients` patients.
      patients: the patients to score, at most `evaluation.max_patients`.
      say: receives progress messages.
      digests: digests of the training inputs; see `digests.of_pretraining`.
    """

    config: ConfigDict
    vocabulary: Vocabulary
    trained: pretraining.PretrainingTask
    params: Any
    source: Path
    split: str
    train: dataset.Patients
    tuning: dataset.Patients
    patients: dataset.Patients
    say: Callable[[str], None]
    digests: dict[str, str]

    def index(self, patients: dataset.Patients) -> windows.VisitIndex:
        """Indexes the visits of patients, with the run's row length and separators."""
        return windows.index_visits(patients, self.config.data.row_length, self.config.data.use_sep)


def load_run(folder: Path, split: str, data: str | None, say: Callable[[str], None]) -> Run:
    """Loads a run from its workdir, together with its data.

    Raises:
      ValueError: the workdir cannot be loaded, or its data differs from the data of training.
    """
    config, vocabulary, _, params = workdir.load(folder)
    prepared = prepare(DataConfig(**config.data), progress=say)
    if prepared.vocabulary.fingerprint != vocabulary.fingerprint:
        raise ValueError(
            f"{config.data.path}: gives another vocabulary than {folder} was trained with; baselines are fitted on the "
            "train split of the run: restore that data"
        )
    scored_data = prepared
    if data is not None:
        scored_data = prepare(
            DataConfig(**{**config.data, "path": data}), fitted=vocabulary, splits=(split,), progress=say
        )
        say(data_prepare.describe_coverage(scored_data.report, split))
    train, tuning = (dataset.read(prepared.folder, name) for name in ("train", "tuning"))
    everyone, max_patients = dataset.read(scored_data.folder, split), config.evaluation.max_patients
    train, tuning = dataset.sample(train, config.train.max_patients), dataset.sample(tuning, max_patients)
    digests = {"data.path": training_digests.of_patients(pretraining.mark(config, train), tuning)}
    workdir.check_digests(folder, config, digests, say)
    patients = dataset.sample(everyone, max_patients)
    if len(patients) < len(everyone):
        say(f"scoring {len(patients):,} of {len(everyone):,} patients of {split} (evaluation.max_patients)")
    trained = pretraining.make_task(config, vocabulary)
    source = Path(data or config.data.path)
    return Run(config, vocabulary, trained, params, source, split, train, tuning, patients, say, digests)


def check_comparable(run: Run, other: Run, folder: str) -> None:
    """Raises a ValueError if `other`, the run in `folder`, does not predict the same targets as `run`."""
    if other.vocabulary.fingerprint != run.vocabulary.fingerprint:
        raise ValueError(f"--versus={folder}: has another vocabulary; expected a run of the same data")
    shared = set(run.trained.model.objectives) & set(other.trained.model.objectives)
    if not shared:
        raise ValueError(f"--versus={folder}: was trained on nothing that this run was trained on; name another run")
    differences = []
    if shared - {"mlm"} and not np.array_equal(run.trained.is_target, other.trained.is_target):
        differences.append("targets")
    if "time_to_event" in shared and run.config.objective.event_edges != other.config.objective.event_edges:
        differences.append("event_edges")
    if differences:
        keys = " and ".join(f"objective.{key}" for key in differences)
        raise ValueError(f"--versus={folder}: has other {keys}; expected a run that predicts the same")


def read_simulation(
    source: Path, vocabulary: Vocabulary, patients: dataset.Patients, index: windows.VisitIndex
) -> tuple[world.World, world.Histories]:
    """Reads the world of a simulated data set and the observed histories of its patients.

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
    tokens = {
        vocabulary.tokens[code] for code in np.unique(patients.codes[patients.visits >= 0]) if code >= NUM_SPECIAL
    }
    if unknown := sorted(tokens - set(simulated_world.codes)):
        raise ValueError(
            f"{source}: {len(unknown):,} codes that the model reads, such as {unknown[0]}, are not of the simulation; "
            f"{advice} and these codes in data.codes_exclude to compare with the oracle"
        )
    return simulated_world, histories


def is_simulated(source: str | Path) -> bool:
    """Returns whether a data set is simulated, so that the oracle knows its probabilities."""
    return (Path(source) / world.WORLD_FILE).exists()


def score_oracle(run: Run, score: Callable[[], dict]) -> dict:
    """Returns `{"oracle": score()}`; empty if not simulated and, with a warning, if `score` raises a ValueError."""
    if not is_simulated(run.source):
        return {}
    run.say("asking the oracle")
    try:
        return {"oracle": score()}
    except ValueError as error:
        run.say(f"warning: the oracle is left out: {error}")
        return {}
