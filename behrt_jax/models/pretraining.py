"""BEHRT with the heads of its pre-training objectives: masked codes, next visits, and time to event."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from behrt_jax.models.behrt import BEHRT, BEHRTWithHead
from behrt_jax.models.encoder import take_places
from behrt_jax.models.heads import CodeHead, DaysHead, EventHead, GapLayer, ValueHead


class CodeQueries(NamedTuple):
    """What the logits of codes are made of: `queries @ table.T + bias`.

    Attributes:
      queries: (B, K, E).
      bias: (V,).
      table: (V, E), the code table.
    """

    queries: jax.Array
    bias: jax.Array
    table: jax.Array


class BEHRTForMLM(BEHRTWithHead):
    """BEHRT with a masked-code head, whose output layer is tied to the code table."""

    def setup(self):
        """Declares the encoder and the head."""
        self.behrt = BEHRT(self.config)
        self.head = CodeHead(self.config)

    def __call__(self, codes, ages, visit_ids, attention_mask, *, masked_positions=None, **columns) -> jax.Array:
        """Computes the logits of the vocabulary at masked positions.

        Args:
          codes: (B, L); like the other inputs and `columns`, as in `BEHRT.__call__`.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          masked_positions: (B, K) int indices of the masked tokens in the row; all tokens if not given.
          **columns: `positions`, `time_deltas`, `dates`, `time_ranks`, `values`, `deterministic`.

        Returns:
          (B, K, V) logits, or (B, L, V) without `masked_positions`.
        """
        head = self.code_head()
        hidden = self.encode(codes, ages, visit_ids, attention_mask, places=masked_positions, **columns)
        return head(hidden, self.behrt.embedding.attend)

    def query_codes(self, codes, ages, visit_ids, attention_mask, *, masked_positions, **columns) -> CodeQueries:
        """Returns what the logits at (B, K) masked positions are made of: `apply(..., method="query_codes")`."""
        head = self.code_head()
        hidden = self.encode(codes, ages, visit_ids, attention_mask, places=masked_positions, **columns)
        return CodeQueries(*head.queries(hidden), self.behrt.embedding.codes.embedding)

    def code_head(self) -> CodeHead:
        """Returns the head of masked codes."""
        return self.head


class BEHRTForNextVisitPrediction(BEHRTWithHead):
    """BEHRT with a head for the codes of the next visit, one sigmoid per code (multi-label)."""

    def setup(self):
        """Declares the encoder and the head."""
        self.behrt = BEHRT(self.config)
        self.head = CodeHead(self.config)

    def __call__(
        self, codes, ages, visit_ids, attention_mask, *, visit_ends=None, num_patients=None, **columns
    ) -> jax.Array:
        """Computes the logits of the vocabulary after the whole history, or after each of some visits.

        Args:
          codes: (B, L); like the other inputs and `columns`, as in `BEHRT.__call__`.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          visit_ends: (B, K) int indices in the row of the tokens after which to predict; if given, each token attends
            only to tokens recorded no later than itself, regardless of `config.causal`.
          num_patients: P, as in `BEHRT.get_patient_embedding`; ignored with `visit_ends`.
          **columns: `positions`, `time_deltas`, `dates`, `time_ranks`, `values`, `deterministic`.

        Returns:
          Logits of each code: (B, K, V) with `visit_ends`, else (B, V), or (B, P, V) with `num_patients`.
        """
        if visit_ends is None:
            state = self.get_patient_embedding(
                codes, ages, visit_ids, attention_mask, num_patients=num_patients, **columns
            )
        else:
            state = self.encode(codes, ages, visit_ids, attention_mask, causal=True, places=visit_ends, **columns)
        return self.head(state, self.behrt.embedding.attend)


class BEHRTForPretraining(BEHRTForMLM):
    """BEHRT with one head per pre-training objective; calls score masked codes, as those of `BEHRTForMLM` do.

    Attributes:
      objectives: any of `mlm`, `next_visit` and `time_to_event`.
      event_bins: number of time bins of the `time_to_event` rates.
      time_known: whether the `next_visit` head can be given the start time of the visit to predict.
      predicts_values: whether the values of masked codes are predicted too.
    """

    objectives: tuple[str, ...] = ("mlm",)
    event_bins: int = 1
    time_known: bool = False
    predicts_values: bool = False

    def setup(self):
        """Declares the encoder and the heads."""
        self.behrt = BEHRT(self.config)
        if "mlm" in self.objectives:
            self.mlm = CodeHead(self.config)
            if self.predicts_values:
                self.values = ValueHead(self.config)
        if "next_visit" in self.objectives:
            self.next_visit = CodeHead(self.config)
            self.next_days = DaysHead()
            if self.time_known:
                self.next_gap = GapLayer(self.config)
        if "time_to_event" in self.objectives:
            self.time_to_event = EventHead(self.config, self.event_bins)

    def code_head(self) -> CodeHead:
        """Returns the head of masked codes; a ValueError if the model has none."""
        self._need("mlm", "codes behind masks")
        return self.mlm

    def query_codes_and_values(
        self, codes, ages, visit_ids, attention_mask, *, masked_positions, labels, **columns
    ) -> tuple[CodeQueries, jax.Array]:
        """Returns the result of `query_codes`, and quantiles of the value of each masked code.

        Args:
          codes: (B, L); like the other inputs and `columns`, as in `BEHRT.__call__`.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          masked_positions: (B, K) int indices of the masked tokens in the row.
          labels: (B, K) the masked codes; only the head of values reads them.
          **columns: `positions`, `time_deltas`, `dates`, `time_ranks`, `values`, `deterministic`.

        Returns:
          The `CodeQueries`, and (B, K, Q) float32 values at `heads.QUANTILES`, in the scale of the input.
        """
        hidden = self.encode(codes, ages, visit_ids, attention_mask, places=masked_positions, **columns)
        queries = CodeQueries(*self.code_head().queries(hidden), self.behrt.embedding.codes.embedding)
        return queries, self.values(hidden, self.behrt.embedding.codes(labels))

    def predict_next_visits(
        self, codes, ages, visit_ids, attention_mask, *, visit_ends, causal=True, gaps=None, **columns
    ):
        """Predicts the codes of the next visit and the days to it: `apply(..., method="predict_next_visits")`.

        Args:
          codes: (B, L); like the other inputs and `columns`, as in `BEHRT.__call__`.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          visit_ends: (B, K) int indices in the row of the last token recorded before each visit to predict.
          causal: whether a token attends only to tokens recorded no later than itself. If False, rows must end before
            the visit to predict.
          gaps: (B, K) float days from that token to the start of the visit to predict, NaN where the model must not
            know it; used by models with `time_known`. The days are always predicted without it.
          **columns: `positions`, `time_deltas`, `dates`, `time_ranks`, `values`, `deterministic`.

        Returns:
          (B, K, V) logits of each code, and (B, K) expected log(1 + days).

        Raises:
          ValueError: the model has no head for next visits.
        """
        inputs = (codes, ages, visit_ids, attention_mask)
        states, days = self._read_visits(*inputs, visit_ends=visit_ends, causal=causal, gaps=gaps, **columns)
        return self.next_visit(states, self.behrt.embedding.attend), days

    def query_next_visits(self, codes, ages, visit_ids, attention_mask, **arguments) -> tuple[CodeQueries, jax.Array]:
        """Returns what the logits of `predict_next_visits` are made of, and the expected log(1 + days)."""
        states, days = self._read_visits(codes, ages, visit_ids, attention_mask, **arguments)
        return CodeQueries(*self.next_visit.queries(states), self.behrt.embedding.codes.embedding), days

    def _read_visits(self, codes, ages, visit_ids, attention_mask, *, visit_ends, causal=True, gaps=None, **columns):
        """Returns the (B, K, D) states from which next visits are predicted, and the expected log(1 + days)."""
        self._need("next_visit", "next visits")
        states = self.encode(codes, ages, visit_ids, attention_mask, causal=causal, places=visit_ends, **columns)
        days = self.next_days(states)
        if self.time_known:
            states = self.next_gap(states, jnp.full(visit_ends.shape, jnp.nan) if gaps is None else gaps)
        return states, days

    def predict_events(self, codes, ages, visit_ids, attention_mask, *, visit_ends, **columns) -> jax.Array:
        """Predicts the event rates of every code after some visits: `apply(..., method="predict_events")`.

        Args:
          codes: (B, L); like the other inputs and `columns`, as in `BEHRT.__call__`.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          visit_ends: (B, K) int indices in the row, such as the last token of each visit; each token attends only to
            tokens recorded no later than itself.
          **columns: `positions`, `time_deltas`, `dates`, `time_ranks`, `values`, `deterministic`.

        Returns:
          (B, K, bins, V) float32 log rates per day in each bin of the time since the end of the visit.

        Raises:
          ValueError: the model has no head for events.
        """
        self._need("time_to_event", "events")
        states = self.encode(codes, ages, visit_ids, attention_mask, causal=True, places=visit_ends, **columns)
        ages = take_places(ages[..., None], visit_ends)[..., 0]
        return self.time_to_event(states, ages, self.behrt.embedding.attend)

    def score_all(self, codes, ages, visit_ids, attention_mask, **columns) -> tuple:
        """Returns the outputs of every head at every token; `init(..., method="score_all")` creates all parameters."""
        visit_ends = jnp.broadcast_to(jnp.arange(codes.shape[1]), codes.shape)
        heads = {"mlm": self, "next_visit": self.predict_next_visits, "time_to_event": self.predict_events}
        arguments = {"mlm": {}, "next_visit": {"visit_ends": visit_ends}, "time_to_event": {"visit_ends": visit_ends}}
        inputs = (codes, ages, visit_ids, attention_mask)
        if self.predicts_values:
            self.query_codes_and_values(*inputs, **columns, masked_positions=visit_ends, labels=codes)
        return tuple(heads[name](*inputs, **columns, **arguments[name]) for name in self.objectives)

    def _need(self, objective: str, what: str) -> None:
        if objective not in self.objectives:
            raise ValueError(
                f"objectives: found {', '.join(self.objectives)}; expected {objective} among them to predict {what}: "
                f"train with objective.name={objective} or joint"
            )
