"""BEHRT with a head for patient-level outcomes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.models.behrt import BEHRT, BEHRTWithHead
from behrt_jax.models.heads import ClassificationHead, EventHead

FORECAST_DAYS = 365.25


class BEHRTForSequenceClassification(BEHRTWithHead):
    """BEHRT with a linear head on the pooled patient embedding, optionally concatenated with covariates and forecasts.

    Attributes:
      num_labels: number of logits: 1 for a binary outcome (sigmoid), the number of classes (softmax), or the number of
        labels of a multi-label outcome (one sigmoid each).
      num_covariates: F, covariates per patient, such as age and sex from `data.histories.covariates_at`.
      forecast_ids: E ids of codes; the head also reads the number of events of each within a year that the pre-trained
        time-to-event head expects.
      event_edges: inner edges (days) of the time bins of that head; used with `forecast_ids`.
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
        """Computes the logits of each patient.

        Args:
          codes: (B, L); like the other inputs and `columns`, as in `BEHRT.__call__`.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          covariates: (B, F) if `num_covariates` is not 0, or (B, P, F) with `num_patients`.
          num_patients: P, as in `BEHRT.get_patient_embedding`.
          deterministic: disables dropout; if False, dropout uses the RNG stream `dropout`.
          **columns: `positions`, `time_deltas`, `dates`, `values`.

        Returns:
          (B, num_labels) logits, or (B, P, num_labels) with `num_patients`.

        Raises:
          ValueError: the shape of `covariates` does not match `num_covariates`.
        """
        arguments = {"num_patients": num_patients, "deterministic": deterministic, **columns}
        pooled, log_counts = self.forecast(codes, ages, visit_ids, attention_mask, **arguments)
        expected = (*pooled.shape[:-1], self.num_covariates)
        if self.num_covariates and covariates is None and self.is_initializing():
            covariates = jnp.zeros(expected)
        if (None if covariates is None else covariates.shape) != (expected if self.num_covariates else None):
            problem = f"found {'none' if covariates is None else covariates.shape}; expected {expected}"
            sources = (
                "age and sex by histories.covariates_at, or log risks by code_regression.load where a run has these"
            )
            raise ValueError(f"covariates: {problem}: at the prediction time {sources}")
        features = [feature for feature in (log_counts, covariates) if feature is not None]
        return self.head(pooled, deterministic, jnp.concatenate(features, axis=-1) if features else None)

    def forecast(
        self, codes, ages, visit_ids, attention_mask, *, num_patients=None, **columns
    ) -> tuple[jax.Array, jax.Array | None]:
        """Computes patient embeddings, and the log expected number of events of each forecast code within a year.

        Args:
          codes: (B, L); like the other inputs and `columns`, as in `BEHRT.__call__`.
          ages: (B, L).
          visit_ids: (B, L).
          attention_mask: (B, L).
          num_patients: P, as in `BEHRT.get_patient_embedding`.
          **columns: `positions`, `time_deltas`, `dates`, `values`, `deterministic`.

        Returns:
          (B, D) or (B, P, D) embeddings, and (B, E) or (B, P, E) float32 log expected counts; None if E is 0.
        """
        inputs = (codes, ages, visit_ids, attention_mask)
        if not self.forecast_ids:
            return self.get_patient_embedding(*inputs, num_patients=num_patients, **columns), None
        hidden = self.encode(*inputs, **columns)
        pool = functools.partial(self.behrt.pool, attention_mask=attention_mask, num_patients=num_patients)
        pooled = pool(hidden, pooling=self.config.pooling)
        state, age = pool(hidden, pooling="last"), pool(ages[..., None], pooling="last")[..., 0]
        edges = np.array([0.0, *self.event_edges, np.inf])
        exposure = np.diff(np.minimum(edges, FORECAST_DAYS)).astype(np.float32)
        log_rates = self.time_to_event(state, age, self.behrt.embedding.attend)[..., np.array(self.forecast_ids)]
        exposure = exposure.reshape((1,) * (state.ndim - 1) + (-1, 1))
        return pooled, nn.logsumexp(log_rates, axis=-2, b=jnp.asarray(exposure))
