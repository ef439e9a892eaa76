"""Small networks for baselines, fitted side by side on one stream of mini-batches."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse

CHUNK = 1024


class Recipe(NamedTuple):
    """How a network is made and fitted.

    Attributes:
      learning_rate: of Adam, at first; it falls to 0 along a cosine.
      hidden: units of the one hidden layer, of ReLU; 0 is a regression.
      dropout: share of the hidden units left out in training.
    """

    learning_rate: float
    hidden: int = 0
    dropout: float = 0.0


def initial_params(width: int, hidden: int, bias: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns weights of a network of `width` inputs whose logits are `bias`, (T,), whatever the inputs."""
    output = {"weights": np.zeros((hidden or width, len(bias)), np.float32), "bias": bias.astype(np.float32)}
    if not hidden:
        return output
    first = np.random.default_rng(seed).standard_normal((width, hidden)) * math.sqrt(2 / width)
    return {"hidden": first.astype(np.float32), "hidden_bias": np.zeros(hidden, np.float32), **output}


def logits_of(params: dict, inputs: jax.Array, dropout: float = 0.0, key: jax.Array | None = None) -> jax.Array:
    """Returns (B, T) logits of (B, D) inputs; dropout of hidden units is on where a key is given."""
    if "hidden" in params:
        inputs = jax.nn.relu(inputs @ params["hidden"] + params["hidden_bias"][None])
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - dropout, inputs.shape)
            inputs = jnp.where(kept, inputs / (1 - dropout), 0.0)
    return inputs @ params["weights"] + params["bias"][None]


_logits = jax.jit(logits_of)


def predict(params: dict, features: scipy.sparse.csr_array) -> np.ndarray:
    """Returns (N, T) float32 logits of (N, D) features."""
    found = np.empty((features.shape[0], len(params["bias"])), np.float32)
    for start in range(0, len(found), CHUNK):
        inputs = features[start : start + CHUNK].toarray().astype(np.float32)
        padded = np.pad(inputs, ((0, CHUNK - len(inputs)), (0, 0)))  # one shape, so that it is compiled once
        found[start : start + CHUNK] = np.asarray(_logits(params, padded))[: len(inputs)]
    return found


def descend(
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    recipes: dict[str, Recipe],
    bias: np.ndarray,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    tuning_loss: Callable[[dict], float],
    steps: int,
    every: int,
    patience: int,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, dict]:
    """Runs Adam on every network; returns of each the parameters of the lowest tuning loss seen.

    Args:
      batches: inputs (B, D) float32 and targets; at least `steps` of them.
      recipes: of each network, by name.
      bias: (T,) the logits to begin with, those of train's frequencies.
      loss: of (B, T) logits and targets.
      tuning_loss: of parameters.
      steps: at most.
      every: steps from one check on tuning to the next.
      patience: checks in a row without a lower tuning loss after which a network is done.
      progress: called with the losses at each check.
    """
    optimizers = {
        name: optax.adam(optax.cosine_decay_schedule(recipe.learning_rate, steps)) for name, recipe in recipes.items()
    }

    @jax.jit
    def step(running, inputs, targets, number):
        key, after = jax.random.fold_in(jax.random.key(0), number), {}
        for name, (params, state) in running.items():

            def objective(params, name=name):
                return loss(logits_of(params, inputs, recipes[name].dropout, key), targets)

            updates, state = optimizers[name].update(jax.grad(objective)(params), state)
            after[name] = optax.apply_updates(params, updates), state
        return after

    running, best = {}, {}
    for number, (inputs, targets) in zip(range(1, steps + 1), batches, strict=False):
        if number == 1:
            start = {name: initial_params(inputs.shape[1], recipe.hidden, bias) for name, recipe in recipes.items()}
            running = {name: (params, optimizers[name].init(params)) for name, params in start.items()}
            best = {name: (math.inf, params, 0) for name, params in start.items()}  # loss, parameters, at which step
        running = step(running, inputs, targets, number)
        if number % every == 0 or number == steps:
            found = {name: tuning_loss(params) for name, (params, _) in running.items()}
            for name, lost in found.items():
                if lost < best[name][0]:
                    best[name] = lost, jax.device_get(running[name][0]), number
            progress(f"{number} of {steps} steps: " + ", ".join(f"{name} {lost:.3f}" for name, lost in found.items()))
            running = {name: own for name, own in running.items() if number - best[name][2] < patience * every}
            if not running:
                break
    return {name: params for name, (_, params, _) in best.items()}
