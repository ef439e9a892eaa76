"""The workdir of a run: recipe, vocabulary and checkpoints; checks them on resumption and loads the model."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import flax.linen as nn
import jax
import numpy as np

from behrt_jax.data import histories, locks
from behrt_jax.data.dataset import Patients
from behrt_jax.data.hashing import hash_integers
from behrt_jax.data.vocabulary import Vocabulary
from behrt_jax.models import lora
from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.pretraining import BEHRTForPretraining
from behrt_jax.objectives.config import ObjectiveConfig
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.training import config_file
from behrt_jax.training.checkpoints import Checkpoints
from behrt_jax.training.config_file import CONFIG_FILE
from behrt_jax.training.recipe import (
    PRETRAINING,
    Facts,
    FinetuningRecipe,
    LoRAConfig,
    PretrainingRecipe,
    Recipe,
    to_dict,
)

logger = logging.getLogger(__name__)
VOCABULARY_FILE = "vocabulary.json"
DIGESTS_FILE = "digests.json"  # of the inputs of a run, each under its config key
EVALUATION_FILE = "evaluation.json"
PARAMETERS_FILE = "parameters.json"  # numbers of all and of trained parameters
MACHINE_FILE = "machine.json"  # hardware and software of the latest part of training
FITTED_FILE = "fitted.json"  # calibration and thresholds from tuning; for Cox, the baseline hazard of train
REGRESSION_FILE = "regression.npz"
REPLICATES_FILE = "replicates.npz"  # of every metric of every model, keys "MODEL: METRIC"
CODE_EMBEDDINGS_FILE = "code_embeddings.json"
EMBEDDING_QUALITY_FILE = "embedding_quality.json"
ATTRIBUTIONS_FILE = "attributions.json"
CHECKPOINTS = "checkpoints"
LOCK_FILE = ".lock"
TUNING_LOSS = "loss"  # the weighted sum of the trained losses
NO_LORA = LoRAConfig()

R = TypeVar("R", bound=Recipe)


class LoadedRun(NamedTuple, Generic[R]):
    """A trained run.

    Attributes:
      recipe: its recipe, with the facts in its sections.
      facts: what the data say.
      vocabulary: V tokens.
      model: the model.
      params: parameters of lowest tuning loss.
    """

    recipe: R
    facts: Facts
    vocabulary: Vocabulary
    model: Any
    params: Any


def load(workdir: str | Path) -> LoadedRun[Recipe]:
    """Loads a run from its workdir, with the parameters of lowest tuning loss.

    Raises:
      ValueError: the workdir lacks a file, or holds no readable checkpoint.
    """
    workdir = Path(workdir)
    recipe, facts = config_file.read(workdir)
    vocabulary = Vocabulary.load(workdir / VOCABULARY_FILE)
    if facts.vocab_size != len(vocabulary):
        raise ValueError(
            f"{workdir / VOCABULARY_FILE}: holds {len(vocabulary)} tokens, but config.json says "
            f"model.vocab_size={facts.vocab_size}; the files are not of the same run"
        )
    if isinstance(recipe, PretrainingRecipe):
        model, lora_config = build_model(recipe.model, recipe.objective), NO_LORA
    else:
        model, lora_config = build_outcome_model(recipe, facts), recipe.lora
    return LoadedRun(recipe, facts, vocabulary, model, restore_params(workdir, model, lora_config))


def load_pretraining(workdir: str | Path, source: str) -> LoadedRun[PretrainingRecipe]:
    """Loads a pre-trained run as `load` does; raises a ValueError that names `source` if it was fine-tuned."""
    if config_file.read(Path(workdir))[0].kind != PRETRAINING:
        raise ValueError(f"{source}: was fine-tuned; expected a run of experiments.pretrain")
    return cast(LoadedRun[PretrainingRecipe], load(workdir))


def load_finetuning(workdir: str | Path, source: str) -> LoadedRun[FinetuningRecipe]:
    """Loads a fine-tuned run as `load` does; raises a ValueError that names `source` if it was pre-trained."""
    if config_file.read(Path(workdir))[0].kind == PRETRAINING:
        raise ValueError(f"{source}: was pre-trained; expected a run of experiments.finetune")
    return cast(LoadedRun[FinetuningRecipe], load(workdir))


def restore_params(workdir: Path, model: nn.Module, lora_config: LoRAConfig = NO_LORA, fall_back: bool = True) -> Any:
    """Restores the best parameters of a workdir for its model, with LoRA factors merged; see `load`."""
    folder = workdir / CHECKPOINTS
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such directory; {workdir} holds no checkpoint yet, run experiments.pretrain first"
        )
    checkpoints = Checkpoints(folder, TUNING_LOSS)

    def make(key):
        params = initialize(model, key)
        return (
            {"base": params, "factors": lora.initialize(params, lora_config.rank, key)} if lora_config.rank else params
        )

    like = jax.eval_shape(make, jax.random.key(0))
    params = checkpoints.restore_best(like, fall_back)
    checkpoints.close()
    if params is None:
        raise ValueError(f"{folder}: holds no checkpoint; run experiments.pretrain first")
    return lora.merge(params["base"], params["factors"], lora_config.scale) if lora_config.rank else params


def build_model(config: BEHRTConfig, objective: ObjectiveConfig) -> BEHRTForPretraining:
    """Builds the pre-training model of a recipe, with a head for each objective."""
    bins, time_known = len(objective.event_edges) + 1, objective.known_time_share > 0
    return BEHRTForPretraining(config, tuple(objective.weights), bins, time_known, objective.value_weight > 0)


def build_outcome_model(recipe: FinetuningRecipe, facts: Facts) -> BEHRTForSequenceClassification:
    """Builds the model of a fine-tuning recipe with its facts, with a head for outcomes."""
    num_outcomes = 1 if facts.label_kind == "binary" else len(facts.names)
    num_labels = recipe.outcome.num_logits if isinstance(recipe.outcome, SurvivalConfig) else num_outcomes
    num_covariates = histories.NUM_COVARIATES if "age_sex" in recipe.head.features else 0
    num_covariates = num_outcomes if "regression" in recipe.head.features else num_covariates
    return BEHRTForSequenceClassification(recipe.model, num_labels, num_covariates)


@functools.partial(jax.jit, static_argnames="model")
def initialize(model: nn.Module, key: jax.Array) -> Any:
    """Initialises the variables of a model, including those of all its heads."""
    ints = jax.numpy.zeros((1, 2), "int32")
    days = ints.astype("float32")
    method = "score_all" if isinstance(model, BEHRTForPretraining) else "__call__"
    return model.init(key, ints, days, ints, ints, time_deltas=days, values=days, method=method)


def digest(*values: Any) -> str:
    """Computes a SHA-256 digest of arrays, strings and numbers, and of dicts, sequences and dataclasses of them.

    The order of keys in a dict does not matter; dtypes, shapes and the order of everything else do.
    """
    hasher = hashlib.sha256()

    def add(value: Any) -> None:
        if dataclasses.is_dataclass(value):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            value = [(key, value[key]) for key in sorted(value)]
        if isinstance(value, list | tuple):
            hasher.update(f"[{len(value)}]".encode())
            for item in value:
                add(item)
        elif isinstance(value, np.ndarray | jax.Array):
            array = np.asarray(value)
            hasher.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
        else:
            hasher.update(f"{type(value).__name__} {value!r};".encode())

    add(values)
    return hasher.hexdigest()


def digest_patients(patients: Patients) -> str:
    """Computes a digest of patients or histories that does not depend on the order of tokens within a patient.

    Tokens of a visit with the same time have no order, so files that list them differently have the same digest.
    """
    columns = (patients.owners, patients.codes, patients.visits, patients.minutes, patients.microseconds)
    columns += () if patients.values is None else (patients.values.view(np.int32),)
    with np.errstate(over="ignore"):
        tokens = hash_integers(*columns).sum(dtype=np.uint64)
    sizes = np.diff(patients.offsets)
    return digest(patients.subject_ids, patients.has_birth, patients.origins, sizes.astype(np.int64), int(tokens))


def check_digests(workdir: Path, recipe: Recipe, digests: Mapping[str, str]) -> None:
    """Checks that the inputs of a run have not changed since it started.

    Args:
      workdir: of the run.
      recipe: its recipe.
      digests: of the current inputs, by config key, such as `labels`.

    Raises:
      ValueError: an input has changed; the message names the keys.
    """
    file = workdir / DIGESTS_FILE
    try:
        stored = json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); restore it, or train anew in another --workdir") from error
    if missing := [key for key in digests if key not in stored]:
        logger.info(
            f"{workdir}: has no digest of {', '.join(missing)}, as older runs; whether they changed is not checked"
        )
    values = config_file.flatten(to_dict(recipe))
    changes = [f"{key} ({values[key]})" for key in digests if stored.get(key, digests[key]) != digests[key]]
    if changes:
        raise ValueError(
            f"{workdir}: began with other contents of {', '.join(changes)} than there are now; restore them, or use "
            "another --workdir for the new ones"
        )


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Creates a workdir, and lets no other process train in it until the block ends.

    Raises:
      ValueError: another process trains in it; the message names that process.
      OSError: the workdir cannot be written, for lack of space or permission.
    """
    cure = "wait until it ends, stop it, or use another --workdir"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.hold(workdir / LOCK_FILE, f"{workdir}: is trained", cure))
        except OSError as error:
            raise _unwritable(workdir, error) from error
        yield


def open_workdir(
    workdir: Path, recipe: Recipe, facts: Facts, vocabulary: Vocabulary, digests: Mapping[str, str] | None = None
) -> bool:
    """Creates a workdir, or checks that an existing one has the same recipe, facts, vocabulary and inputs.

    Args:
      workdir: the folder.
      recipe: with the facts in its sections.
      facts: what the data say.
      vocabulary: fitted, or of the pre-trained run.
      digests: of the inputs of the run; see `check_digests`.

    Returns:
      True if the workdir already existed.

    Raises:
      ValueError: the workdir belongs to another config, vocabulary or inputs; the message names the keys.
      OSError: the workdir cannot be written, for lack of space or permission.
    """
    if (workdir / CONFIG_FILE).exists():
        stored = config_file.read(workdir)
        mismatches = config_file.differences(stored, (recipe, facts))
        _refuse(workdir, [line for line in mismatches if not line.startswith(config_file.SET_FROM_DATA)])
        if Vocabulary.load(workdir / VOCABULARY_FILE).fingerprint != vocabulary.fingerprint:
            raise ValueError(
                f"{workdir / VOCABULARY_FILE}: belongs to another vocabulary than {recipe.data.path} now gives; "
                "use another --workdir or the data that the run began with"
            )
        check_digests(workdir, recipe, digests or {})
        _refuse(workdir, mismatches)
        if stored != (recipe, facts):
            config_file.write(workdir, recipe, facts)  # so that evaluation finds data that was moved
        return True
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        vocabulary.save(workdir / VOCABULARY_FILE)
        if digests:
            (workdir / DIGESTS_FILE).write_text(json.dumps(dict(digests), indent=1))
        config_file.write(workdir, recipe, facts)
    except OSError as error:
        raise _unwritable(workdir, error) from error
    return False


def _unwritable(workdir: Path, error: OSError) -> OSError:
    return OSError(f"{workdir}: cannot be written ({error}); use another --workdir, or free some space")


def _refuse(workdir: Path, differing: list[str]) -> None:
    if differing:
        raise ValueError(
            f"{workdir}: belongs to another config ({'; '.join(differing)}); use another --workdir or the same keys"
        )
