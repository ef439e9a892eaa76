"""AdamW with warm-up, cosine decay, weight decay of matrices only, global-norm clipping, and layer-wise rates."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from behrt_jax.models.embeddings import CODE_TABLE

FINAL_SHARE = 0.01
FREEZE = ("none", "encoder")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The section `optimizer` of a recipe.

    Attributes:
      learning_rate: the peak learning rate.
      warmup_share: share of the run in which the learning rate rises linearly, 0 <= share < 1.
      weight_decay: decoupled weight decay of matrices (Loshchilov and Hutter 2019); vectors are not decayed.
      b2: decay rate of the second moment.
      clip_norm: maximum global norm of the gradient.
    """

    learning_rate: float
    warmup_share: float
    weight_decay: float
    b2: float
    clip_norm: float

    def __post_init__(self):
        for key in ("learning_rate", "clip_norm"):
            if getattr(self, key) <= 0:
                raise ValueError(f"optimizer.{key}: found {getattr(self, key)}; expected more than 0")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay: found {self.weight_decay}; expected 0 or more")
        for key in ("warmup_share", "b2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"optimizer.{key}: found {getattr(self, key)}; expected 0 or more and less than 1")


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate of update 0, 1, ... `num_steps - 1`.

    It rises to the peak over the warm-up (the first update is not zero), then falls along a cosine to 1% of the peak at
    the last update.
    """
    peak = config.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=int(config.warmup_share * num_steps),
        decay_steps=num_steps,
        end_value=FINAL_SHARE * peak,
    )
    return lambda count: schedule(count + 1)


def make_optimizer(
    config: OptimizerConfig,
    num_steps: int,
    scales: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """Builds the optimizer of a run.

    Args:
      config: the section `optimizer`.
      num_steps: total number of updates.
      scales: maps parameters to a tree of learning-rate factors of the same structure, such as a partial
        `layer_lr_scales`: floats, or a column of floats for the rows of a parameter. Parameters of scale 0 never
        change, have no moments, and their gradients do not count in clipping. Rows of scale 0 never change;
        `stop_frozen_gradients` removes their gradients.
    """
    adamw = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, num_steps),
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )
    if scales is None:
        return adamw

    def labels(params):
        return jax.tree.map(lambda scale: "trained" if np.any(scale) else "frozen", scales(params))

    def scale_by(updates, params):
        return jax.tree.map(jnp.multiply, updates, scales(params))

    split = optax.multi_transform({"trained": adamw, "frozen": optax.set_to_zero()}, labels)
    return optax.chain(split, optax.stateless(scale_by))


def layer_lr_scales(params: Any, decay: float = 1.0, freeze: str = "none", num_new_codes: int = 0) -> Any:
    """Returns learning-rate factors per parameter: a tree of floats, or of columns of floats.

    Heads, attention pooling and the last normalisation have 1, the last block `decay`, the one before it `decay`
    squared, and so on to the embeddings (layer-wise decay, Howard and Ruder 2018; Clark et al. 2020).

    Args:
      params: the variables of a model with a head, or such a tree together with LoRA factors.
      decay: 0 < decay <= 1; 1 disables the decay.
      freeze: `none`; or `encoder`, 0 for all but heads, attention pooling and LoRA factors.
      num_new_codes: number of last rows of the code table that are trained even if the encoder is frozen.

    Raises:
      ValueError: an invalid `decay` or `freeze`.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layer_decay: found {decay}; expected more than 0 and at most 1")
    if freeze not in FREEZE:
        raise ValueError(f"freeze: found {freeze!r}; expected one of {', '.join(FREEZE)}")

    def number(path):
        match = re.search(r"/(?:block|layer)_(\d+)/", path)
        return int(match[1]) if match else None

    def scale(path, leaf):
        is_encoder = "/behrt/" in path and "/attention_pooling/" not in path and "/lora_" not in path
        layer = -1 if "/behrt/embedding/" in path else number(path)
        rate = 1.0 if layer is None else decay ** (num_layers - layer)
        if not (freeze == "encoder" and is_encoder):
            return rate
        if num_new_codes and path.endswith(CODE_TABLE):
            return np.float32(rate) * (np.arange(len(leaf)) >= len(leaf) - num_new_codes)[:, None]
        return 0.0

    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    paths = ["/" + "/".join(str(part.key) for part in path) for path, _ in leaves]
    num_layers = 1 + max((layer for layer in map(number, paths) if layer is not None), default=-1)
    return jax.tree.unflatten(tree, [scale(path, leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)])


def stop_frozen_gradients(params: Any, scales: Any) -> Any:
    """Stops the gradients of parameters and rows of scale 0, so that none is computed for frozen parameters."""

    def hold(leaf, scale):
        if np.all(scale):
            return leaf
        frozen = jax.lax.stop_gradient(leaf)
        return jnp.where(scale > 0, leaf, frozen) if np.any(scale) else frozen

    return jax.tree.map(hold, params, scales)


def count_trained(leaf: jax.Array, scale: float | np.ndarray) -> int:
    """Returns the number of trained elements of a parameter, given its scale from `layer_lr_scales`."""
    return leaf.size * int(np.count_nonzero(scale)) // np.size(scale)
