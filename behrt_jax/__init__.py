"""BEHRT in JAX and Flax: pre-train an encoder on the visits and codes of patients.

`load(workdir)` gives `(config, vocabulary, model, params)` of a pre-trained model.
"""

from behrt_jax.interpret import attribution, counterfactuals
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
from behrt_jax.training.workdir import load

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
    "encode",
    "load",
    "counterfactuals",
]
