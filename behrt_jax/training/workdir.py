"""The workdir of a run: config, vocabulary and checkpoints; checks them on resumption and loads the model."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from behrt_jax.data import histories
from behrt_jax.data.dataset import Patients
from behrt_jax.data.hashing import hash_integers
from behrt_jax.data.vocabulary import Vocabulary
from behrt_jax.models import lora
from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.pretraining import BEHRTForPretraining
from behrt_jax.objectives.config import ObjectiveConfig
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.training.checkpoints import Checkpoints

CONFIG_FILE = "config.json"
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
TUNING_LOSS = "loss"  # the weighted sum of the trained losses
# Keys that may change when a run resumes: locations of data, and settings of logging and evaluation only.
# The vocabulary size follows from the vocabulary, which is compared by its fingerprint.
KEYS_ALLOWED_TO_CHANGE = (
    "data.path",
    "data.prepared_dir",
    "train.log_every",
    "evaluation.num_mask_samples",
    "model.vocab_size",
)
# Keys set from the data and the labels: if these changed, the error names the changed input first.
SET_FROM_DATA = (
    "names",
    "classification.kind",
    "survival.edges",
    "survival.num_causes",
    "objective.event_edges",
    "forecast.",
)


# Old names in workdirs from before version 0.2; to be dropped at version 1.0. Sections come before their keys.
RENAMED_KEYS = {
    "foretold": "forecast",
    "out_of_time": "temporal_split",
    "temporal_split.gap_days": "outcome_window_days",
    "data.separators": "use_sep",
    "evaluation.mask_draws": "num_mask_samples",
    "history.mark": "prediction_token",
    "objective.days_weight": "time_gap_weight",
    "objective.event_first": "first_event_only",
    "objective.event_times": "query_times",
    "objective.event_visits": "queries_per_row",
}
RENAMED_VALUES = {
    ("data", "events_without_visit", "visits"): "group_by_day",
    ("objective", "query_times", "visits"): "after_visits",
    ("objective", "query_times", "any"): "anytime",
}


class Loaded(NamedTuple):
    """The result of `load`: `config, vocabulary, model, params`."""

    config: ConfigDict
    vocabulary: Vocabulary
    model: BEHRTForPretraining | BEHRTForSequenceClassification
    params: Any


def load(workdir: str | Path) -> Loaded:
    """Loads a model from its workdir, with the parameters of lowest tuning loss.

    Args:
      workdir: the workdir of `experiments.pretrain` or `experiments.finetune`.

    Returns:
      `(config, vocabulary, model, params)`. `model.apply(params, codes, ages, visit_ids, attention_mask)` returns the
      logits of masked codes if the model was trained on them, `method="predict_next_visits"` those of next visits; for
      a fine-tuned model, the logits of its outcomes (see `objectives.classification` and `objectives.survival`). Pass
      `time_deltas=` (days since the previous visit) too if `config.model.time_bins` is not 0, and `dates=` (years since
      2000) if `config.model.date_encoding` is not `none`.

    Raises:
      ValueError: the workdir lacks a file, or holds no readable checkpoint.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    vocabulary = Vocabulary.load(workdir / VOCABULARY_FILE)
    if config.model.vocab_size != len(vocabulary):
        raise ValueError(
            f"{workdir / VOCABULARY_FILE}: holds {len(vocabulary)} tokens, but config.json says "
            f"model.vocab_size={config.model.vocab_size}; the files are not of the same run"
        )
    model = build_model(config) if "objective" in config else build_outcome_model(config)
    params = restore_params(workdir, config, model)
    return Loaded(config, vocabulary, model, params)


def restore_params(workdir: Path, config: ConfigDict, model: nn.Module, warn: Callable[[str], None] = print) -> Any:
    """Restores the best parameters of a workdir for its model, with LoRA factors merged; see `load`."""
    folder = workdir / CHECKPOINTS
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such directory; {workdir} holds no checkpoint yet, run experiments.pretrain first"
        )
    checkpoints = Checkpoints(folder, TUNING_LOSS)
    lora_config = config.lora if "lora" in config and config.lora.rank else None

    def make(key):
        params = initialize(model, key)
        return {"base": params, "factors": lora.initialize(params, lora_config.rank, key)} if lora_config else params

    like = jax.eval_shape(make, jax.random.key(0))
    params = checkpoints.restore_best(like, warn)
    checkpoints.close()
    if params is None:
        raise ValueError(f"{folder}: holds no checkpoint; run experiments.pretrain first")
    return lora.merge(params["base"], params["factors"], lora_config.scale) if lora_config else params


def build_model(config: ConfigDict) -> BEHRTForPretraining:
    """Builds the pre-training model of a recipe whose `model.vocab_size` is set, with a head for each objective."""
    objective = ObjectiveConfig(**config.objective)
    bins = len(objective.event_edges) + 1
    time_known = objective.known_time_share > 0
    return BEHRTForPretraining(BEHRTConfig(**config.model), tuple(objective.weights), bins, time_known)


def build_outcome_model(config: ConfigDict) -> BEHRTForSequenceClassification:
    """Builds the model of a fine-tuning recipe whose label-dependent values are set, with a head for outcomes."""
    if "survival" in config:
        num_labels = SurvivalConfig(**config.survival).num_logits
    else:
        num_labels = 1 if config.classification.kind == "binary" else len(config.names)
    num_covariates = histories.NUM_COVARIATES if config.history.age_and_sex else 0
    if config.history.get("regression"):  # older runs lack this key
        num_covariates = (
            1 if "classification" in config and config.classification.kind == "binary" else len(config.names)
        )
    forecast = (config.forecast.ids, config.forecast.edges) if "forecast" in config else ()
    return BEHRTForSequenceClassification(BEHRTConfig(**config.model), num_labels, num_covariates, *forecast)


@functools.partial(jax.jit, static_argnames="model")
def initialize(model: nn.Module, key: jax.Array) -> Any:
    """Initialises the variables of a model, including those of all its heads."""
    ints = jax.numpy.zeros((1, 2), "int32")
    days = ints.astype("float32")
    method = "score_all" if isinstance(model, BEHRTForPretraining) else "__call__"
    return model.init(key, ints, days, ints, ints, time_deltas=days, dates=days, method=method)


def read_config(workdir: Path) -> ConfigDict:
    """Reads the config of a workdir and locks it.

    Raises:
      ValueError: the config is missing or is not JSON.
    """
    file = workdir / CONFIG_FILE
    try:
        config = ConfigDict(_tuples(rename_keys(json.loads(file.read_text()))))
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: not the config of a workdir ({error}); expected one that pretrain wrote") from error
    if "data" in config:
        config.data.value_digits = config.data.get("value_digits", 0)  # older runs lack this key
        config.data.sex_codes = config.data.get("sex_codes", ())
    if "objective" in config:
        # Keys that older runs lack, with the value equivalent to the behaviour of those runs.
        for key, default in (("first_event_only", False), ("query_times", "after_visits"), ("known_time_share", 0.0)):
            config.objective[key] = config.objective.get(key, default)
    return config.lock()


def rename_keys(config: dict) -> dict:
    """Replaces keys and values of a config from before version 0.2 with the current ones."""
    for old, new in RENAMED_KEYS.items():
        *sections, key = old.split(".")
        node = config
        for section in sections:
            node = node.get(section, {})
        if key in node:
            node[new] = node.pop(key)
    for (section, key, old), new in RENAMED_VALUES.items():
        if config.get(section, {}).get(key) == old:
            config[section][key] = new
    return config


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
    with np.errstate(over="ignore"):
        tokens = hash_integers(*columns).sum(dtype=np.uint64)
    sizes = np.diff(patients.offsets)
    return digest(patients.subject_ids, patients.has_birth, patients.origins, sizes.astype(np.int64), int(tokens))


def check_digests(
    workdir: Path, config: ConfigDict, digests: Mapping[str, str], say: Callable[[str], None] = print
) -> None:
    """Checks that the inputs of a run have not changed since it started.

    Args:
      workdir: of the run.
      config: its recipe.
      digests: of the current inputs, by config key, such as `labels`.
      say: called with a message if the workdir has no digest to compare with, as in older runs.

    Raises:
      ValueError: an input has changed; the message names the keys.
    """
    file = workdir / DIGESTS_FILE
    try:
        stored = json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); restore it, or train anew in another --workdir") from error
    if missing := [key for key in digests if key not in stored]:
        say(f"{workdir}: has no digest of {', '.join(missing)}, as older runs; whether they changed is not checked")
    values = _flat(config.to_dict())
    changes = [f"{key} ({values[key]})" for key in digests if stored.get(key, digests[key]) != digests[key]]
    if changes:
        raise ValueError(
            f"{workdir}: began with other contents of {', '.join(changes)} than there are now; restore them, or use "
            "another --workdir for the new ones"
        )


def open_workdir(
    workdir: Path,
    config: ConfigDict,
    vocabulary: Vocabulary,
    digests: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Creates a workdir, or checks that an existing one has the same config, vocabulary and inputs.

    Args:
      workdir: the folder.
      config: the recipe.
      vocabulary: fitted, or of the pre-trained run.
      digests: of the inputs of the run; see `check_digests`.
      say: called with a message if an older workdir has no digests.

    Returns:
      True if the workdir already existed.

    Raises:
      ValueError: the workdir belongs to another config, vocabulary or inputs; the message names the keys.
      OSError: the workdir cannot be written, for lack of space or permission.
    """
    if (workdir / CONFIG_FILE).exists():
        mismatches = differences(read_config(workdir), config)
        _refuse(workdir, [line for line in mismatches if not line.startswith(SET_FROM_DATA)])
        if Vocabulary.load(workdir / VOCABULARY_FILE).fingerprint != vocabulary.fingerprint:
            raise ValueError(
                f"{workdir / VOCABULARY_FILE}: belongs to another vocabulary than {config.data.path} now gives; "
                "use another --workdir or the data that the run began with"
            )
        check_digests(workdir, config, digests or {}, say)
        _refuse(workdir, mismatches)
        if read_config(workdir).to_dict() != config.to_dict():
            _write_config(workdir, config)  # so that evaluation finds data that was moved
        return True
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        vocabulary.save(workdir / VOCABULARY_FILE)
        if digests:
            (workdir / DIGESTS_FILE).write_text(json.dumps(dict(digests), indent=1))
        _write_config(workdir, config)
    except OSError as error:
        raise OSError(f"{workdir}: cannot be written ({error}); use another --workdir, or free some space") from error
    return False


def _refuse(workdir: Path, differing: list[str]) -> None:
    if differing:
        raise ValueError(
            f"{workdir}: belongs to another config ({'; '.join(differing)}); use another --workdir or the same keys"
        )


def _write_config(workdir: Path, config: ConfigDict) -> None:
    scratch = workdir / f"{CONFIG_FILE}.tmp"
    scratch.write_text(json.dumps(config.to_dict(), indent=1))
    scratch.replace(workdir / CONFIG_FILE)


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lists the keys that differ between two configs but must not: `train.num_steps: 10 there, 20 now`."""
    # An empty value of a new key stands for the behaviour of runs without the key, which may therefore resume.
    old_values, new_values = (
        {key: value for key, value in _flat(config.to_dict()).items() if value not in ("", (), [])}
        for config in (old, new)
    )
    keys = sorted({*old_values, *new_values})
    return [
        f"{key}: {old_values.get(key, 'absent')} there, {new_values.get(key, 'absent')} now"
        for key in keys
        if _tuples(old_values.get(key)) != _tuples(new_values.get(key)) and not key.startswith(KEYS_ALLOWED_TO_CHANGE)
    ]


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
