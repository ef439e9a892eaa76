"""Low-rank adaptation (LoRA, Hu et al. 2021) in parameter space: each adapted kernel is W + scale * A B.

It is independent of the model: merged parameters are used like any others, at no extra cost in prediction.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

# Queries, keys and values share one kernel: their updates share A, and each has separate columns of B.
KERNELS = r"/encoder/block_\d+/(attention|feedforward)/\w+/kernel$"


def initialize(params: Any, rank: int, key: jax.Array, kernels: str = KERNELS) -> dict:
    """Initialises LoRA factors whose product is 0: A (inputs, rank) is random and B (rank, outputs) is 0.

    Args:
      params: the variables of a model. Kernels with more than two axes count as matrices (first axis, rest).
      rank: from 1 to the smaller side of the smallest kernel.
      key: a PRNG key, not used elsewhere.
      kernels: a regular expression that the path of a kernel to adapt contains, such as `/params/.../qkv/kernel`; by
        default every dense layer of Transformer blocks.

    Returns:
      A tree like `params` with only the chosen kernels, each `{"lora_a", "lora_b"}`.

    Raises:
      ValueError: no path matches, or the rank is too large or below 1.
    """
    flat: dict[tuple[str, ...], Any] = flatten_dict(params)
    paths = [path for path in sorted(flat) if re.search(kernels, "/" + "/".join(path))]
    if not paths:
        raise ValueError(f"lora: found no kernel whose path has {kernels!r}; an LSTM has none, a Transformer does")
    shapes = [(flat[path].shape[0], flat[path].size // flat[path].shape[0]) for path in paths]
    if not 1 <= rank <= min(map(min, shapes)):
        raise ValueError(f"lora.rank: found {rank}; expected 1 to {min(map(min, shapes))}, a side of the kernels")
    factors = {}
    for path, (inputs, outputs), kernel_key in zip(paths, shapes, jax.random.split(key, len(paths)), strict=True):
        factors[*path, "lora_a"] = jax.random.normal(kernel_key, (inputs, rank), flat[path].dtype) * inputs**-0.5
        factors[*path, "lora_b"] = jnp.zeros((rank, outputs), flat[path].dtype)
    return unflatten_dict(factors)


def merge(params: Any, factors: dict, scale: float) -> Any:
    """Returns params with each adapted kernel W replaced by W + scale * A B.

    The factors of `initialize` leave W unchanged. The scale is alpha / rank in the paper.
    """
    flat: dict[tuple[str, ...], Any] = flatten_dict(params)
    flat_factors: dict[tuple[str, ...], Any] = flatten_dict(factors)
    for path in {path[:-1] for path in flat_factors}:
        update = flat_factors[*path, "lora_a"] @ flat_factors[*path, "lora_b"]
        flat[path] += scale * update.reshape(flat[path].shape)
    return unflatten_dict(flat)
