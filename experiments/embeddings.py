"""Embeddings of patients: the pooled states of windows of their histories, from a frozen encoder."""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from behrt_jax import evaluate
from behrt_jax.data import batches, dataset, sequences
from behrt_jax.models.inputs import model_arguments


def embed(
    config: ConfigDict, model, params, patients: dataset.Patients, windows=None, poolings: tuple[str, ...] = ("mean",)
) -> dict[str, np.ndarray]:
    """Embeds one window of each patient.

    Args:
      config: of the run.
      model: its model.
      params: its parameters.
      patients: M patients, or histories.
      windows: one of each patient, as `sequences.windows_until` gives them; the newest if not given.
      poolings: see `BEHRT.get_patient_embedding`.

    Returns:
      By pooling, (M, D) float32.
    """
    index = sequences.index_visits(patients, config.data.row_length, config.data.separators)
    epoch = batches.evaluation_epoch(index, windows)
    most = int(np.diff(epoch.plan.offsets).max(initial=1))

    @jax.jit
    def pool(columns):
        inputs, named = model_arguments(columns)
        call = functools.partial(model.apply, params, *inputs, **named, num_patients=most)
        return {name: call(pooling=name, method="get_patient_embedding") for name in poolings}

    pooled = {name: np.zeros((len(patients), config.model.hidden_dim), np.float32) for name in poolings}
    for number in range(epoch.num_batches(config.evaluation.batch_size)):
        batch = batches.batch_of(patients, index, epoch, number, config.evaluation.batch_size)
        rows, slots = np.nonzero(batch["patient_index"] >= 0)
        for name, values in jax.device_get(pool(evaluate.device_columns(batch))).items():
            pooled[name][batch["patient_index"][rows, slots]] = values[rows, slots]
    return pooled
