"""BEHRT with a head for outcomes of patients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.models.behrt import BEHRT, BEHRTWithHead
from behrt_jax.models.heads import ClassificationHead, EventHead

DAYS_FORETOLD = 365.25


class BEHRTForSequenceClassification(BEHRTWithHead):
    """BEHRT with a linear head on the pooled patient embedding, optionally concatenated with covariates and forecasts.

    Attributes:
      num_labels: 1 for a binary outcome; the number of classes, or of outcomes that do not exclude each other. Logits
        are for a sigmoid, a softmax, or a sigmoid each.
      num_covariates: F, numbers given of each patient, as `data.histories.covariates_at` makes them of age and sex.
      forecast_ids: E ids of codes; the head reads how often the pre-trained head for events expects each within a year.
      event_edges: of that head, days that part its bins of time; read with `forecast_ids`.
    """

    num_labels: int = 1
    num_covariates: int = 0
    forecast_ids: tuple[int, ...] = ()
    event_edges: tuple[float, ...] = ()

    def setup(self):
        """Declares the encoder and the head."""
        if self.num_labels < 1:
            raise ValueError(f"num_labels: found {self.num_labels}; expected 1 or more")
        self.behrt = BEHRT(self.config)
        self.head = ClassificationHead(self.config, self.num_labels)
        if self.forecast_ids:
            self.time_to_event = EventHead(self.config, len(self.event_edges) + 1)

    def __call__(
        self,
        codes,
        ages,
        visit_ids,
        attention_mask,
        *,
        covariates=None,
        num_patients=None,
        deterministic=True,
        **columns,
    ) -> jax.Array:
        """Scores patients.

        Args:
          codes: (B, L); the others too, and `columns`, are as `BEHRT.__call__` takes them.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          covariates: (B, F) with `num_covariates`, or (B, P, F) with `num_patients` too.
          num_patients: P, as `BEHRT.get_patient_embedding` takes it.
          deterministic: False draws dropout from the stream `dropout`.
          **columns: `positions`, `time_deltas`, `dates`.

        Returns:
          (B, num_labels) logits, or (B, P, num_labels) with `num_patients`.

        Raises:
          ValueError: covariates are not what `num_covariates` says.
        """
        arguments = {"num_patients": num_patients, "deterministic": deterministic, **columns}
        pooled, log_counts = self.forecast(codes, ages, visit_ids, attention_mask, **arguments)
        expected = (*pooled.shape[:-1], self.num_covariates)
        if self.num_covariates and covariates is None and self.is_initializing():
            covariates = jnp.zeros(expected)
        if (None if covariates is None else covariates.shape) != (expected if self.num_covariates else None):
            found = f"found {'none' if covariates is None else covariates.shape}; expected {expected}"
            made = "age and sex by histories.covariates_at, or log risks by code_regression.load where a run has these"
            raise ValueError(f"covariates: {found}: at the prediction time {made}")
        known = [each for each in (log_counts, covariates) if each is not None]
        return self.head(pooled, deterministic, jnp.concatenate(known, axis=-1) if known else None)

    def forecast(
        self, codes, ages, visit_ids, attention_mask, *, num_patients=None, **columns
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the patients' embeddings, and of the codes `forecast_ids` how often each is expected within a year.

        Args:
          codes: (B, L); the others too, and `columns`, are as `BEHRT.__call__` takes them.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          num_patients: P, as `BEHRT.get_patient_embedding` takes it.
          **columns: `positions`, `time_deltas`, `dates`, `deterministic`.

        Returns:
          (B, D) or (B, P, D), and (B, E) or (B, P, E) float32 logs of expected numbers; None where E is 0.
        """
        hidden = self.encode(codes, ages, visit_ids, attention_mask, **columns)
        pool = functools.partial(self.behrt.pool, attention_mask=attention_mask, num_patients=num_patients)
        pooled = pool(hidden, pooling=self.config.pooling)
        if not self.forecast_ids:
            return pooled, None
        state, age = pool(hidden, pooling="last"), pool(ages[..., None], pooling="last")[..., 0]
        edges = np.array([0.0, *self.event_edges, np.inf])
        spent = np.diff(np.minimum(edges, DAYS_FORETOLD)).astype(np.float32)
        log_rates = self.time_to_event(state, age, self.behrt.embedding.attend)[..., np.array(self.forecast_ids)]
        spent = spent.reshape((1,) * (state.ndim - 1) + (-1, 1))
        return pooled, nn.logsumexp(log_rates, axis=-2, b=jnp.asarray(spent))
