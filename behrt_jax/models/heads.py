"""Heads: what turns hidden states into scores."""

from collections.abc import Callable

import flax.linen as nn
import jax

from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.dropout import Dropout


class CodeHead(nn.Module):
    """A dense layer, GELU and normalisation, then scores against the code table plus a bias (Devlin et al. 2019).

    Attributes:
      config: sizes and choices.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, score_codes: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Maps (..., D) hidden states to (..., V) logits; `score_codes` maps (..., embedding_dim) to (..., V)."""
        query = nn.LayerNorm(name="norm")(nn.gelu(nn.Dense(self.config.embedding_dim, name="transform")(hidden)))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.config.vocab_size,))
        return score_codes(query) + jax.lax.broadcast_to_rank(bias, query.ndim)


class ClassificationHead(nn.Module):
    """Dropout and a dense layer.

    Attributes:
      config: sizes and choices.
      num_labels: logits of a patient.
    """

    config: BEHRTConfig
    num_labels: int

    @nn.compact
    def __call__(self, pooled: jax.Array, deterministic: bool) -> jax.Array:
        """Maps (..., D) patient embeddings to (..., num_labels) logits."""
        return nn.Dense(self.num_labels, name="output")(Dropout(self.config.dropout)(pooled, deterministic))
