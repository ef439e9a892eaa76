"""All devices at hand: the rows of a batch are split over them, and parameters are copied to each.

A step that reads rows so placed is divided by XLA: each device computes its rows, and gradients are summed over all.
With one device nothing is placed, and arrays stay as they are.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

ROWS = "rows"  # the axis of the mesh


def at_hand() -> tuple[Any, ...]:
    """Returns the devices that share the work."""
    return tuple(jax.devices())


@functools.cache
def _sharding(devices: tuple[Any, ...], *axes: str | None) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (ROWS,)), PartitionSpec(*axes))


def replicated() -> Sharding:
    """Returns the sharding of parameters: a copy on each device."""
    devices = at_hand()
    return SingleDeviceSharding(devices[0]) if len(devices) == 1 else _sharding(devices)


def replicate(tree: Any) -> Any:
    """Copies arrays to each device; with one device, returns them as they are."""
    return jax.device_put(tree, replicated()) if len(at_hand()) > 1 else tree


def split_rows(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Splits columns of (B, ...) over the devices; leaves them on the host if B is not a multiple of their number."""
    devices = at_hand()
    if len(devices) == 1 or any(len(values) % len(devices) for values in columns.values()):
        return columns
    sharding = _sharding(devices, ROWS)

    def place(values: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return {name: place(np.asarray(values)) for name, values in columns.items()}


def split_parts(parts: Any) -> Any:
    """Splits the rows of (parts, B, ...) arrays, so that each device has rows of each part; for compiled functions."""
    devices = at_hand()
    return jax.lax.with_sharding_constraint(parts, _sharding(devices, None, ROWS)) if len(devices) > 1 else parts


def check_batch_size(batch_size: int, accumulate_steps: int) -> None:
    """Checks that the rows of each part of a training batch can be split over the devices.

    Raises:
      ValueError: they cannot.
    """
    number = len(at_hand())
    if batch_size // accumulate_steps % number:
        parts = f" in {accumulate_steps} parts (train.accumulate_steps)" if accumulate_steps > 1 else ""
        raise ValueError(
            f"train.batch_size: found {batch_size}{parts}; expected a multiple of {number * accumulate_steps}, as "
            f"{number} devices share the rows of a batch; or hide some devices (CUDA_VISIBLE_DEVICES)"
        )
