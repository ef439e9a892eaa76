"""BEHRT: embeddings and encoder, the base class of models with a head, and `encode` for any of these models."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from behrt_jax.models import pooling as pools
from behrt_jax.models.config import CHOICES, BEHRTConfig
from behrt_jax.models.embeddings import BEHRTEmbedding
from behrt_jax.models.encoder import Encoder
from behrt_jax.models.inputs import check_inputs, count_patients
from behrt_jax.models.lstm import LSTMEncoder


def count_parameters(params) -> int:
    """Returns the number of parameters in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


class BEHRT(nn.Module):
    """BERT over a patient's visits and codes (Li et al. 2020), with pre-LN blocks.

    Attributes:
      config: architecture.
    """

    config: BEHRTConfig

    def setup(self):
        """Declares the embeddings and the encoder."""
        self.embedding = BEHRTEmbedding(self.config)
        self.encoder = (LSTMEncoder if self.config.encoder == "lstm" else Encoder)(self.config)
        self.attention_pooling = pools.AttentionPooling()

    def __call__(
        self,
        codes,
        ages,
        visit_ids,
        attention_mask,
        positions=None,
        time_deltas=None,
        dates=None,
        time_ranks=None,
        values=None,
        deterministic: bool = True,
        causal: bool | None = None,
        places=None,
    ) -> jax.Array:
        """Computes the hidden state of each token in the context of its patient.

        Args:
          codes: (B, L) int token ids, 0 <= id < V.
          ages: (B, L) float years; NaN where unknown.
          visit_ids: (B, L) int visit numbers from 0.
          attention_mask: (B, L) int; 0 for padding and 1 for tokens, or `patient_ids` for packed rows: a token attends
            only to tokens of its row with the same number.
          positions: (B, L) int positions in the patient's sequence; the index in the row if not given.
          time_deltas: (B, L) float days since the previous visit; used if `config.time_bins` is not 0.
          dates: (B, L) float years since 1 January 2000; with `config.rotary="ages"`, used where ages are unknown.
          time_ranks: (B, L) int rank of each token's recording time within its patient, equal for tokens of one time;
            defines the order for a causal model. If not given, `visit_ids` define it.
          values: (B, L) float scaled values, NaN where a token has none; used if `config.value_encoding` is not `none`.
          deterministic: disables dropout; if False, dropout uses the RNG stream `dropout`.
          causal: whether a token attends only to tokens recorded no later than itself; `config.causal` if not given.
            An LSTM is always causal.
          places: (B, K) int indices in the row of the tokens whose states are wanted; all if not given. The last block
            of a Transformer computes no others.

        Returns:
          (B, L, D) hidden states, or (B, K, D) with `places`; those of padding are meaningless.

        Raises:
          ValueError: see `inputs.check_inputs`; or a column that the config requires is missing.
        """
        columns = {"ages": ages, "visit_ids": visit_ids, "attention_mask": attention_mask}
        columns |= {"time_deltas": time_deltas, "dates": dates, "time_ranks": time_ranks, "values": values}
        check_inputs(self.config, codes, positions, **columns)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(codes.shape[1]), codes.shape)
        x = self.embedding(codes, ages, visit_ids, positions, time_deltas, deterministic, values)
        # Rotary attention uses only differences of years, so dates can replace unknown ages.
        years = ages if dates is None else jnp.where(jnp.isnan(ages), dates, ages)
        causal = self.config.causal if causal is None else causal
        return self.encoder(x, attention_mask, visit_ids, positions, years, deterministic, causal, time_ranks, places)

    def get_patient_embedding(
        self,
        codes,
        ages,
        visit_ids,
        attention_mask,
        *,
        pooling: str = "mean",
        num_patients: int | None = None,
        **columns,
    ) -> jax.Array:
        """Computes patient embeddings: `model.apply(params, ..., method="get_patient_embedding")`.

        Args:
          codes: (B, L); like the other inputs and `columns`, as in `__call__`.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          pooling: `cls` (the first token), `last`, `mean`, `max`, or `attention` (weights learned with a head).
          num_patients: P, the maximum number of patients in a packed row; None for one patient per row.
          **columns: `positions`, `time_deltas`, `dates`, `time_ranks`, `values`, `deterministic`.

        Returns:
          (B, D), or (B, P, D) with `num_patients`; zeros for a patient without tokens.

        Raises:
          ValueError: the pooling is unknown; it is `cls` but the first token cannot attend to later visits; it is
            `attention` but has no parameters; or a row holds more than `num_patients` patients.
        """
        self._check_pooling(pooling)
        inputs = (codes, ages, visit_ids, attention_mask)
        if pooling not in pools.SINGLE_TOKEN:
            return self.pool(self(*inputs, **columns), attention_mask, pooling, num_patients)
        members = pools.membership(attention_mask, count_patients(attention_mask, num_patients))
        states = self(*inputs, **columns, places=pools.SINGLE_TOKEN[pooling](members))
        pooled = pools.zero_if_empty(states, members)
        return pooled if num_patients else pooled[:, 0]

    def pool(self, hidden, attention_mask, pooling: str, num_patients: int | None = None) -> jax.Array:
        """Pools (B, L, D) hidden states as `get_patient_embedding` does."""
        self._check_pooling(pooling)
        members = pools.membership(attention_mask, count_patients(attention_mask, num_patients))
        pool = self.attention_pooling if pooling == "attention" else pools.POOLS[pooling]
        pooled = pool(hidden, members)
        return pooled if num_patients else pooled[:, 0]

    def _check_pooling(self, pooling: str) -> None:
        if pooling not in CHOICES["pooling"]:
            raise ValueError(f"pooling: found {pooling!r}; expected one of {', '.join(CHOICES['pooling'])}")
        if pooling == "cls" and not self.config.sees_future:
            raise ValueError(
                "pooling: found 'cls', but the first token of a causal model sees no later visit; use mean"
            )
        is_missing = not self.is_initializing() and not self.has_variable("params", "attention_pooling")
        if pooling == "attention" and is_missing:
            raise ValueError(
                "pooling: found 'attention', but the parameters hold no weights for it; they are learned in a head "
                "with model.pooling='attention', or made by init(..., method='get_patient_embedding')"
            )


class BEHRTWithHead(nn.Module):
    """Base class of models with a head: gives access to the encoder alone.

    Attributes:
      config: architecture.
    """

    config: BEHRTConfig

    def encode(self, codes, ages, visit_ids, attention_mask, **columns) -> jax.Array:
        """Returns the (B, L, D) hidden states of the encoder; arguments as in `BEHRT.__call__`."""
        return self.behrt(codes, ages, visit_ids, attention_mask, **columns)

    def get_patient_embedding(self, codes, ages, visit_ids, attention_mask, **arguments) -> jax.Array:
        """Calls `BEHRT.get_patient_embedding`, with `config.pooling` by default."""
        arguments = {"pooling": self.config.pooling, **arguments}
        return self.behrt.get_patient_embedding(codes, ages, visit_ids, attention_mask, **arguments)


def encode(
    model,
    params,
    codes,
    ages,
    visit_ids,
    attention_mask,
    *,
    capture_attention: bool = False,
    causal: bool | None = None,
    **columns,
) -> Any:
    """Encodes tokens with any of the models; optionally returns the attention weights of every layer and head.

    Compiled once for each model and shape.

    Args:
      model: a `BEHRT`, or a model with a head.
      params: its variables.
      codes: (B, L); like the other inputs and `columns`, as in `BEHRT.__call__`.
      ages: (B, L).
      visit_ids: (B, L).
      attention_mask: (B, L).
      capture_attention: whether to return the attention weights as well.
      causal: as in `BEHRT.__call__`.
      **columns: `positions`, `time_deltas`, `dates`, `time_ranks`, `values`.

    Returns:
      (B, L, D) hidden states; with `capture_attention`, also (num_layers, B, H, L, L) float32 weights, from the query
      (second-to-last axis) to the key.

    Raises:
      ValueError: see `inputs.check_inputs`; or attention weights of an LSTM are requested.
    """
    if capture_attention and model.config.encoder == "lstm":
        raise ValueError("capture_attention: model.encoder='lstm' has no attention")
    columns |= {"ages": ages, "visit_ids": visit_ids, "attention_mask": attention_mask}
    check_inputs(model.config, codes, **{"positions": None, **columns})  # here, as values are not known while tracing
    return _encode(model, params, {"codes": codes, **columns}, capture_attention, causal)


@functools.partial(jax.jit, static_argnames=("model", "capture_attention", "causal"))
def _encode(model, params, columns: dict, capture_attention: bool, causal: bool | None):
    """Computes what `encode` returns."""
    apply = functools.partial(model.apply, params, **columns, causal=causal)
    method = "__call__" if isinstance(model, BEHRT) else "encode"
    if not capture_attention:
        return apply(method=method)
    hidden, state = apply(method=method, mutable=["intermediates"])
    intermediates: dict[tuple[str, ...], Any] = flatten_dict(state["intermediates"])
    weights = {path: values[0] for path, values in intermediates.items() if path[-1] == "weights"}
    paths = sorted(weights, key=lambda path: int(path[-3].removeprefix("block_")))
    return hidden, jnp.stack([weights[path] for path in paths])
