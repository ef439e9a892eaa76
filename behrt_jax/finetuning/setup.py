"""Builds a fine-tuning task from a config: data, model with a head, objective and initial parameters."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from behrt_jax.data import prepare
from behrt_jax.data.prepare import Prepared
from behrt_jax.finetuning import data, head_init, head_regression, labeled_histories
from behrt_jax.finetuning import pretrained as pretrained_runs
from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.labels import labels as label_data
from behrt_jax.labels.labels import Labels
from behrt_jax.models import lora
from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.objectives import classification, scoring, survival
from behrt_jax.objectives.base import Objective
from behrt_jax.objectives.classification import ClassificationConfig
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.regression.code_regression import CodeRegression
from behrt_jax.training import workdir
from behrt_jax.training.optimizer import layer_lr_scales, stop_frozen_gradients

KINDS = {"binary": "binary", "multiclass": "multi_class", "multilabel": "multi_label"}


class FinetuningTask(NamedTuple):
    """A model with an outcome head, its data and its objective.

    Attributes:
      prepared, splits: the data, and labelled histories by split.
      model: takes the parameters that `workdir.load` returns, with LoRA's factors merged.
      objective: takes the trained parameters, which with LoRA are `{"base", "factors"}`.
      initialize: function from a random key to the trained parameters.
      scales: function from the trained parameters to multipliers of their learning rates.
      regression: with `history.regression`; its log risks are the covariates of `splits`.
      digests: of the labels, the histories and the pre-trained parameters; see `digest_inputs`.
    """

    prepared: Prepared
    splits: dict[str, LabeledHistories]
    model: BEHRTForSequenceClassification
    objective: Objective
    initialize: Callable[[jax.Array], Any]
    scales: Callable[[Any], Any]
    regression: CodeRegression | None = None
    digests: Mapping[str, str] = MappingProxyType({})


def setup(config: ConfigDict, say: Callable[[str], None]) -> FinetuningTask:
    """Reads labels and data and builds the task of a config; raises a ValueError if nothing can be learned."""
    if config.add_codes and not config.pretrained:
        raise ValueError("add_codes: found True without pretrained; expected a run whose vocabulary is added to")
    if config.forecast.codes and not config.pretrained:
        codes = ", ".join(config.forecast.codes)
        raise ValueError(f"forecast.codes: found {codes} without pretrained; expected a run of configs/events.py")
    pretrained = pretrained_runs.load_pretrained(config) if config.pretrained else None
    prepared, splits = data.read_splits(config, pretrained and pretrained.vocabulary, say, config.add_codes)
    labels = splits["train"].labels
    for split in ("train", "tuning"):
        label_data.check_learnable(splits[split].labels, split)
    if config.forecast.codes and ((kind := labels.kind) not in ("binary", "survival") or len(labels.names) > 1):
        raise ValueError(f"forecast.codes: found {kind} labels; expected one binary label, or times to an event")
    digests = digest_inputs(splits, pretrained)
    num_new_codes = len(prepared.vocabulary) - len(pretrained.vocabulary) if pretrained else 0
    if pretrained:
        say(prepare.describe_coverage(prepared.report, "train"))
        pretrained = pretrained_runs.add_rows(pretrained, prepared.vocabulary, config.data.path)
    regression = head_regression.fit(config, splits, prepared.vocabulary.tokens, say)
    splits = head_regression.add(splits, regression, prepared.vocabulary.tokens)
    task = build(config, prepared, splits, pretrained and pretrained.params, num_new_codes)
    return task._replace(regression=regression, digests=digests)


def build(
    config: ConfigDict, prepared: Prepared, splits: dict[str, LabeledHistories], begun: Any, num_new_codes: int = 0
) -> FinetuningTask:
    """Builds the task of a config and completes the config; `begun` are pre-trained parameters, None from scratch."""
    fill_in(config, splits["train"].labels, len(prepared.vocabulary))
    model = workdir.build_outcome_model(config)
    objective, first_head = make_objective(config, model, splits["train"]), begin_head(config, splits["train"])
    if config.lora.rank:
        objective = adapt_objective(objective, config.lora.scale)
    rates = scales(config, num_new_codes)
    if config.lora.rank or config.freeze != "none":
        objective = hold(objective, rates)
    start = functools.partial(initialize, config, model, begun, first_head)
    return FinetuningTask(prepared, splits, model, objective, start, rates)


def fill_in(config: ConfigDict, train: Labels, vocab_size: int) -> None:
    """Sets the config keys that depend on the labels of train and on the vocabulary."""
    with config.unlocked():
        config.model.vocab_size, config.names = vocab_size, train.names
        if "classification" in config:
            config.classification.kind = KINDS[train.kind]
        else:
            config.survival.num_causes = len(train.names)
            if not config.survival.edges:
                config.survival.edges = survival.fit_edges(train.days, train.events, config.survival.num_bins)


def make_objective(config: ConfigDict, model, found: LabeledHistories) -> Objective:
    """Builds the objective of a recipe for the labels of train."""
    if "survival" in config:
        settings = SurvivalConfig(**config.survival)
        if settings.loss == "cox" and config.train.accumulate_steps > 1:
            problem = f"found {config.train.accumulate_steps} with survival.loss=cox"
            raise ValueError(
                f"train.accumulate_steps: {problem}; expected 1, as the risk sets of Cox are whole batches"
            )
        return survival.make_objective(model, settings)
    settings, (targets, num_classes) = ClassificationConfig(**config.classification), _targets(config, found.labels)
    weights = None if settings.class_weights == "none" else classification.balanced_weights(targets, num_classes)
    return classification.make_objective(model, settings, weights)


def begin_head(config: ConfigDict, found: LabeledHistories) -> tuple[np.ndarray, np.ndarray]:
    """Returns the covariate kernel and the bias of the initial head, from a regression on the covariates of train."""
    train = found.labels
    if "survival" in config:
        return head_init.init_survival_head(
            found.covariates, train.days, train.events, SurvivalConfig(**config.survival)
        )
    settings = ClassificationConfig(**config.classification)
    targets, num_classes = _targets(config, train)
    return head_init.init_classification_head(found.covariates, targets, settings, num_classes)


def _targets(config: ConfigDict, labels: Labels) -> tuple[np.ndarray, int]:
    """Returns the targets of a classification objective, and the number of classes."""
    kind = config.classification.kind
    targets = labels.values if kind == "multi_label" else labels.values[:, 0]
    return targets, len(labels.names) if kind == "multi_class" else 2


def initialize(config: ConfigDict, model, begun: Any, head: tuple[np.ndarray, np.ndarray], key: jax.Array) -> Any:
    """Initialises the trained parameters: the pre-trained encoder, and a head that starts at `head`."""
    variables = workdir.initialize(model, key)
    params = dict(variables["params"])
    if begun is not None:
        params["behrt"] = {**params["behrt"], **begun["params"]["behrt"]}
        params |= {name: begun["params"][name] for name in params if name == "time_to_event"}
    kernel = 0 * params["head"]["output"]["kernel"]
    kernel = kernel.at[len(kernel) - len(head[0]) :].set(head[0])
    params["head"] = {"output": {"kernel": kernel, "bias": jnp.asarray(head[1])}}
    params = {**variables, "params": params}
    if config.lora.rank:
        return {"base": params, "factors": lora.initialize(params, config.lora.rank, jax.random.fold_in(key, 1))}
    return params


def scales(config: ConfigDict, num_new_codes: int = 0) -> Callable[[Any], Any]:
    """Returns a function from parameters to multipliers of learning rates; new codes are never frozen."""
    freeze = "encoder" if config.lora.rank else config.freeze
    return functools.partial(layer_lr_scales, decay=config.layer_decay, freeze=freeze, num_new_codes=num_new_codes)


def hold(objective: Objective, scales: Callable[[Any], Any]) -> Objective:
    """Stops the gradients of frozen parameters in an objective."""

    def measure(params, prepared, dropout_key):
        return objective.measure(stop_frozen_gradients(params, scales(params)), prepared, dropout_key)

    return objective._replace(measure=measure)


def tuning_scorer(config: ConfigDict, task: FinetuningTask) -> Callable[[Any], dict[str, float]]:
    """Returns a function from trained parameters to the metrics of the objective on tuning."""
    step = scoring.make_tuning_step(task.objective)
    tuning_batches = list(labeled_histories.evaluation_batches(config, task.splits["tuning"]))
    return lambda params: scoring.score_objective(step, task.objective, params, tuning_batches)


def adapt_objective(objective: Objective, scale: float) -> Objective:
    """Adapts an objective to `{"base": params, "factors": factors}` (LoRA); `layer_lr_scales` can freeze the base."""

    def measure(params, prepared, dropout_key):
        return objective.measure(lora.merge(params["base"], params["factors"], scale), prepared, dropout_key)

    return objective._replace(measure=measure)


def digest_inputs(splits: dict[str, LabeledHistories], pretrained: workdir.Loaded | None = None) -> dict[str, str]:
    """Computes digests of the inputs of fine-tuning, by config key: labels, histories and pre-trained parameters.

    Args:
      splits: the labels in use, with their histories.
      pretrained: the run that fine-tuning starts from, if any.
    """
    histories = {name: workdir.digest_patients(part.histories) for name, part in splits.items()}
    labels = {name: part.labels for name, part in splits.items()}
    digests = {"labels": workdir.digest(labels), "data.path": workdir.digest(histories)}
    return digests if pretrained is None else {**digests, "pretrained": workdir.digest(pretrained.params)}
