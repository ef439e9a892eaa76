"""BEHRT in JAX and Flax: pre-train an encoder on the visits and codes of patients.

`pretrain(config, workdir)` trains a recipe such as `behrt_jax.recipes.small.get_config()`, `load(workdir)` gives
`(config, vocabulary, model, params)`; `finetune`, `evaluate`, `predict`, `embed` and `write_report` do what the
commands of these names do.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from behrt_jax.models.behrt import BEHRT, count_parameters, encode
from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.embeddings import (
    AgeEmbedding,
    BEHRTEmbedding,
    PositionalEmbedding,
    SinusoidalPositionalEncoding,
    Time2Vec,
    TimeEmbedding,
    VisitEmbedding,
)
from behrt_jax.models.pretraining import BEHRTForMLM, BEHRTForNextVisitPrediction

if TYPE_CHECKING:
    from behrt_jax.interpret import attribution, counterfactuals
    from behrt_jax.workflows.embed import embed
    from behrt_jax.workflows.evaluate import evaluate
    from behrt_jax.workflows.finetune import finetune
    from behrt_jax.workflows.load import load
    from behrt_jax.workflows.predict import predict
    from behrt_jax.workflows.pretrain import pretrain
    from behrt_jax.workflows.report import write_report

__all__ = [
    "AgeEmbedding",
    "BEHRT",
    "BEHRTConfig",
    "BEHRTEmbedding",
    "BEHRTForMLM",
    "BEHRTForNextVisitPrediction",
    "BEHRTForSequenceClassification",
    "PositionalEmbedding",
    "SinusoidalPositionalEncoding",
    "Time2Vec",
    "TimeEmbedding",
    "VisitEmbedding",
    "attribution",
    "count_parameters",
    "counterfactuals",
    "embed",
    "encode",
    "evaluate",
    "finetune",
    "load",
    "predict",
    "pretrain",
    "write_report",
]

try:
    __version__ = version("behrt_jax")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

_WORKFLOWS = {name: name for name in ("embed", "evaluate", "finetune", "load", "predict", "pretrain")}
_WORKFLOWS["write_report"] = "report"


def __getattr__(name: str):
    """Imports a workflow or a module of `interpret` at first use: each needs more libraries than a model does."""
    if name in ("attribution", "counterfactuals"):
        return importlib.import_module(f"behrt_jax.interpret.{name}")
    if name not in _WORKFLOWS:
        raise AttributeError(f"module 'behrt_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(f"behrt_jax.workflows.{_WORKFLOWS[name]}"), name)
