"""The source of a report: a run and, if they can be read, the patients of its data."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from behrt_jax.data import dataset, metadata
from behrt_jax.data.metadata import is_synthetic
from behrt_jax.data.prepare import Prepared, prepare
from behrt_jax.data.vocabulary import Vocabulary
from behrt_jax.evaluation.small_cells import MIN_PATIENTS, drop_small
from behrt_jax.training import workdir
from behrt_jax.training.recipe import PRETRAINING, Facts, FinetuningRecipe, Recipe
from behrt_jax.training.workdir import EVALUATION_FILE

logger = logging.getLogger(__name__)
NO_DATA = "the data of the run cannot be read"


class Source(NamedTuple):
    """A run to report on.

    Attributes:
      folder: the run's workdir.
      recipe: the run's recipe.
      facts: what the data say.
      vocabulary: the model's vocabulary.
      model: the model.
      params: parameters of the best checkpoint.
      data: the MEDS data set with the patients to show.
      prepared: that data set in the run's vocabulary; None if it cannot be read.
      about: metadata of the data set.
      descriptions: of the codes, by id; empty if there is none.
      is_synthetic: whether the data set is known to be simulated.
      show_patients: whether to show single patients; None to show only patients known to be simulated.
    """

    folder: Path
    recipe: Recipe
    facts: Facts
    vocabulary: Vocabulary
    model: Any
    params: Any
    data: Path
    prepared: Prepared | None
    about: dict
    descriptions: list[str]
    is_synthetic: bool
    show_patients: bool | None

    @property
    def is_pretrained(self) -> bool:
        """Whether the run was pre-trained, not fine-tuned."""
        return self.recipe.kind == PRETRAINING

    def may_show(self, is_synthetic: bool) -> bool:
        """Returns whether single patients may be shown, given whether they are known to be simulated."""
        return is_synthetic if self.show_patients is None else self.show_patients

    @property
    def floor(self) -> int:
        """The fewest patients behind any shown number: 1 if single patients may be shown."""
        known = self.is_synthetic and is_synthetic(self.recipe.data.path)  # the shown data, and the run's own
        return 1 if self.may_show(known) else MIN_PATIENTS

    def read_evaluation(self) -> dict | None:
        """Reads the evaluation without estimates of fewer than `floor` patients; None if there is no evaluation."""
        result = self.read_json(EVALUATION_FILE)
        if result is None:
            return None
        is_other = "data" in result and not self.show_patients  # of patients not known to be simulated
        return drop_small(result, MIN_PATIENTS if is_other else self.floor)[0]

    def patients(self, split: str) -> dataset.Patients:
        """Reads the patients of a split, or `all`; a ValueError if the data cannot be read."""
        if self.prepared is None:
            raise ValueError(NO_DATA)
        return dataset.read(self.prepared.folder, split)

    def name(self, code: int) -> str:
        """Returns the description of a code, or its name if there is none."""
        return self.descriptions[code] or self.vocabulary.tokens[code]

    def read_json(self, name: str) -> dict | None:
        """Reads a JSON file of the workdir; None if it does not exist; a ValueError if it is not JSON."""
        file = self.folder / name
        try:
            return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        except ValueError as error:
            raise ValueError(f"{file}: not JSON ({error}); remove it or make it again") from error


def load(folder: Path, data: str | None, show_patients: bool | None) -> Source:
    """Loads a run and finds its data, or `data`, another MEDS data set with the patients to show.

    Single patients are shown if `show_patients` is set; if it is None, only if the data set is known to be simulated.

    Raises:
      ValueError: the workdir cannot be loaded.
    """
    run = workdir.load(folder)
    recipe, vocabulary = run.recipe, run.vocabulary
    path, prepared, problem, about = Path(data or recipe.data.path), None, "", {}
    is_fixed = data or (isinstance(recipe, FinetuningRecipe) and recipe.pretrained)
    try:
        config = dataclasses.replace(recipe.data, path=str(path))
        prepared = prepare(config, vocabulary if is_fixed else None, splits=())
        if prepared.vocabulary.fingerprint != vocabulary.fingerprint:
            prepared, problem = None, f"gives another vocabulary than {folder} has"
        elif (path / "metadata" / "dataset.json").exists():
            about = json.loads((path / "metadata" / "dataset.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        problem = str(error)
    if problem:
        logger.warning(f"{path}: {problem}; sections on patients are left out, --data=DIR names where the data lies")
    simulated = is_synthetic(path)
    descriptions = metadata.read_descriptions(path, vocabulary)
    source = Source(folder, *run, path, prepared, about, descriptions, simulated, show_patients)
    if prepared and not source.may_show(simulated):
        logger.info(
            "single patients are not shown, as the data is not known to be simulated; --show_patients shows them"
        )
    return source
