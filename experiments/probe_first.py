"""A head that begins at a probe: a regression on age, sex and the embeddings of the encoder as it is before training.

Fine-tuning from there changes the encoder less, and needs fewer labels (linear probing, then fine-tuning: Kumar et al.
2022).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from behrt_jax import head_start
from behrt_jax.models.inputs import model_arguments
from behrt_jax.objectives import classification, survival
from behrt_jax.objectives.classification import ClassificationConfig
from behrt_jax.objectives.survival import SurvivalConfig
from experiments import labelled
from experiments.labelled import Labelled

# Of standardised embeddings beside age and sex, before a ridge that is the same for all; 0 is age and sex alone.
SCALES = (0.0, 0.01, 0.03, 0.1, 0.3)


def begin(config: ConfigDict, model, variables: Any, splits: dict[str, Labelled]) -> Any:
    """Sets the head of a model for binary outcomes or times to an event.

    Args:
      config: its recipe.
      model: a `BEHRTForSequenceClassification`.
      variables: of it, without LoRA's factors.
      splits: `train`, to which the regressions are fitted, and `tuning`, by whose loss one of `SCALES` is chosen.
    """
    pooled = {name: embed(config, model, variables, splits[name]) for name in ("train", "tuning")}
    middle, deviation = pooled["train"].mean(axis=0), pooled["train"].std(axis=0) + 1e-3
    heads = []
    for scale in SCALES:
        factor = scale / deviation
        inputs = np.concatenate([(pooled["train"] - middle) * factor, splits["train"].traits], axis=1)
        kernel, bias = _fit(config, inputs, splits["train"])
        kernel = np.concatenate([kernel[: len(factor)] * factor[:, None], kernel[len(factor) :]])
        heads.append((kernel, bias - middle @ kernel[: len(factor)]))
    found = np.concatenate([pooled["tuning"], splits["tuning"].traits], axis=1)
    losses = [_loss(config, found @ kernel + bias, splits["tuning"]) for kernel, bias in heads]
    kernel, bias = heads[int(np.argmin(losses))]
    head = {"output": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}}
    return {**variables, "params": {**variables["params"], "head": head}}


def embed(config: ConfigDict, model, variables: Any, found: Labelled) -> np.ndarray:
    """Returns the (M, D) float32 embeddings of labelled histories, which the head reads."""
    return labelled.read_each(config, found, config.model.hidden_dim, functools.partial(_embed, model, variables))


@functools.partial(jax.jit, static_argnames="model")
def _embed(model, variables, columns):
    inputs, named = model_arguments(columns)
    number = columns["weights"].shape[1]
    return model.apply(variables, *inputs, **named, num_patients=number, method="get_patient_embedding")


def _fit(config: ConfigDict, inputs: np.ndarray, train: Labelled) -> tuple[np.ndarray, np.ndarray]:
    labels = train.labels
    if "survival" in config:
        return head_start.begin_survival(inputs, labels.days, labels.events, SurvivalConfig(**config.survival))
    settings = ClassificationConfig(**config.classification)
    return head_start.begin_classification(inputs, labels.values[:, 0], settings, 2)


def _loss(config: ConfigDict, logits: np.ndarray, tuning: Labelled) -> float:
    labels = tuning.labels
    if "survival" in config:
        known, settings = np.ones((1, len(labels)), bool), SurvivalConfig(**config.survival)
        given = (jnp.asarray(logits)[None], labels.days[None].astype(np.float32), labels.events[None], known)
        return float(survival.survival_losses(*given, settings).mean())
    return float(
        classification.classification_losses(jnp.asarray(logits), jnp.asarray(labels.values[:, 0]), "binary").mean()
    )
