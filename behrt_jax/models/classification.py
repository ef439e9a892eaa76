"""BEHRT with a head for patient-level outcomes."""

import jax
import jax.numpy as jnp

from behrt_jax.models.behrt import BEHRT, BEHRTWithHead
from behrt_jax.models.heads import ClassificationHead


class BEHRTForSequenceClassification(BEHRTWithHead):
    """BEHRT with a linear head on the pooled patient embedding, optionally concatenated with covariates.

    Attributes:
      num_labels: number of logits: 1 for a binary outcome (sigmoid), the number of classes (softmax), or the number of
        labels of a multi-label outcome (one sigmoid each).
      num_covariates: F, covariates per patient, such as age and sex from `data.histories.covariates_at`.
    """

    num_labels: int = 1
    num_covariates: int = 0

    def setup(self):
        """Declares the encoder and the head."""
        if self.num_labels < 1:
            raise ValueError(f"num_labels: found {self.num_labels}; expected 1 or more")
        self.behrt = BEHRT(self.config)
        self.head = ClassificationHead(self.config, self.num_labels)

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
        pooled = self.get_patient_embedding(codes, ages, visit_ids, attention_mask, **arguments)
        expected = (*pooled.shape[:-1], self.num_covariates)
        if self.num_covariates and covariates is None and self.is_initializing():
            covariates = jnp.zeros(expected)
        if (None if covariates is None else covariates.shape) != (expected if self.num_covariates else None):
            problem = f"found {'none' if covariates is None else covariates.shape}; expected {expected}"
            sources = (
                "age and sex by histories.covariates_at, or log risks by code_regression.load where a run has these"
            )
            raise ValueError(f"covariates: {problem}: at the prediction time {sources}")
        return self.head(pooled, deterministic, covariates)
