"""Small networks for baselines on sparse features, trained side by side on one stream of mini-batches.

The layer that reads features runs in scipy, where it costs what the sparse rows hold; the rest runs in JAX.
"""

import dataclasses
import functools
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

CHUNK = 1024
ROUND_UP = 128  # rows of a batch are padded to a multiple of it, so that few shapes are compiled
AVERAGED_SHARE = 0.1  # of the steps so far
TOLERANCE = 1e-3


class MLPConfig(NamedTuple):
    """How a network is made and trained.

    Attributes:
      learning_rate: of Adam, constant.
      hidden: units of the one hidden layer, of ReLU; 0 is a regression.
      dropout: share of the hidden units left out in training.
    """

    learning_rate: float
    hidden: int = 0
    dropout: float = 0.0


class Schedule(NamedTuple):
    """How long networks are trained.

    Attributes:
      max_steps: the budget; a network that still improves at its end is reported.
      check_every: steps between two measurements of the tuning loss.
      patience: a network is done once its last `patience` measurements lowered the loss by less than `TOLERANCE` of it.
    """

    max_steps: int
    check_every: int
    patience: int


@dataclasses.dataclass(frozen=True)
class Features:
    """Sparse (N, D) features `own + groups @ shared`: what several rows share is stored and multiplied once.

    Attributes:
      own: (N, D) float32.
      groups: (N, G) float32, 1 for the groups of each row; None if nothing is shared.
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
        """Returns (D, K) for (N, K) values; of the gradient of a product, the gradient of its weights."""
        if self.groups is None or self.shared is None:
            return self.own.T @ values
        return self.own.T @ values + self.shared.T @ (self.groups.T @ values)


class Training(NamedTuple):
    """A network in training.

    Attributes:
      params: by name; `first` are the weights that read features.
      optimizer_state: of Adam.
      average: the running average of the parameters, which is scored and kept.
    """

    params: dict
    optimizer_state: Any
    average: dict


def initial_params(width: int, hidden: int, bias: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns weights of a network of `width` inputs whose logits are `bias`, (T,), whatever the inputs."""
    bias = bias.astype(np.float32)
    if not hidden:
        return {"first": np.zeros((width, len(bias)), np.float32), "bias": bias}
    first = np.random.default_rng(seed).standard_normal((width, hidden)) * math.sqrt(2 / width)
    weights = np.zeros((hidden, len(bias)), np.float32)
    return {
        "first": first.astype(np.float32),
        "hidden_bias": np.zeros(hidden, np.float32),
        "weights": weights,
        "bias": bias,
    }


def logits_of(rest: dict, read: jax.Array, dropout: float = 0.0, key: jax.Array | None = None) -> jax.Array:
    """Returns (B, T) logits.

    Args:
      rest: the parameters without `first`.
      read: (B, H), features times `first`.
      dropout: share of the hidden units left out where a key is given.
      key: of this step.
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
    """Returns (N, T) float32 logits of (N, D) features."""
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
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, dict]:
    """Trains every network by Adam until its tuning loss no longer falls.

    The learning rate stays constant, as the end is not known before. The average of the parameters over the last tenth
    of the steps stands in for a rate that falls to 0 (Polyak and Juditsky 1992).

    Args:
      batches: features (B, D) and float32 targets (B, T), at least `schedule.max_steps` of them.
      recipes: of each network, by name.
      bias: (T,) the logits to begin with, those of train's frequencies.
      loss: (B,) of (B, T) logits and targets.
      tuning_loss: of averaged parameters.
      schedule: when to stop.
      progress: called with the losses at each check, and with each network that the budget stopped.

    Returns:
      By name, the averaged parameters of the lowest tuning loss seen.
    """
    steps = {name: make_step(recipe, loss) for name, recipe in recipes.items()}
    running, best, losses = {}, {}, {name: [] for name in recipes}
    for number, (features, targets) in zip(range(1, schedule.max_steps + 1), prefetch(batches), strict=False):
        if number == 1:
            running = {name: begin(recipe, features.own.shape[1], bias) for name, recipe in recipes.items()}
        for name, training in running.items():
            running[name] = steps[name](training, features, targets, number)
        if number % schedule.check_every and number != schedule.max_steps:
            continue
        for name, training in running.items():
            losses[name].append(tuning_loss(training.average))
            if name not in best or losses[name][-1] <= min(losses[name]):
                best[name] = jax.device_get(training.average)
        reached = ", ".join(f"{name} {losses[name][-1]:.3f}" for name in running)
        progress(f"step {number:,} of at most {schedule.max_steps:,}: {reached}")
        running = {name: training for name, training in running.items() if not is_flat(losses[name], schedule.patience)}
        if not running:
            break
    for name in running:
        progress(f"{name}: stopped at its budget of {schedule.max_steps:,} steps while its tuning loss still fell")
    return best


def is_flat(losses: list[float], patience: int) -> bool:
    """Whether the last `patience` losses are below all before them by less than `TOLERANCE` of the lowest of those."""
    if len(losses) <= patience:
        return False
    before = min(losses[:-patience])
    return before - min(losses[-patience:]) < TOLERANCE * abs(before)


def prefetch(items: Iterable) -> Iterator:
    """Yields the items; the next one is made in a thread while the caller uses the last."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, iterator, None)
            yield item


def begin(recipe: MLPConfig, width: int, bias: np.ndarray) -> Training:
    """Returns a network of `width` inputs before its first step."""
    params = initial_params(width, recipe.hidden, bias)
    return Training(params, optax.adam(recipe.learning_rate).init(params), jax.tree.map(jnp.array, params))


def make_step(recipe: MLPConfig, loss: Callable[[jax.Array, jax.Array], jax.Array]):
    """Returns a function (training, features, targets, number of the step) -> training, one step later."""
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
        grads, of_read = gradients(rest, read, _pad_rows(targets, ROUND_UP), count, number)
        grads["first"] = features.transposed_matmul(np.asarray(of_read)[:count])
        return update(training.params, grads, training.optimizer_state, training.average, number)

    return step


def _split(params: dict) -> tuple[np.ndarray, dict]:
    """Returns the weights that read features, for scipy, and the other parameters."""
    return np.asarray(params["first"]), {name: values for name, values in params.items() if name != "first"}


def _pad_rows(values: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(values, ((0, -len(values) % multiple), (0, 0)))
