"""Recipes: every section of a config as a frozen dataclass, and the facts that the data add to it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from behrt_jax.data.config import DataConfig
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.objectives.classification import ClassificationConfig
from behrt_jax.objectives.config import ObjectiveConfig
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.training.loop import TrainConfig
from behrt_jax.training.optimizer import OptimizerConfig

PRETRAINING, CLASSIFICATION, SURVIVAL = "pretraining", "classification", "survival"
FEATURES = ("age_sex", "regression")
OUTCOMES = {CLASSIFICATION: ClassificationConfig, SURVIVAL: SurvivalConfig}
# Fields of sections that are facts: until the data are read, they hold these values.
UNKNOWN = {"model": {"vocab_size": 1}, CLASSIFICATION: {"kind": "binary"}, SURVIVAL: {"num_causes": 1}}


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The section `evaluation` of pre-training.

    Attributes:
      mask_rate: share of the codes to mask.
      batch_size: rows per batch.
      max_patients: maximum number of patients of a split, those with the lowest hash of their id.
      num_mask_samples: number of times that each patient is masked in the final evaluation.
    """

    mask_rate: float
    batch_size: int
    max_patients: int
    num_mask_samples: int


@dataclasses.dataclass(frozen=True)
class OutcomeEvaluationConfig:
    """The section `evaluation` of fine-tuning.

    Attributes:
      batch_size: rows per batch.
      calibration: of classification, fitted on tuning: `temperature`, `isotonic` or `none`.
      horizons: of survival, the days ahead for which risks are predicted.
    """

    batch_size: int
    calibration: str = "none"
    horizons: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class HistoryConfig:
    """The section `history` of fine-tuning: what the model reads at a prediction time.

    Attributes:
      include_at: whether events at the exact prediction time are included.
      prediction_token: whether a token at the prediction time ends the history.
    """

    include_at: bool
    prediction_token: bool


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The section `head` of fine-tuning: what the head reads beside the patient embedding, at the prediction time.

    Attributes:
      features: `age_sex`, or `regression`, the log risk of a regression on codes, age and sex; may be empty.
    """

    features: tuple[str, ...] = ("age_sex",)

    def __post_init__(self):
        unknown = [self.features] if isinstance(self.features, str) else sorted({*self.features} - {*FEATURES})
        if unknown:
            raise ValueError(f"head.features: found {', '.join(unknown)}; expected a tuple of {', '.join(FEATURES)}")
        if {"age_sex", "regression"} <= {*self.features}:
            raise ValueError(
                "head.features: found age_sex and regression, which reads age and sex; expected one of them"
            )


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """The section `lora` of fine-tuning: the rank of low-rank updates (0 disables them), multiplied by alpha / rank."""

    rank: int = 0
    alpha: float = 8.0

    @property
    def scale(self) -> float:
        """The factor of the updates."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class TemporalSplitConfig:
    """The section `temporal_split` of fine-tuning.

    Attributes:
      cutoff: a date such as `2015-01-01`; training is before it, the test after it. Empty for no temporal split.
      outcome_window_days: of classification, the time after a prediction in which outcomes count.
    """

    cutoff: str = ""
    outcome_window_days: float = 0.0


def check_values(data: DataConfig, model: BEHRTConfig) -> None:
    """Raises a ValueError if a model reads values that the data lack."""
    if model.value_encoding != "none" and data.value_encoding != "continuous":
        found = f"{model.value_encoding!r} with data.value_encoding={data.value_encoding!r}"
        raise ValueError(f"model.value_encoding: found {found}; expected none, or data.value_encoding='continuous'")


@dataclasses.dataclass(frozen=True)
class PretrainingRecipe:
    """A recipe of pre-training, one attribute per section; `kind` is `pretraining`."""

    data: DataConfig
    model: BEHRTConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    evaluation: EvaluationConfig
    seed: int = 0
    code_init: str = ""
    kind: str = PRETRAINING

    def __post_init__(self):
        if self.objective.value_weight and self.data.value_encoding != "continuous":
            found = f"{self.objective.value_weight} with data.value_encoding={self.data.value_encoding!r}"
            raise ValueError(f"objective.value_weight: found {found}; expected 0, or data.value_encoding='continuous'")
        check_values(self.data, self.model)


@dataclasses.dataclass(frozen=True)
class FinetuningRecipe:
    """A recipe of fine-tuning, one attribute per section.

    Attributes:
      kind: `classification` or `survival`, the name of the section `outcome`.
    """

    kind: str
    outcome: ClassificationConfig | SurvivalConfig
    data: DataConfig
    model: BEHRTConfig
    history: HistoryConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    evaluation: OutcomeEvaluationConfig
    labels: str
    pretrained: str
    freeze: str
    layer_decay: float
    add_codes: bool = False
    head: HeadConfig = HeadConfig()
    lora: LoRAConfig = LoRAConfig()
    temporal_split: TemporalSplitConfig = TemporalSplitConfig()
    seed: int = 0

    def __post_init__(self):
        check_values(self.data, self.model)


Recipe = PretrainingRecipe | FinetuningRecipe


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the data say, saved beside the recipe. Empty values do not apply to the kind of run, or are in the recipe.

    Attributes:
      vocab_size: V.
      event_edges: inner edges (days) of the bins of event rates, fitted to train.
      names: of outcomes, classes or causes.
      label_kind: `binary`, `multi_class` or `multi_label`.
      survival_edges: the last day of each time bin, fitted to train.
    """

    vocab_size: int
    event_edges: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    label_kind: str = ""
    survival_edges: tuple[float, ...] = ()


# The place of each fact among the keys of a config.
FACT_KEYS = {
    "vocab_size": "model.vocab_size",
    "event_edges": "objective.event_edges",
    "names": "names",
    "label_kind": "classification.kind",
    "survival_edges": "survival.edges",
}


def has_prediction_token(recipe: Recipe) -> bool:
    """Returns whether a prediction token ends what the model reads, as for fine-tuned models that learned with it."""
    return isinstance(recipe, FinetuningRecipe) and recipe.history.prediction_token


def read_recipe(config: Mapping[str, Any]) -> Recipe:
    """Builds the recipe of a config, given as nested dicts; ignores facts, such as in the config of a loaded run.

    Raises:
      ValueError: a key is unknown or missing, or its value cannot be used.
    """
    config = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    config.pop("names", None)
    for section, values in UNKNOWN.items():
        if section in config:
            given = {key: value for key, value in config[section].items() if value is not None}
            config[section] = {**values, **given}
    outcome = next((name for name in OUTCOMES if name in config), None)
    if "objective" in config:
        return _build(PretrainingRecipe, "", config)
    if outcome is None:
        raise ValueError(f"recipe: has neither of the sections objective, {', '.join(OUTCOMES)}; expected one of them")
    if all(name in config for name in OUTCOMES):
        raise ValueError(f"recipe: has the sections {' and '.join(OUTCOMES)}; expected one of them")
    section = _build(OUTCOMES[outcome], outcome, config.pop(outcome))
    return _build(FinetuningRecipe, "", {**config, "kind": outcome, "outcome": section})


def _build(kind: Any, name: str, keys: Mapping[str, Any]) -> Any:
    """Builds a dataclass from its keys, and its sections from dicts."""
    prefix, fields = f"{name}." if name else "", {field.name: field for field in dataclasses.fields(kind)}
    if unknown := [key for key in keys if key not in fields]:
        raise ValueError(f"{prefix}{unknown[0]}: no such key; expected one of {', '.join(fields)}")
    for key, field in fields.items():
        if key not in keys and field.default is dataclasses.MISSING:
            raise ValueError(f"{prefix}{key}: missing; expected a key of every recipe of this kind")
    sections = {key: fields[key].type for key, value in keys.items() if isinstance(value, Mapping)}
    return kind(**{**keys, **{key: _build(each, f"{prefix}{key}", keys[key]) for key, each in sections.items()}})


def with_facts(recipe: Any, facts: Facts) -> Any:
    """Returns a recipe whose sections hold the facts that are fields of theirs."""
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=facts.vocab_size))
    if isinstance(recipe, PretrainingRecipe):
        edges = facts.event_edges or recipe.objective.event_edges
        return dataclasses.replace(recipe, objective=dataclasses.replace(recipe.objective, event_edges=edges))
    if isinstance(recipe.outcome, SurvivalConfig):
        edges = facts.survival_edges or recipe.outcome.edges
        outcome = dataclasses.replace(recipe.outcome, edges=edges, num_causes=len(facts.names))
    else:
        outcome = dataclasses.replace(recipe.outcome, kind=facts.label_kind)
    return dataclasses.replace(recipe, outcome=outcome)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Converts a recipe to nested dicts, with the keys of a config."""
    config = dataclasses.asdict(recipe)
    del config["kind"]
    if isinstance(recipe, FinetuningRecipe):
        config[recipe.kind] = config.pop("outcome")
    return config


def to_config(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    """Converts a recipe and its facts to the nested dicts of one config."""
    config = to_dict(recipe)
    if isinstance(recipe, FinetuningRecipe):
        config["names"] = facts.names
    return config


def without_facts(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    """Converts a recipe to nested dicts, without the facts that its sections hold."""
    config = to_dict(recipe)
    for section, values in UNKNOWN.items():
        for key in values:
            take(config, f"{section}.{key}")
    for section, key, edges in (
        ("objective", "event_edges", facts.event_edges),
        ("survival", "edges", facts.survival_edges),
    ):
        if edges:
            config[section][key] = ()
    return config


def find_facts(config: Mapping[str, Any]) -> Facts:
    """Returns the facts in a config, as from `to_config`."""
    facts = {}
    for name, key in FACT_KEYS.items():
        *sections, last = key.split(".")
        value = (config.get(sections[0], {}) if sections else config).get(last)
        facts |= {} if value is None else {name: value}
    return Facts(**facts)


def take(config: dict[str, Any], key: str) -> Any:
    """Removes a key such as `model.vocab_size` from nested dicts; returns its value, or None without the key."""
    *sections, name = key.split(".")
    for section in sections:
        config = config.get(section, {})
    return config.pop(name, None)
