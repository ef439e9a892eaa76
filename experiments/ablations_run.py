"""One run of `experiments.ablations`: trains a variant and prints its tuning metrics as a line of JSON.

The next-visit figure is that of a linear probe: logistic regressions, one a code, from the frozen embedding of a
patient's history up to a random visit, for the codes of the next one.
"""

import functools
import itertools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from sklearn.metrics import average_precision_score

from behrt_jax import evaluate, state, train, workdir
from behrt_jax.data import batches, dataset, packing, sequences, vocabulary
from behrt_jax.data.config import DataConfig
from behrt_jax.data.hashing import hash_fraction
from behrt_jax.data.prepare import prepare
from behrt_jax.models.behrt import count_parameters
from behrt_jax.models.inputs import model_arguments
from behrt_jax.optimizer import OptimizerConfig, make_optimizer
from experiments import command, task
from experiments.ablations import POOLINGS, recipe

CUTS = 4  # histories of each patient
PROBE_STEPS = 200
PROBE_LEARNING_RATE = 0.02
PROBE_DECAY = 1e-4


def pretrain(config, trained, patients):
    """Trains a model from scratch; returns its parameters."""
    optimizer = make_optimizer(OptimizerConfig(**config.optimizer), config.train.num_steps)
    current = state.create_state(functools.partial(workdir.initialize, trained.model), optimizer, config.seed)
    train_step = train.make_train_step(trained.objective, optimizer, config.seed)
    stream = task.training_columns(config, trained, patients, 0)
    for columns in itertools.islice(stream, config.train.num_steps):
        current, metrics = train_step(current, columns)
    train.check_finite([jax.device_get(metrics)], config.train.num_steps - 1)
    return current.params


def cut_histories(patients: dataset.Patients, index: sequences.VisitIndex, size: int, salt: int):
    """Draws a visit of each patient but the first: the windows up to it, and the codes in it as (N, V) bool."""
    first, last = index.first_visit[:-1], index.first_visit[1:]
    following = first + 1 + np.floor(hash_fraction(salt, patients.subject_ids) * (last - first - 1)).astype(np.int64)
    members = np.flatnonzero(last - first > 1)
    targets = np.zeros((len(patients), size), bool)
    for patient in members:
        codes = patients.codes[slice(*index.starts[:, following[patient]])]
        targets[patient, codes[codes >= vocabulary.NUM_SPECIAL]] = True
    return sequences.windows_until(index, np.minimum(following, last)), targets, members


def embed_histories(config, model, params, patients):
    """Returns the frozen embeddings of cut histories by pooling, each (n, D), and the next visit's codes (n, V)."""
    index = sequences.index_visits(patients, config.data.row_length, config.data.separators)
    cuts = [cut_histories(patients, index, config.model.vocab_size, salt) for salt in range(1, CUTS + 1)]
    plans = [packing.pack(windows.lengths, index.row_length) for windows, _, _ in cuts]
    most = max(int(np.diff(plan.offsets).max()) for plan in plans)

    @jax.jit
    def embed(columns):
        inputs, named = model_arguments(columns)
        call = functools.partial(model.apply, params, *inputs, **named, num_patients=most)
        return {name: call(pooling=name, method="get_patient_embedding") for name in poolings}

    poolings = POOLINGS if model.config.sees_future else POOLINGS[1:]  # `cls` sees the first visit alone
    found, targets = {name: [] for name in poolings}, []
    for (windows, wanted, members), plan in zip(cuts, plans, strict=True):
        epoch = batches.Epoch(windows, plan, np.arange(len(plan)), sequences.EVALUATION_SALT)
        pooled = {name: np.zeros((len(patients), config.model.hidden_dim), np.float32) for name in poolings}
        for number in range(epoch.num_batches(config.evaluation.batch_size)):
            batch = batches.batch_of(patients, index, epoch, number, config.evaluation.batch_size)
            rows, slots = np.nonzero(batch["patient_index"] >= 0)
            for name, values in jax.device_get(embed(evaluate.device_columns(batch))).items():
                pooled[name][batch["patient_index"][rows, slots]] = values[rows, slots]
        for name in poolings:
            found[name].append(pooled[name][members])
        targets.append(wanted[members])
    return {name: np.concatenate(parts) for name, parts in found.items()}, np.concatenate(targets)


def probe(train_features, train_targets, features, targets) -> float:
    """Fits logistic regressions on the train features; returns the micro average precision on the others."""
    mean, deviation = train_features.mean(axis=0), train_features.std(axis=0) + 1e-6
    inputs, wanted = jnp.asarray((train_features - mean) / deviation), jnp.asarray(train_targets, jnp.float32)
    rate = (train_targets.sum(axis=0) + 0.5) / (len(train_targets) + 1)
    weights = (jnp.zeros((inputs.shape[1], wanted.shape[1])), jnp.asarray(np.log(rate / (1 - rate)), jnp.float32))
    decayed = jax.tree.map(lambda leaf: leaf.ndim > 1, weights)
    optimizer = optax.adamw(PROBE_LEARNING_RATE, weight_decay=PROBE_DECAY, mask=decayed)

    def loss(weights):
        return optax.sigmoid_binary_cross_entropy(inputs @ weights[0] + weights[1][None], wanted).mean(axis=0).sum()

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


def main() -> None:
    """Runs the command."""
    config = recipe(FLAGS.variant, FLAGS.seed, FLAGS.num_steps)
    prepared = prepare(DataConfig(**config.data))
    config.model.vocab_size = len(prepared.vocabulary)
    trained = task.make_task(config, prepared.vocabulary)
    model = trained.model
    patients, tuning = (dataset.read(prepared.folder, split) for split in ("train", "tuning"))
    began = time.perf_counter()
    params = pretrain(config, trained, patients)
    seconds = time.perf_counter() - began
    settings = config.evaluation
    plain = batches.evaluation_batches(tuning, config.data.row_length, settings.batch_size, config.data.separators)
    masked = evaluate.mask_batches(plain, settings.mask_rate, config.model.vocab_size, draws=2)
    outcomes = evaluate.score(evaluate.make_score_step(model), params, masked).values
    fitted, held = (embed_histories(config, model, params, found) for found in (patients, tuning))
    poolings = {name: probe(fitted[0][name], fitted[1], held[0][name], held[1]) for name in fitted[0]}
    result = {"variant": FLAGS.variant, "seed": FLAGS.seed, "num_steps": FLAGS.num_steps, "seconds": seconds}
    result |= {"parameters": count_parameters(params), "poolings": poolings, "next_visit": poolings["mean"]}
    result |= {name: float(outcomes[name].mean()) for name in ("loss", "accuracy", "top5_accuracy")}
    print(json.dumps(result))


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("variant", None, "A name in experiments.ablations.VARIANTS.", required=True)
    flags.DEFINE_integer("seed", 0, "Decides parameters, masks and order.")
    flags.DEFINE_integer("num_steps", None, "Updates.", required=True)
    command.keep_memory()
    command.run(main)
