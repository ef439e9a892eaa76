"""Linear probe of a frozen encoder: logistic regressions from embeddings of truncated histories to the next visit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.metrics import average_precision_score

from behrt_jax.data import code_counts, dataset, windows
from behrt_jax.data import histories as data_histories
from behrt_jax.data.hashing import hash_fraction
from behrt_jax.embeddings.patients import embed
from experiments.studies.variants import POOLINGS

CUTS = 4  # histories per patient
PROBE_STEPS = 200
PROBE_LEARNING_RATE = 0.02
PROBE_DECAY = 1e-4


def cut_histories(patients: dataset.Patients, index: windows.VisitIndex, size: int, salt: int):
    """Truncates the history of each patient before a random visit other than the first.

    Returns:
      M histories of patients with something recorded before the visit; the (M, V) bool codes and the (M,) index of it.
    """
    first, last = index.first_visit[:-1], index.first_visit[1:]
    following = first + 1 + np.floor(hash_fraction(salt, patients.subject_ids) * (last - first - 1)).astype(np.int64)
    members = np.flatnonzero(last - first > 1)
    visits = following[members]
    histories, kept = data_histories.truncate(patients, members, patients.times[index.starts[0][visits]])
    targets = code_counts.visit_codes(patients, index, size)[visits[kept]].toarray()
    return histories, targets, visits[kept]


def embed_histories(recipe, model, params, patients):
    """Returns frozen embeddings of truncated histories by pooling, each (n, D), and the next visit's codes (n, V)."""
    index = windows.index_visits(patients, recipe.data.row_length, recipe.data.use_sep)
    poolings = POOLINGS if model.config.sees_future else POOLINGS[1:]  # `cls` sees the first visit alone
    embeddings, targets = {name: [] for name in poolings}, []
    for salt in range(1, CUTS + 1):
        histories, visit_codes, _ = cut_histories(patients, index, recipe.model.vocab_size, salt)
        pooled = embed(recipe.data, model, params, histories, recipe.evaluation.batch_size, poolings=poolings)
        for name in poolings:
            embeddings[name].append(pooled[name])
        targets.append(visit_codes)
    return {name: np.concatenate(parts) for name, parts in embeddings.items()}, np.concatenate(targets)


def probe(train_features, train_targets, features, targets) -> float:
    """Fits logistic regressions on the train features; returns the micro average precision on the other features."""
    mean, deviation = train_features.mean(axis=0), train_features.std(axis=0) + 1e-6
    inputs, labels = jnp.asarray((train_features - mean) / deviation), jnp.asarray(train_targets, jnp.float32)
    rate = (train_targets.sum(axis=0) + 0.5) / (len(train_targets) + 1)
    weights = (jnp.zeros((inputs.shape[1], labels.shape[1])), jnp.asarray(np.log(rate / (1 - rate)), jnp.float32))
    decayed = jax.tree.map(lambda leaf: leaf.ndim > 1, weights)
    optimizer = optax.adamw(PROBE_LEARNING_RATE, weight_decay=PROBE_DECAY, mask=decayed)

    def loss(weights):
        return optax.sigmoid_binary_cross_entropy(inputs @ weights[0] + weights[1][None], labels).mean(axis=0).sum()

    @jax.jit
    def fit(weights):
        def step(_, carry):
            weights, moments = carry
            updates, moments = optimizer.update(jax.grad(loss)(weights), moments, weights)
            return optax.apply_updates(weights, updates), moments

        return jax.lax.fori_loop(0, PROBE_STEPS, step, (weights, optimizer.init(weights)))[0]

    weights = jax.device_get(fit(weights))
    scores = (features - mean) / deviation @ weights[0] + weights[1]
    return float(average_precision_score(targets.ravel(), scores.ravel()))
