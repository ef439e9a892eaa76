"""BEHRT in JAX and Flax: pre-train an encoder on the visits and codes of patients.

`load(workdir)` gives `(config, vocabulary, model, params)` of a pre-trained model.
"""

from behrt_jax.models.behrt import BEHRT, BEHRTForMLM, count_parameters
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.embeddings import AgeEmbedding, BEHRTEmbedding, PositionalEmbedding, TimeEmbedding, VisitEmbedding
from behrt_jax.workdir import load

__all__ = [
    "AgeEmbedding",
    "BEHRT",
    "BEHRTConfig",
    "BEHRTEmbedding",
    "BEHRTForMLM",
    "PositionalEmbedding",
    "TimeEmbedding",
    "VisitEmbedding",
    "count_parameters",
    "load",
]
