"""Patient embeddings: the pooled hidden states of a frozen encoder over windows of their histories."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.data import batches, dataset
from behrt_jax.data import windows as data_windows
from behrt_jax.data.config import DataConfig
from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary
from behrt_jax.models import inference
from behrt_jax.models import inputs as models_inputs
from behrt_jax.models import pooling as pools
from behrt_jax.models.inputs import model_arguments

HALF_LIVES = {"recent": 4.0, "newer": 1.0, "latest": 0.5}  # in visits
WEIGHTED = ("rare", *HALF_LIVES)  # poolings in addition to those of the model
SLOTS = 32  # patients a row, rounded up to a multiple, so that nearly all parts of a data set have one shape
LEAST = 1e-6  # weight of a special token, so that a history without a known code still has an embedding


def embed(
    config: DataConfig,
    model,
    params,
    patients: dataset.Patients,
    batch_size: int,
    windows: data_windows.Windows | None = None,
    poolings: tuple[str, ...] = ("mean",),
    vocabulary: Vocabulary | None = None,
    advance: Callable[[], object] = bool,
) -> dict[str, np.ndarray]:
    """Embeds patients.

    Args:
      config: the section `data` of the run.
      model: the run's model.
      params: its parameters.
      patients: M patients, or histories.
      batch_size: rows per batch; fewer on a CPU, where `inference.limit_rows` is faster.
      windows: windows of the patients, as from `windows.windows_until`; each patient's newest if not given. Embeddings
        of several windows of a patient are averaged, weighted by the number or the total weight of their tokens.
      poolings: see `BEHRT.get_patient_embedding`; or those of `token_weights`, weighted means of the states.
      vocabulary: the model's vocabulary; needed for `rare`.
      advance: called after each batch.

    Returns:
      (M, D) float32, by pooling.
    """
    index = data_windows.index_visits(patients, config.row_length, config.use_sep)
    epoch, batch_size = batches.evaluation_epoch(index, windows), inference.limit_rows(batch_size)
    num_slots = int(np.diff(epoch.plan.offsets).max(initial=1))
    num_slots += -num_slots % SLOTS
    rarity = code_rarity(vocabulary) if vocabulary is not None else np.zeros(model.config.vocab_size, np.float32)

    def dispatch(number: int):
        batch = batches.batch_of(patients, index, epoch, number, batch_size)
        weights = token_weights(batch, index, rarity) if set(poolings) & set(WEIGHTED) else {}
        weights = {name: weights[name] for name in poolings if name in WEIGHTED}
        columns = models_inputs.device_columns(batch)
        return batch["patient_index"], _pool(model, params, columns, weights, tuple(poolings), num_slots)

    sums = {name: np.zeros((len(patients), model.config.hidden_dim + 1), np.float32) for name in poolings}
    for patient_index, pooled in inference.fetch(map(dispatch, range(epoch.num_batches(batch_size)))):
        rows, slots = np.nonzero(patient_index >= 0)
        for name, (values, weights) in pooled.items():
            parts = np.concatenate([values * weights[..., None], weights[..., None]], axis=-1)[rows, slots]
            np.add.at(sums[name], patient_index[rows, slots], parts)
        advance()
    return {
        name: pooled[:, :-1] / np.maximum(pooled[:, -1:], np.finfo(np.float32).tiny) for name, pooled in sums.items()
    }


@functools.partial(jax.jit, static_argnames=("model", "poolings", "most"))  # compiled once for all parts of a data set
def _pool(model, params, columns, token_weights, poolings: tuple[str, ...], most: int):
    """Returns (B, most, D) embeddings and their (B, most) weights, by pooling."""
    inputs, kwargs = model_arguments(columns)
    call = functools.partial(model.apply, params, *inputs, **kwargs)
    members, outputs = pools.membership(columns["patient_ids"], most), {}
    for name in poolings:
        if name in token_weights:
            weights = members * token_weights[name][:, None]
            total = weights.sum(axis=-1)
            mean = jnp.matmul(weights, call(method="encode")) / jnp.maximum(total, LEAST / 2)[..., None]
            outputs[name] = mean, total
        else:
            pooled = call(pooling=name, num_patients=most, method="get_patient_embedding")
            outputs[name] = pooled, members.sum(axis=-1).astype(jnp.float32)
    return outputs


def code_rarity(vocabulary: Vocabulary) -> np.ndarray:
    """Computes the rarity of each token, (V,) float32: log((1 + N) / (1 + n)) for n train patients with the token.

    N is the number of patients with the most common code. Special tokens are 0.
    """
    patients = np.array(vocabulary.patients)
    return np.append(np.zeros(NUM_SPECIAL), np.log((1 + patients.max()) / (1 + patients))).astype(np.float32)


def token_weights(
    batch: dict[str, np.ndarray], index: data_windows.VisitIndex, rarity: np.ndarray
) -> dict[str, np.ndarray]:
    """Computes weights for the tokens of packed rows, (B, L) float32 each.

    Args:
      batch: packed rows.
      index: the visits of their patients.
      rarity: (V,), from `code_rarity`.

    Returns:
      `rare`: as in tf-idf, the weights of a code's n tokens in a window add up to log(1 + n) times its rarity;
      `recent`, `newer`, `latest`: weights halve with every `HALF_LIVES` visits before the patient's last.
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
