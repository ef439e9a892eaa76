"""Initialises the head from a linear probe on covariates, forecasts and embeddings of the pre-trained encoder.

Fine-tuning from there changes the encoder less, and needs fewer labels (linear probing, then fine-tuning: Kumar et al.
2022).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.finetuning import head_init, labeled_histories
from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.models.inputs import model_arguments
from behrt_jax.objectives import classification, survival
from behrt_jax.objectives.classification import ClassificationConfig
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.training.recipe import FinetuningRecipe

OutcomeConfig = ClassificationConfig | SurvivalConfig

# Of standardised embeddings relative to other inputs, under a ridge that is the same for all; 0 leaves them out.
SCALES = (0.0, 0.01, 0.03, 0.1, 0.3)
FORECAST_SCALE = 0.25  # likewise, of forecasts: for deviations from their prior weights
TRAITS = (1.0, 0.0)  # with and without covariates (age and sex)


def init_head(recipe: FinetuningRecipe, model, params: Any, splits: dict[str, LabeledHistories]) -> Any:
    """Sets the head of a model for binary outcomes or times to an event.

    Args:
      recipe: the recipe.
      model: a `BEHRTForSequenceClassification`.
      params: of the model, or such parameters with LoRA's factors.
      splits: `train`, to which regressions are fitted, one for each of `SCALES` with and without covariates; and
        `tuning`, whose loss selects one.
    """
    variables = params["base"] if recipe.lora.rank else params
    inputs = {name: read_patients(recipe, model, variables, splits[name]) for name in ("train", "tuning")}
    # Columns: embeddings, forecasts, covariates. Forecasts are always used.
    means, size = inputs["train"].mean(axis=0), recipe.model.hidden_dim
    first = size + len(model.forecast_ids)
    standard = np.where(np.arange(len(means)) < size, 1 / (inputs["train"].std(axis=0) + 1e-3), 1.0)
    # The prior weights of forecasts give the mean over the codes; labels change them.
    prior_weights = np.repeat([0.0, 1.0 / max(first - size, 1), 0.0], [size, first - size, len(means) - first])
    heads = []
    for scale in SCALES:
        for with_covariates in TRAITS if inputs["train"].shape[1] > first else (1.0,):
            factor = standard * np.repeat(
                [scale, FORECAST_SCALE, with_covariates], [size, first - size, len(means) - first]
            )
            deviations = inputs["train"] - means
            kernel, bias = _fit(
                recipe.outcome, deviations * factor, deviations @ prior_weights, splits["train"], first > size
            )
            kernel = kernel * factor[:, None] + prior_weights[:, None].astype(np.float32)
            heads.append((kernel, bias - means @ kernel))
    losses = [_loss(recipe.outcome, inputs["tuning"] @ kernel + bias, splits["tuning"]) for kernel, bias in heads]
    kernel, bias = heads[int(np.argmin(losses))]
    head = {"output": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}}
    new_variables = {**variables, "params": {**variables["params"], "head": head}}
    return {**params, "base": new_variables} if recipe.lora.rank else new_variables


def read_patients(recipe: FinetuningRecipe, model, variables: Any, found: LabeledHistories) -> np.ndarray:
    """Computes the head inputs of labelled histories, (M, D + E + F) float32: embeddings, forecasts, covariates."""
    width = recipe.model.hidden_dim + len(model.forecast_ids)
    outputs = labeled_histories.read_each(recipe, found, width, functools.partial(_read, model, variables))
    return np.concatenate([outputs, found.covariates], axis=1)


@functools.partial(jax.jit, static_argnames="model")
def _read(model, variables, columns):
    args, kwargs = model_arguments(columns)
    num_patients = columns["weights"].shape[1]
    pooled, log_counts = model.apply(variables, *args, **kwargs, num_patients=num_patients, method="forecast")
    return pooled if log_counts is None else jnp.concatenate([pooled, log_counts], axis=-1)


def _fit(
    config: OutcomeConfig, inputs: np.ndarray, offset: np.ndarray, train: LabeledHistories, has_forecast: bool
) -> tuple[np.ndarray, np.ndarray]:
    labels = train.labels
    if isinstance(config, SurvivalConfig):
        return head_init.init_survival_head(inputs, labels.days, labels.events, config, offset)
    if has_forecast:
        return head_init.init_binary_head(inputs, labels.values[:, 0], config, offset)
    return head_init.init_classification_head(inputs, labels.values[:, 0], config, 2)


def _loss(config: OutcomeConfig, logits: np.ndarray, tuning: LabeledHistories) -> float:
    labels = tuning.labels
    if isinstance(config, SurvivalConfig):
        mask = np.ones((1, len(labels)), bool)
        args = (jnp.asarray(logits)[None], labels.days[None].astype(np.float32), labels.events[None], mask)
        return float(survival.survival_losses(*args, config).mean())
    return float(
        classification.classification_losses(jnp.asarray(logits), jnp.asarray(labels.values[:, 0]), "binary").mean()
    )
