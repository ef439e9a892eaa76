"""Small networks for baselines on sparse features, trained side by side on one stream of mini-batches.

The first layer runs in scipy, where its cost is proportional to the non-zero features; the rest runs in JAX.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse

from behrt_jax.models.dropout import hash_bits

logger = logging.getLogger(__name__)
CHUNK = 1024
ROUND_UP = 128  # batches are padded to a multiple of this number of rows, so that few shapes are compiled
AVERAGED_SHARE = 0.1  # of the steps so far
TOLERANCE = 1e-3


class MLPConfig(NamedTuple):
    """The size and the training of a network.

    Attributes:
      learning_rate: of Adam, constant.
      hidden: units of the hidden layer (ReLU); 0 gives a linear model.
      dropout: rate of the hidden units.
    """

    learning_rate: float
    hidden: int = 0
    dropout: float = 0.0


class Schedule(NamedTuple):
    """The rule for early stopping.

    Attributes:
      max_steps: the budget; a network that still improves then is reported.
      check_every: steps between evaluations of the tuning loss.
      patience: stops a network once its last `patience` evaluations lowered the loss by less than `TOLERANCE` of it.
    """

    max_steps: int
    check_every: int
    patience: int


@dataclasses.dataclass(frozen=True)
class Features:
    """Sparse (N, D) features `own + groups @ shared`: features shared by several rows are stored and multiplied once.

    Attributes:
      own: (N, D) float32.
      groups: (N, G) float32, 1 for the groups of each row; None without shared features.
      shared: (G, D) float32.
    """

    own: scipy.sparse.csr_array
    groups: scipy.sparse.csr_array | None = None
    shared: scipy.sparse.csr_array | None = None

    def __len__(self) -> int:
        return self.own.shape[0]

    def __getitem__(self, rows) -> "Features":
        return Features(self.own[rows], None if self.groups is None else self.groups[rows], self.shared)

    def __matmul__(self, weights: np.ndarray) -> np.ndarray:
        """Returns (N, K) for (D, K) weights."""
        if self.groups is None:
            return self.own @ weights
        return self.own @ weights + self.groups @ (self.shared @ weights)

    def transposed_matmul(self, values: np.ndarray) -> np.ndarray:
        """Returns (D, K) for (N, K) values: the gradient of the weights from the gradient of `features @ weights`."""
        if self.groups is None or self.shared is None:
            return self.own.T @ values
        return self.own.T @ values + self.shared.T @ (self.groups.T @ values)


class Training(NamedTuple):
    """The training state of a network.

    Attributes:
      params: by name; `first` is the first layer's kernel.
      optimizer_state: of Adam.
      average: the running average of the parameters, which is evaluated and returned.
    """

    params: dict
    optimizer_state: Any
    average: dict


def initial_params(width: int, hidden: int, bias: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Initialises a network of `width` inputs whose logits are `bias`, (T,), for any input."""
    bias = bias.astype(np.float32)
    if not hidden:
        return {"first": np.zeros((width, len(bias)), np.float32), "bias": bias}
    first = np.random.default_rng(seed).standard_normal((width, hidden)) * math.sqrt(2 / width)
    hidden_bias, weights = np.zeros(hidden, np.float32), np.zeros((hidden, len(bias)), np.float32)
    return {"first": first.astype(np.float32), "hidden_bias": hidden_bias, "weights": weights, "bias": bias}


def logits_of(rest: dict, read: jax.Array, dropout: float = 0.0, key: jax.Array | None = None) -> jax.Array:
    """Returns (B, T) logits from the parameters without `first`, and (B, H) `read`, features times `first`.

    With a random key, `dropout` of the hidden units are dropped.
    """
    if "weights" in rest:
        read = jax.nn.relu(read + rest["hidden_bias"][None])
        if key is not None:
            kept = hash_bits(key, read.size).reshape(read.shape) >= jnp.uint32(round(dropout * 2**32))
            read = jnp.where(kept, read / (1 - dropout), 0.0)
        read = read @ rest["weights"]
    return read + rest["bias"][None]


_logits = jax.jit(logits_of)


def predict(params: dict, features: Features) -> np.ndarray:
    """Computes (N, T) float32 logits of (N, D) features."""
    first, rest = _split(params)
    logits = np.empty((len(features), len(params["bias"])), np.float32)
    for start in range(0, len(logits), CHUNK):
        read = features[start : start + CHUNK] @ first
        logits[start : start + CHUNK] = np.asarray(_logits(rest, _pad_rows(read, CHUNK)))[: len(read)]
    return logits


def train_networks(
    batches: Iterable[tuple[Features, np.ndarray]],
    recipes: dict[str, MLPConfig],
    bias: np.ndarray,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    tuning_loss: Callable[[dict], float],
    schedule: Schedule,
) -> dict[str, dict]:
    """Trains every network with Adam until its tuning loss no longer decreases.

    The learning rate is constant, as the number of steps is not known in advance. Averaging the parameters over the
    last tenth of the steps replaces a decay of the learning rate (Polyak and Juditsky 1992).

    Args:
      batches: features (B, D) and float32 targets (B, T), at least `schedule.max_steps` of them.
      recipes: of each network, by name.
      bias: (T,) the initial logits, those of train's frequencies.
      loss: function from (B, T) logits and targets to (B,) losses.
      tuning_loss: function from averaged parameters to their loss on tuning.
      schedule: when to stop.

    Returns:
      By name, the averaged parameters with the lowest tuning loss.
    """
    steps = {name: make_step(recipe, loss) for name, recipe in recipes.items()}
    networks, best, losses = {}, {}, {name: [] for name in recipes}
    for number, (features, targets) in zip(range(1, schedule.max_steps + 1), prefetch(batches), strict=False):
        if number == 1:
            networks = {name: begin(recipe, features.own.shape[1], bias) for name, recipe in recipes.items()}
        for name, training in networks.items():
            networks[name] = steps[name](training, features, targets, number)
        if number % schedule.check_every and number != schedule.max_steps:
            continue
        for name, training in networks.items():
            losses[name].append(tuning_loss(training.average))
            if name not in best or losses[name][-1] <= min(losses[name]):
                best[name] = jax.device_get(training.average)
        summary = ", ".join(f"{name} {losses[name][-1]:.3f}" for name in networks)
        logger.info(f"fitting baselines: step {number:,} of at most {schedule.max_steps:,}: {summary}")
        networks = {name: each for name, each in networks.items() if not is_flat(losses[name], schedule.patience)}
        if not networks:
            break
    for name in networks:
        budget = f"its budget of {schedule.max_steps:,} steps"
        logger.info(f"fitting baselines: {name}: stopped at {budget} while its tuning loss still fell")
    return best


def is_flat(losses: list[float], patience: int) -> bool:
    """Returns whether the last `patience` losses lowered the minimum before them by less than `TOLERANCE` of it."""
    if len(losses) <= patience:
        return False
    before = min(losses[:-patience])
    return before - min(losses[-patience:]) < TOLERANCE * abs(before)


def prefetch(items: Iterable) -> Iterator:
    """Yields the items; a thread prepares the next one while the caller uses the current one."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as worker:
        future = worker.submit(next, iterator, None)
        while (item := future.result()) is not None:
            future = worker.submit(next, iterator, None)
            yield item


def begin(recipe: MLPConfig, width: int, bias: np.ndarray) -> Training:
    """Initialises the training state of a network of `width` inputs."""
    params = initial_params(width, recipe.hidden, bias)
    return Training(params, optax.adam(recipe.learning_rate).init(params), jax.tree.map(jnp.array, params))


def make_step(recipe: MLPConfig, loss: Callable[[jax.Array, jax.Array], jax.Array]):
    """Returns the training step: (training, features, targets, step number) -> training."""
    optimizer = optax.adam(recipe.learning_rate)

    @jax.jit
    def gradients(rest, read, targets, count, number):
        key = jax.random.fold_in(jax.random.key(0), number)

        def mean_loss(rest, read):
            losses = loss(logits_of(rest, read, recipe.dropout, key), targets)
            return jnp.where(jnp.arange(len(losses)) < count, losses, 0.0).sum() / count

        return jax.grad(mean_loss, argnums=(0, 1))(rest, read)

    @functools.partial(jax.jit, donate_argnames=("state", "average"))  # scipy may still read the parameters
    def update(params, grads, state, average, number):
        changes, state = optimizer.update(grads, state)
        params = optax.apply_updates(params, changes)
        share = 1 / (1 + AVERAGED_SHARE * number)
        return Training(params, state, jax.tree.map(lambda mean, new: mean + share * (new - mean), average, params))

    def step(training: Training, features: Features, targets: np.ndarray, number: int) -> Training:
        first, rest = _split(training.params)
        count = len(features)
        read = _pad_rows(features @ first, ROUND_UP)
        grads, read_grads = gradients(rest, read, _pad_rows(targets, ROUND_UP), count, number)
        grads["first"] = features.transposed_matmul(np.asarray(read_grads)[:count])
        return update(training.params, grads, training.optimizer_state, training.average, number)

    return step


def _split(params: dict) -> tuple[np.ndarray, dict]:
    """Returns the first layer's kernel, for scipy, and the other parameters."""
    return np.asarray(params["first"]), {name: values for name, values in params.items() if name != "first"}


def _pad_rows(values: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(values, ((0, -len(values) % multiple), (0, 0)))
