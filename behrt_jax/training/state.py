"""The training state, and the random keys of each step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from behrt_jax.models import devices


class TrainState(flax.struct.PyTreeNode):
    """The state saved in a checkpoint; random keys are not part of it, as they depend only on (seed, step).

    Attributes:
      step: () int32, number of updates done.
      params: the variables of the model.
      opt_state: the state of the optimizer.
    """

    step: jax.Array
    params: Any
    opt_state: Any

    def apply(self, optimizer: optax.GradientTransformation, grads: Any) -> "TrainState":
        """Returns the state after one update."""
        updates, opt_state = optimizer.update(grads, self.opt_state, self.params)
        return TrainState(self.step + 1, optax.apply_updates(self.params, updates), opt_state)


def create_state(initialize, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Creates the state before the first step.

    Args:
      initialize: maps a key to the variables of a model.
      optimizer: from `optimizer.make_optimizer`.
      seed: determines the initial parameters.
    """

    @jax.jit
    def create(key):
        params = initialize(key)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return devices.replicate(create(jax.random.key(seed)))


def step_keys(seed: int, step: jax.Array) -> dict[str, jax.Array]:
    """Returns the keys of a step by name: `masking` and `dropout`, a function of (seed, step)."""
    # The seed's key initialised the parameters, so step 0 must not reuse it.
    key = jax.random.fold_in(jax.random.key(seed), step + 1)
    return dict(zip(("masking", "dropout"), jax.random.split(key), strict=True))
