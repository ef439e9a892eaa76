"""Builds a fine-tuning task from a config: data, model with a head, objective and initial parameters."""

import functools
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from behrt_jax.data import prepare
from behrt_jax.data.prepare import Prepared
from behrt_jax.finetuning import data, head_features, head_init, labeled_histories
from behrt_jax.finetuning import pretrained as pretrained_runs
from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.labels import labels as label_data
from behrt_jax.labels.labels import Labels
from behrt_jax.models import devices, lora
from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.objectives import classification, scoring, survival
from behrt_jax.objectives.base import Objective
from behrt_jax.objectives.classification import ClassificationConfig
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.regression.code_regression import CodeRegression
from behrt_jax.training import precision, workdir
from behrt_jax.training.optimizer import layer_lr_scales, stop_frozen_gradients
from behrt_jax.training.recipe import Facts, FinetuningRecipe, read_recipe, with_facts

logger = logging.getLogger(__name__)
KINDS = {"binary": "binary", "multiclass": "multi_class", "multilabel": "multi_label"}


class FinetuningTask(NamedTuple):
    """A model with an outcome head, its data and its objective.

    Attributes:
      recipe: every section of the recipe, with the facts in them.
      facts: what the data say.
      prepared, splits: the data, and labelled histories by split.
      model: takes the parameters that `workdir.load` returns, with LoRA's factors merged.
      objective: takes the trained parameters, which with LoRA are `{"base", "factors"}`.
      initialize: function from a random key to the trained parameters.
      scales: function from the trained parameters to multipliers of their learning rates.
      regression: with the feature `regression`; its log risks are the covariates of `splits`.
      digests: of the labels, the histories and the pre-trained parameters; see `digest_inputs`.
    """

    recipe: FinetuningRecipe
    facts: Facts
    prepared: Prepared
    splits: dict[str, LabeledHistories]
    model: BEHRTForSequenceClassification
    objective: Objective
    initialize: Callable[[jax.Array], Any]
    scales: Callable[[Any], Any]
    regression: CodeRegression | None = None
    digests: Mapping[str, str] = MappingProxyType({})


def read(values: dict[str, Any]) -> FinetuningRecipe:
    """Reads a recipe's values; raises a ValueError if it is not one of fine-tuning, or its keys do not agree."""
    recipe = read_recipe(precision.resolve_dtype(values, precision.fastest_dtype(jax.devices()[0])))
    if not isinstance(recipe, FinetuningRecipe):
        raise ValueError("recipe: is of pre-training; expected configs/classification.py or configs/survival.py")
    if recipe.add_codes and not recipe.pretrained:
        raise ValueError("add_codes: found True without pretrained; expected a run whose vocabulary is added to")
    return recipe


def setup(config: ConfigDict) -> FinetuningTask:
    """Reads the recipe of a config, its labels and data, and builds the task; the config is not changed.

    Raises:
      ValueError: the recipe, the labels or the data cannot be used, or nothing can be learned.
    """
    recipe, pretrained = read(config.to_dict()), None
    devices.check_batch_size(recipe.train.batch_size, recipe.train.accumulate_steps)
    if recipe.pretrained:
        recipe, pretrained = pretrained_runs.load_pretrained(recipe)
    prepared, splits = data.read_splits(recipe, pretrained and pretrained.vocabulary, recipe.add_codes)
    labels = splits["train"].labels
    for split in ("train", "tuning"):
        label_data.check_learnable(splits[split].labels, split)
    digests = digest_inputs(splits, pretrained)
    num_new_codes = len(prepared.vocabulary) - len(pretrained.vocabulary) if pretrained else 0
    if pretrained:
        prepare.log_coverage(prepared.report, "train")
        pretrained = pretrained_runs.add_rows(pretrained, prepared.vocabulary, recipe.data.path)
    regression = head_features.fit(recipe.head, splits, prepared.vocabulary.tokens)
    splits = head_features.select(recipe.head, splits, prepared.vocabulary.tokens, regression)
    facts = find_facts(recipe, labels, len(prepared.vocabulary))
    task = build(recipe, facts, prepared, splits, pretrained and pretrained.params, num_new_codes)
    return task._replace(regression=regression, digests=digests)


def build(
    recipe: FinetuningRecipe,
    facts: Facts,
    prepared: Prepared,
    splits: dict[str, LabeledHistories],
    pretrained_params: Any,
    num_new_codes: int = 0,
) -> FinetuningTask:
    """Builds the task of a recipe and its facts; `pretrained_params` is None to train from scratch."""
    recipe = with_facts(recipe, facts)
    model = workdir.build_outcome_model(recipe, facts)
    objective, first_head = make_objective(recipe, model, splits["train"]), init_head(recipe.outcome, splits["train"])
    if recipe.lora.rank:
        objective = adapt_objective(objective, recipe.lora.scale)
    rates = scales(recipe, num_new_codes)
    if recipe.lora.rank or recipe.freeze != "none":
        objective = hold(objective, rates)
    start = functools.partial(initialize, recipe.lora.rank, model, pretrained_params, first_head)
    return FinetuningTask(recipe, facts, prepared, splits, model, objective, start, rates)


def find_facts(recipe: FinetuningRecipe, train: Labels, vocab_size: int) -> Facts:
    """Returns the facts that follow from train labels and the vocabulary."""
    if not isinstance(recipe.outcome, SurvivalConfig):
        return Facts(vocab_size, label_kind=KINDS[train.kind], names=train.names)
    edges = () if recipe.outcome.edges else survival.fit_edges(train.days, train.events, recipe.outcome.num_bins)
    return Facts(vocab_size, survival_edges=tuple(edges), names=train.names)


def make_objective(recipe: FinetuningRecipe, model, found: LabeledHistories) -> Objective:
    """Builds the objective of a recipe for the labels of train."""
    outcome = recipe.outcome
    if isinstance(outcome, SurvivalConfig):
        if outcome.loss == "cox" and recipe.train.accumulate_steps > 1:
            problem = f"found {recipe.train.accumulate_steps} with survival.loss=cox"
            raise ValueError(
                f"train.accumulate_steps: {problem}; expected 1, as the risk sets of Cox are whole batches"
            )
        return survival.make_objective(model, outcome)
    targets, num_classes = _targets(outcome.kind, found.labels)
    weights = None if outcome.class_weights == "none" else classification.balanced_weights(targets, num_classes)
    return classification.make_objective(model, outcome, weights)


def init_head(outcome: ClassificationConfig | SurvivalConfig, found: LabeledHistories) -> tuple[np.ndarray, np.ndarray]:
    """Returns the covariate kernel and the bias of the initial head, from a regression on the covariates of train."""
    train = found.labels
    if isinstance(outcome, SurvivalConfig):
        return head_init.init_survival_head(found.covariates, train.days, train.events, outcome)
    targets, num_classes = _targets(outcome.kind, train)
    return head_init.init_classification_head(found.covariates, targets, outcome, num_classes)


def _targets(kind: str, labels: Labels) -> tuple[np.ndarray, int]:
    """Returns the targets of a classification objective, and the number of classes."""
    targets = labels.values if kind == "multi_label" else labels.values[:, 0]
    return targets, len(labels.names) if kind == "multi_class" else 2


def initialize(
    lora_rank: int, model, pretrained_params: Any, head: tuple[np.ndarray, np.ndarray], key: jax.Array
) -> Any:
    """Initialises the trained parameters: the pre-trained encoder, and a head that starts at `head`."""
    variables = workdir.initialize(model, key)
    params = dict(variables["params"])
    if pretrained_params is not None:
        params["behrt"] = {**params["behrt"], **pretrained_params["params"]["behrt"]}
    kernel = 0 * params["head"]["output"]["kernel"]
    kernel = kernel.at[len(kernel) - len(head[0]) :].set(head[0])
    params["head"] = {"output": {"kernel": kernel, "bias": jnp.asarray(head[1])}}
    params = {**variables, "params": params}
    if lora_rank:
        return {"base": params, "factors": lora.initialize(params, lora_rank, jax.random.fold_in(key, 1))}
    return params


def scales(recipe: FinetuningRecipe, num_new_codes: int = 0) -> Callable[[Any], Any]:
    """Returns a function from parameters to multipliers of learning rates; new codes are never frozen."""
    freeze = "encoder" if recipe.lora.rank else recipe.freeze
    return functools.partial(layer_lr_scales, decay=recipe.layer_decay, freeze=freeze, num_new_codes=num_new_codes)


def hold(objective: Objective, scales: Callable[[Any], Any]) -> Objective:
    """Stops the gradients of frozen parameters in an objective."""

    def measure(params, prepared, dropout_key):
        return objective.measure(stop_frozen_gradients(params, scales(params)), prepared, dropout_key)

    return objective._replace(measure=measure)


def tuning_scorer(task: FinetuningTask) -> Callable[[Any], dict[str, float]]:
    """Returns a function from trained parameters to the metrics of the objective on tuning."""
    step = scoring.make_tuning_step(task.objective)
    tuning_batches = list(labeled_histories.evaluation_batches(task.recipe, task.splits["tuning"]))
    return lambda params: scoring.score_objective(step, task.objective, params, tuning_batches)


def adapt_objective(objective: Objective, scale: float) -> Objective:
    """Adapts an objective to `{"base": params, "factors": factors}` (LoRA); `layer_lr_scales` can freeze the base."""

    def measure(params, prepared, dropout_key):
        return objective.measure(lora.merge(params["base"], params["factors"], scale), prepared, dropout_key)

    return objective._replace(measure=measure)


def digest_inputs(splits: dict[str, LabeledHistories], pretrained: workdir.LoadedRun | None = None) -> dict[str, str]:
    """Computes digests of the inputs of fine-tuning, by config key: labels, histories and pre-trained parameters.

    Args:
      splits: the labels in use, with their histories.
      pretrained: the run that fine-tuning starts from, if any.
    """
    histories = {name: workdir.digest_patients(part.histories) for name, part in splits.items()}
    labels = {name: part.labels for name, part in splits.items()}
    digests = {"labels": workdir.digest(labels), "data.path": workdir.digest(histories)}
    return digests if pretrained is None else {**digests, "pretrained": workdir.digest(pretrained.params)}
