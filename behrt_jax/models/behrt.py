"""BEHRT: the embeddings and the encoder, and BEHRT with a head for masked codes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.embeddings import BEHRTEmbedding
from behrt_jax.models.encoder import Encoder
from behrt_jax.models.heads import MaskedCodeHead


def count_parameters(params) -> int:
    """Returns the number of parameters in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


class BEHRT(nn.Module):
    """BERT over a patient's visits and codes (Li et al. 2020), with pre-LN blocks.

    Attributes:
      config: sizes and choices.
    """

    config: BEHRTConfig

    def setup(self):
        """Declares the embeddings and the encoder."""
        self.embedding = BEHRTEmbedding(self.config)
        self.encoder = Encoder(self.config)

    def __call__(
        self, codes, ages, visit_ids, attention_mask, positions=None, time_deltas=None, deterministic: bool = True
    ) -> jax.Array:
        """Encodes tokens in the context of their patient.

        Args:
          codes: (B, L) int token ids, 0 <= id < V.
          ages: (B, L) float years; NaN where unknown.
          visit_ids: (B, L) int visit numbers from 0.
          attention_mask: (B, L) int; 0 for padding and 1 for tokens, or for packed rows `patient_ids`: tokens see the
            tokens of their row with the same number.
          positions: (B, L) int positions in the patient's sequence; the place in the row if not given.
          time_deltas: (B, L) float days since the previous visit; read where `config.time_bins` is not 0.
          deterministic: False draws dropout from the stream `dropout`.

        Returns:
          (B, L, D) hidden states; those of padding mean nothing.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(codes.shape[1]), codes.shape)
        x = self.embedding(codes, ages, visit_ids, positions, time_deltas, deterministic)
        return self.encoder(x, attention_mask, visit_ids, positions, deterministic)


class BEHRTForMLM(nn.Module):
    """BEHRT with a head that scores the code at masked positions; its output layer is the code table.

    Attributes:
      config: sizes and choices.
    """

    config: BEHRTConfig

    def setup(self):
        """Declares the encoder and the head."""
        self.behrt = BEHRT(self.config)
        self.head = MaskedCodeHead(self.config)

    def __call__(
        self,
        codes,
        ages,
        visit_ids,
        attention_mask,
        positions=None,
        time_deltas=None,
        masked_positions=None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Scores the vocabulary at masked positions.

        Args:
          codes: (B, L); the others too are as `BEHRT.__call__` takes them.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          positions: (B, L).
          time_deltas: (B, L).
          masked_positions: (B, K) int places in the row at which to score; all if not given.
          deterministic: as in `BEHRT.__call__`.

        Returns:
          (B, K, V) logits, or (B, L, V) without `masked_positions`.
        """
        hidden = self.encode(codes, ages, visit_ids, attention_mask, positions, time_deltas, deterministic)
        if masked_positions is not None:
            hidden = jnp.take_along_axis(hidden, masked_positions[:, :, None], axis=1)
        return self.head(hidden, self.behrt.embedding.attend)

    def encode(
        self, codes, ages, visit_ids, attention_mask, positions=None, time_deltas=None, deterministic: bool = True
    ) -> jax.Array:
        """Returns the (B, L, D) hidden states of the encoder; arguments are as `BEHRT.__call__` takes them."""
        return self.behrt(codes, ages, visit_ids, attention_mask, positions, time_deltas, deterministic)
