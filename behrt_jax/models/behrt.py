"""BEHRT: the embeddings and the encoder, and BEHRT with a head for codes, for next visits, and for patients."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from behrt_jax.models import pooling as pools
from behrt_jax.models.config import CHOICES, BEHRTConfig
from behrt_jax.models.embeddings import BEHRTEmbedding
from behrt_jax.models.encoder import Encoder, HierarchicalEncoder
from behrt_jax.models.heads import ClassificationHead, CodeHead, DaysHead, EventHead
from behrt_jax.models.inputs import check_inputs, count_patients
from behrt_jax.models.lstm import LSTMEncoder

DAYS_FORETOLD = 365.25


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
        encoders = {"transformer": Encoder, "hierarchical": HierarchicalEncoder, "lstm": LSTMEncoder}
        self.encoder = encoders[self.config.encoder](self.config)
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
        deterministic: bool = True,
        causal: bool | None = None,
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
          dates: (B, L) float years since 1 January 2000; read where `config.date_encoding` is not `none`.
          deterministic: False draws dropout from the stream `dropout`.
          causal: whether a visit sees only itself and the past; `config.causal` if not given. An LSTM always does.

        Returns:
          (B, L, D) hidden states; those of padding mean nothing.

        Raises:
          ValueError: see `inputs.check_inputs`; or a column that the config needs is not given.
        """
        columns = {"ages": ages, "visit_ids": visit_ids, "attention_mask": attention_mask}
        check_inputs(self.config, codes, positions, **columns, time_deltas=time_deltas, dates=dates)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(codes.shape[1]), codes.shape)
        x = self.embedding(codes, ages, visit_ids, positions, time_deltas, dates, deterministic)
        # Attention reads differences of years alone, which dates give as well where birth is unknown.
        years = ages if dates is None else jnp.where(jnp.isnan(ages), dates, ages)
        causal = self.config.causal if causal is None else causal
        return self.encoder(x, attention_mask, visit_ids, positions, years, deterministic, causal)

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
        """Encodes patients: `model.apply(params, ..., method="get_patient_embedding")`.

        Args:
          codes: (B, L); the others too, and `columns`, are as `__call__` takes them.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          pooling: `cls` (the first token), `last`, `mean`, `max`, or `attention`, whose weights are learned in a head.
          num_patients: P, the most patients that a packed row holds; None for one patient a row.
          **columns: `positions`, `time_deltas`, `dates`, `deterministic`.

        Returns:
          (B, D), or (B, P, D) with `num_patients`; zeros for a patient without tokens.

        Raises:
          ValueError: an unknown pooling; `cls` where the first token cannot see later visits; `attention` without
            parameters for it; or rows that hold more than `num_patients`.
        """
        return self.pool(self(codes, ages, visit_ids, attention_mask, **columns), attention_mask, pooling, num_patients)

    def pool(self, hidden, attention_mask, pooling: str, num_patients: int | None = None) -> jax.Array:
        """Pools (B, L, D) hidden states as `get_patient_embedding` does."""
        if pooling not in CHOICES["pooling"]:
            raise ValueError(f"pooling: found {pooling!r}; expected one of {', '.join(CHOICES['pooling'])}")
        if pooling == "cls" and not self.config.sees_future:
            raise ValueError(
                "pooling: found 'cls', but the first token of a causal model sees no later visit; use mean"
            )
        members = pools.membership(attention_mask, count_patients(attention_mask, num_patients))
        if pooling == "attention":
            if not self.is_initializing() and not self.has_variable("params", "attention_pooling"):
                raise ValueError(
                    "pooling: found 'attention', but the parameters hold no weights for it; they are learned in a head "
                    "with model.pooling='attention', or made by init(..., method='get_patient_embedding')"
                )
            pooled = self.attention_pooling(hidden, members)
        else:
            pooled = pools.POOLS[pooling](hidden, members)
        return pooled if num_patients else pooled[:, 0]


class BEHRTWithHead(nn.Module):
    """What the models with a head share: the encoder, and how to call it alone.

    Attributes:
      config: sizes and choices.
    """

    config: BEHRTConfig

    def encode(self, codes, ages, visit_ids, attention_mask, **columns) -> jax.Array:
        """Returns the (B, L, D) hidden states of the encoder; arguments are as `BEHRT.__call__` takes them."""
        return self.behrt(codes, ages, visit_ids, attention_mask, **columns)

    def get_patient_embedding(self, codes, ages, visit_ids, attention_mask, **arguments) -> jax.Array:
        """Returns what `BEHRT.get_patient_embedding` does, by `config.pooling` if no other is given."""
        arguments = {"pooling": self.config.pooling, **arguments}
        return self.behrt.get_patient_embedding(codes, ages, visit_ids, attention_mask, **arguments)


class BEHRTForMLM(BEHRTWithHead):
    """BEHRT with a head that scores the code at masked positions; its output layer is the code table."""

    def setup(self):
        """Declares the encoder and the head."""
        self.behrt = BEHRT(self.config)
        self.head = CodeHead(self.config)

    def __call__(self, codes, ages, visit_ids, attention_mask, *, masked_positions=None, **columns) -> jax.Array:
        """Scores the vocabulary at masked positions.

        Args:
          codes: (B, L); the others too, and `columns`, are as `BEHRT.__call__` takes them.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          masked_positions: (B, K) int places in the row at which to score; all if not given.
          **columns: `positions`, `time_deltas`, `dates`, `deterministic`.

        Returns:
          (B, K, V) logits, or (B, L, V) without `masked_positions`.
        """
        hidden = self.encode(codes, ages, visit_ids, attention_mask, **columns)
        if masked_positions is not None:
            hidden = take_places(hidden, masked_positions)
        return self.head(hidden, self.behrt.embedding.attend)


class BEHRTForNextVisitPrediction(BEHRTWithHead):
    """BEHRT with a head that scores which codes the next visit holds, each on its own (multi-label)."""

    def setup(self):
        """Declares the encoder and the head."""
        self.behrt = BEHRT(self.config)
        self.head = CodeHead(self.config)

    def __call__(
        self, codes, ages, visit_ids, attention_mask, *, visit_ends=None, num_patients=None, **columns
    ) -> jax.Array:
        """Scores the vocabulary after the whole history, or after each of some visits.

        Args:
          codes: (B, L); the others too, and `columns`, are as `BEHRT.__call__` takes them.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          visit_ends: (B, K) int places in the row, the last token of each visit after which to score; each visit then
            sees only itself and the past, whatever `config.causal` says.
          num_patients: P, as `BEHRT.get_patient_embedding` takes it; not read with `visit_ends`.
          **columns: `positions`, `time_deltas`, `dates`, `deterministic`.

        Returns:
          Logits, one for each code: (B, K, V) with `visit_ends`, else (B, V), or (B, P, V) with `num_patients`.
        """
        if visit_ends is None:
            state = self.get_patient_embedding(
                codes, ages, visit_ids, attention_mask, num_patients=num_patients, **columns
            )
        else:
            hidden = self.encode(codes, ages, visit_ids, attention_mask, causal=True, **columns)
            state = take_places(hidden, visit_ends)
        return self.head(state, self.behrt.embedding.attend)


class BEHRTForPretraining(BEHRTWithHead):
    """BEHRT with a head for each of the objectives that it is trained on.

    Attributes:
      objectives: of `mlm`, `next_visit` and `time_to_event`.
      event_bins: time bins of the rates of `time_to_event`.
    """

    objectives: tuple[str, ...] = ("mlm",)
    event_bins: int = 1

    def setup(self):
        """Declares the encoder and the heads."""
        self.behrt = BEHRT(self.config)
        if "mlm" in self.objectives:
            self.mlm = CodeHead(self.config)
        if "next_visit" in self.objectives:
            self.next_visit = CodeHead(self.config)
            self.next_days = DaysHead()
        if "time_to_event" in self.objectives:
            self.time_to_event = EventHead(self.config, self.event_bins)

    def __call__(self, codes, ages, visit_ids, attention_mask, *, masked_positions=None, **columns) -> jax.Array:
        """Scores the vocabulary at masked positions; see `BEHRTForMLM.__call__`.

        Raises:
          ValueError: the model has no head for masked codes.
        """
        self._need("mlm", "codes behind masks")
        hidden = self.encode(codes, ages, visit_ids, attention_mask, **columns)
        hidden = hidden if masked_positions is None else take_places(hidden, masked_positions)
        return self.mlm(hidden, self.behrt.embedding.attend)

    def predict_next_visits(self, codes, ages, visit_ids, attention_mask, *, visit_ends, causal=True, **columns):
        """Scores which codes the next visit holds and when it comes: `apply(..., method="predict_next_visits")`.

        Args:
          codes: (B, L); the others too, and `columns`, are as `BEHRT.__call__` takes them.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          visit_ends: (B, K) int places, the last token of each visit after which to predict.
          causal: whether each visit sees only itself and the past. Without, rows must end before the visit to predict.
          **columns: `positions`, `time_deltas`, `dates`, `deterministic`.

        Returns:
          (B, K, V) logits, one for each code, and (B, K) expected log(1 + days).

        Raises:
          ValueError: the model has no head for next visits.
        """
        self._need("next_visit", "next visits")
        states = take_places(self.encode(codes, ages, visit_ids, attention_mask, causal=causal, **columns), visit_ends)
        return self.next_visit(states, self.behrt.embedding.attend), self.next_days(states)

    def predict_events(self, codes, ages, visit_ids, attention_mask, *, visit_ends, **columns) -> jax.Array:
        """Predicts the rates of every code after some visits: `apply(..., method="predict_events")`.

        Args:
          codes: (B, L); the others too, and `columns`, are as `BEHRT.__call__` takes them.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          visit_ends: (B, K) int places, the last token of each visit; each visit sees only itself and the past.
          **columns: `positions`, `time_deltas`, `dates`, `deterministic`.

        Returns:
          (B, K, bins, V) float32 log of the rate a day in each bin of time since the end of the visit.

        Raises:
          ValueError: the model has no head for events.
        """
        self._need("time_to_event", "events")
        states = take_places(self.encode(codes, ages, visit_ids, attention_mask, causal=True, **columns), visit_ends)
        ages = take_places(ages[..., None], visit_ends)[..., 0]
        return self.time_to_event(states, ages, self.behrt.embedding.attend)

    def score_all(self, codes, ages, visit_ids, attention_mask, **columns) -> tuple:
        """Returns what every head gives at every token; `init(..., method="score_all")` makes all parameters."""
        places = jnp.broadcast_to(jnp.arange(codes.shape[1]), codes.shape)
        heads = {"mlm": self, "next_visit": self.predict_next_visits, "time_to_event": self.predict_events}
        rest = {"mlm": {}, "next_visit": {"visit_ends": places}, "time_to_event": {"visit_ends": places}}
        inputs = (codes, ages, visit_ids, attention_mask)
        return tuple(heads[name](*inputs, **columns, **rest[name]) for name in self.objectives)

    def _need(self, objective: str, what: str) -> None:
        if objective not in self.objectives:
            raise ValueError(
                f"objectives: found {', '.join(self.objectives)}; expected {objective} among them to predict {what}: "
                f"train with objective.name={objective} or joint"
            )


def take_places(hidden: jax.Array, places: jax.Array) -> jax.Array:
    """Takes the (B, K, D) states at (B, K) places of (B, L, D)."""
    return jnp.take_along_axis(hidden, places[:, :, None], axis=1)


class BEHRTForSequenceClassification(BEHRTWithHead):
    """BEHRT with a linear head on the patient's embedding, and on what else is known or foretold of the patient.

    Attributes:
      num_labels: 1 for a binary outcome; the number of classes, or of outcomes that do not exclude each other. Logits
        are for a sigmoid, a softmax, or a sigmoid each.
      num_traits: F, numbers that are given of each patient, as `data.at_times.traits_at` makes them of age and sex.
      foretold: E ids of codes; the head reads how often the pre-trained head for events expects each within a year.
      event_edges: of that head, days that part its bins of time; read with `foretold`.
    """

    num_labels: int = 1
    num_traits: int = 0
    foretold: tuple[int, ...] = ()
    event_edges: tuple[float, ...] = ()

    def setup(self):
        """Declares the encoder and the head."""
        if self.num_labels < 1:
            raise ValueError(f"num_labels: found {self.num_labels}; expected 1 or more")
        self.behrt = BEHRT(self.config)
        self.head = ClassificationHead(self.config, self.num_labels)
        if self.foretold:
            self.time_to_event = EventHead(self.config, len(self.event_edges) + 1)

    def __call__(
        self, codes, ages, visit_ids, attention_mask, *, traits=None, num_patients=None, deterministic=True, **columns
    ) -> jax.Array:
        """Scores patients.

        Args:
          codes: (B, L); the others too, and `columns`, are as `BEHRT.__call__` takes them.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          traits: (B, F) with `num_traits`, or (B, P, F) with `num_patients` too.
          num_patients: P, as `BEHRT.get_patient_embedding` takes it.
          deterministic: False draws dropout from the stream `dropout`.
          **columns: `positions`, `time_deltas`, `dates`.

        Returns:
          (B, num_labels) logits, or (B, P, num_labels) with `num_patients`.

        Raises:
          ValueError: traits are not what `num_traits` says.
        """
        arguments = {"num_patients": num_patients, "deterministic": deterministic, **columns}
        pooled, foretold = self.foretell(codes, ages, visit_ids, attention_mask, **arguments)
        expected = (*pooled.shape[:-1], self.num_traits)
        if self.num_traits and traits is None and self.is_initializing():
            traits = jnp.zeros(expected)
        if (None if traits is None else traits.shape) != (expected if self.num_traits else None):
            found = f"found {'none' if traits is None else traits.shape}; expected {expected}"
            made = "age and sex by data.at_times.traits_at, or log risks by code_regression.load where a run has these"
            raise ValueError(f"traits: {found}: at the prediction time {made}")
        known = [each for each in (foretold, traits) if each is not None]
        return self.head(pooled, deterministic, jnp.concatenate(known, axis=-1) if known else None)

    def foretell(self, codes, ages, visit_ids, attention_mask, **arguments) -> tuple[jax.Array, jax.Array | None]:
        """Returns the patients' embeddings, and of `foretold` codes how often each is expected within a year.

        Args:
          codes: (B, L); the others too, and `arguments`, are as `BEHRT.get_patient_embedding` takes them.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          **arguments: those of `BEHRT.get_patient_embedding`.

        Returns:
          (B, D) or (B, P, D), and (B, E) or (B, P, E) float32 logs of expected numbers; None where E is 0.
        """
        if not self.foretold:
            return self.get_patient_embedding(codes, ages, visit_ids, attention_mask, **arguments), None
        number = arguments.pop("num_patients", None)
        hidden = self.encode(codes, ages, visit_ids, attention_mask, **arguments)
        pool = functools.partial(self.behrt.pool, attention_mask=attention_mask, num_patients=number)
        state, age = pool(hidden, pooling="last"), pool(ages[..., None], pooling="last")[..., 0]
        edges = np.array([0.0, *self.event_edges, np.inf])
        spent = np.diff(np.minimum(edges, DAYS_FORETOLD)).astype(np.float32)
        log_rates = self.time_to_event(state, age, self.behrt.embedding.attend)[..., np.array(self.foretold)]
        spent = spent.reshape((1,) * (state.ndim - 1) + (-1, 1))
        expected = nn.logsumexp(log_rates, axis=-2, b=jnp.asarray(spent))
        return pool(hidden, pooling=self.config.pooling), expected


def encode(model, params, codes, ages, visit_ids, attention_mask, *, capture_attention: bool = False, **columns) -> Any:
    """Encodes tokens with any of the models, on request with the attention weights of every layer and head.

    Args:
      model: a `BEHRT`, or one with a head.
      params: its variables.
      codes: (B, L); the others too, and `columns`, are as `BEHRT.__call__` takes them.
      ages: (B, L).
      visit_ids: (B, L).
      attention_mask: (B, L).
      capture_attention: whether to return the weights too.
      **columns: `positions`, `time_deltas`, `dates`.

    Returns:
      (B, L, D) hidden states; with `capture_attention`, also (num_layers, B, H, L, L) float32 weights, from the query
      (last but one axis) to the key; in the hierarchical encoder a visit stands at the place of its first token.

    Raises:
      ValueError: the weights of an LSTM are asked for, which has none.
    """
    method = "__call__" if isinstance(model, BEHRT) else "encode"
    arguments = (params, codes, ages, visit_ids, attention_mask)
    if not capture_attention:
        return model.apply(*arguments, **columns, method=method)
    if model.config.encoder == "lstm":
        raise ValueError("capture_attention: model.encoder='lstm' has no attention")
    hidden, state = model.apply(*arguments, **columns, method=method, mutable=["intermediates"])
    sown: dict[tuple[str, ...], Any] = flatten_dict(state["intermediates"])
    blocks = {path: found[0] for path, found in sown.items() if path[-1] == "weights"}
    in_order = sorted(blocks, key=lambda path: int(path[-3].removeprefix("block_")))
    return hidden, jnp.stack([blocks[path] for path in in_order])
