"""Embeddings of patients: the pooled states of windows of their histories, from a frozen encoder."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from behrt_jax.data import batches, dataset
from behrt_jax.data import windows as data_windows
from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary
from behrt_jax.models import inputs as models_inputs
from behrt_jax.models import pooling as pools
from behrt_jax.models.inputs import model_arguments

HALF_LIVES = {"recent": 4.0, "newer": 1.0, "latest": 0.5}  # visits
WEIGHTED = ("rare", *HALF_LIVES)  # poolings beside those of the model
SLOTS = 32  # rows hold more or fewer patients; in such steps nearly all parts of a data set have one shape
LEAST = 1e-6  # the weight of a special token, so that a history without a known code has an embedding too


def embed(
    config: ConfigDict,
    model,
    params,
    patients: dataset.Patients,
    windows: data_windows.Windows | None = None,
    poolings: tuple[str, ...] = ("mean",),
    vocabulary: Vocabulary | None = None,
    advance: Callable[[], object] = bool,
) -> dict[str, np.ndarray]:
    """Embeds patients.

    Args:
      config: of the run.
      model: its model.
      params: its parameters.
      patients: M patients, or histories.
      windows: of them, as `windows.windows_until` gives them; the newest of each if not given. What several windows
        of one patient give is averaged, weighted by their tokens, or by the weights of these.
      poolings: see `BEHRT.get_patient_embedding`; or those of `token_weights`, weighted means of the states.
      vocabulary: of the model; for `rare`.
      advance: called after each batch.

    Returns:
      By pooling, (M, D) float32.
    """
    index = data_windows.index_visits(patients, config.data.row_length, config.data.use_sep)
    epoch = batches.evaluation_epoch(index, windows)
    most, size = int(np.diff(epoch.plan.offsets).max(initial=1)), config.evaluation.batch_size
    most += -most % SLOTS
    rarity = code_rarity(vocabulary) if vocabulary is not None else np.zeros(config.model.vocab_size, np.float32)
    sums = {name: np.zeros((len(patients), config.model.hidden_dim + 1), np.float32) for name in poolings}
    for number in range(epoch.num_batches(size)):
        batch = batches.batch_of(patients, index, epoch, number, size)
        rows, slots = np.nonzero(batch["patient_index"] >= 0)
        weights = token_weights(batch, index, rarity)
        given = (models_inputs.device_columns(batch), {name: weights[name] for name in poolings if name in WEIGHTED})
        found = _pool(model, params, *given, poolings=tuple(poolings), most=most)
        for name, (values, weights) in jax.device_get(found).items():
            parts = np.concatenate([values * weights[..., None], weights[..., None]], axis=-1)[rows, slots]
            np.add.at(sums[name], batch["patient_index"][rows, slots], parts)
        advance()
    return {name: found[:, :-1] / np.maximum(found[:, -1:], np.finfo(np.float32).tiny) for name, found in sums.items()}


@functools.partial(jax.jit, static_argnames=("model", "poolings", "most"))  # compiled once for all parts of a data set
def _pool(model, params, columns, token_weights, poolings: tuple[str, ...], most: int):
    """Returns by pooling (B, most, D) embeddings and (B, most) their weights."""
    inputs, named = model_arguments(columns)
    call = functools.partial(model.apply, params, *inputs, **named)
    members, found = pools.membership(columns["patient_ids"], most), {}
    for name in poolings:
        if name in token_weights:
            weights = members * token_weights[name][:, None]
            total = weights.sum(axis=-1)
            mean = jnp.matmul(weights, call(method="encode")) / jnp.maximum(total, LEAST / 2)[..., None]
            found[name] = mean, total
        else:
            pooled = call(pooling=name, num_patients=most, method="get_patient_embedding")
            found[name] = pooled, members.sum(axis=-1).astype(jnp.float32)
    return found


def code_rarity(vocabulary: Vocabulary) -> np.ndarray:
    """Returns how rare each token is, (V,) float32: log((1 + N) / (1 + n)) of n train patients who have it.

    N is that of the code that most have. Special tokens are 0.
    """
    patients = np.array(vocabulary.patients)
    return np.append(np.zeros(NUM_SPECIAL), np.log((1 + patients.max()) / (1 + patients))).astype(np.float32)


def token_weights(
    batch: dict[str, np.ndarray], index: data_windows.VisitIndex, rarity: np.ndarray
) -> dict[str, np.ndarray]:
    """Weights the tokens of packed rows, (B, L) float32 each.

    Args:
      batch: packed rows.
      index: the visits of their patients.
      rarity: (V,), as `code_rarity` gives it.

    Returns:
      `rare`: as in tf-idf, the n tokens of a code in a window of a patient add up to log(1 + n) times its rarity;
      `recent`, `newer`, `latest`: halved with every one of `HALF_LIVES` visits before the patient's last.
    """
    rows, places = np.nonzero(batch["patient_ids"])
    slots, codes = batch["patient_ids"][rows, places], batch["codes"][rows, places]
    keys = (rows * np.int64(batch["patient_ids"].max() + 1) + slots) * len(rarity) + codes
    _, owners, counts = np.unique(keys, return_inverse=True, return_counts=True)
    visits = batch["window_starts"][rows, slots - 1] + batch["visit_ids"][rows, places]
    ago = index.first_visit[batch["patient_index"][rows, slots - 1] + 1] - 1 - visits
    rare = np.maximum(rarity[codes] * (np.log1p(counts) / counts)[owners], LEAST)
    weights = {name: np.zeros(batch["codes"].shape, np.float32) for name in WEIGHTED}
    weights["rare"][rows, places] = rare
    for name, half_life in HALF_LIVES.items():
        weights[name][rows, places] = np.maximum(np.exp2(-ago / half_life), LEAST)
    return weights
