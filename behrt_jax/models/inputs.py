"""Model inputs: checks of shapes and (except while tracing) of values, and selection of batch columns."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from behrt_jax.models import devices
from behrt_jax.models.config import BEHRTConfig


def check_inputs(config: BEHRTConfig, codes, positions, **columns) -> None:
    """Checks the arguments of a model.

    Args:
      config: architecture.
      codes: (B, L) ints, 0 <= id < V.
      positions: (B, L) or None.
      **columns: the other arguments by name; None if not given.

    Raises:
      ValueError: `codes` do not have two axes; the shape of an argument differs from that of `codes`; codes are not
        ints or out of range; or rows without `positions` are longer than a learned position table.
    """
    if jnp.ndim(codes) != 2:
        raise ValueError(f"codes: found shape {jnp.shape(codes)}; expected (rows, length), such as codes[None] for one")
    for name, values in {"positions": positions, **columns}.items():
        if values is not None and jnp.shape(values) != jnp.shape(codes):
            raise ValueError(f"{name}: found shape {jnp.shape(values)}; expected that of codes, {jnp.shape(codes)}")
    if not jnp.issubdtype(jnp.result_type(codes), jnp.integer):
        raise ValueError(f"codes: found dtype {jnp.result_type(codes)}; expected integers, the ids of the vocabulary")
    length = codes.shape[1]
    if positions is None and config.position_encoding == "learned" and length > config.max_positions:
        raise ValueError(
            f"codes: found rows of length {length}; expected at most model.max_positions={config.max_positions}; "
            "cut the rows, raise max_positions, or give positions (those past the table share its last row)"
        )
    if isinstance(codes, Tracer) or not codes.size:
        return
    values = np.asarray(codes)  # under jit, jnp.min would be traced even for a concrete array
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest >= config.vocab_size:
        raise ValueError(
            f"codes: found ids from {lowest} to {highest}; expected 0 to {config.vocab_size - 1}, as "
            f"model.vocab_size={config.vocab_size}; was another vocabulary used?"
        )


def count_patients(attention_mask, num_patients: int | None) -> int:
    """Returns the maximum number of patients per row; 1 if not given.

    Raises:
      ValueError: `num_patients` is below 1, or a row holds more patients (not checked while tracing).
    """
    if num_patients is not None and num_patients < 1:
        raise ValueError(f"num_patients: found {num_patients}; expected 1 or more")
    if not isinstance(attention_mask, Tracer) and jnp.size(attention_mask):
        highest = int(np.asarray(attention_mask).max())
        if highest > (num_patients or 1):
            raise ValueError(
                f"attention_mask: found patients up to {highest} in a row, but num_patients={num_patients}; "
                f"expected num_patients={highest} or more for packed rows"
            )
    return num_patients or 1


def model_arguments(batch: dict) -> tuple[tuple, dict]:
    """Returns a model's positional and keyword arguments from a batch of packed rows."""
    columns = tuple(batch[name] for name in ("codes", "ages", "visit_ids", "patient_ids"))
    names = ("positions", "time_deltas", "dates", "time_ranks", "values")
    return columns, {name: batch[name] for name in names if name in batch}


def read_columns(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the columns that a model or an objective reads, without host-only ones."""
    host_only = ("patient_index", "window_index", "window_starts", "times")
    return {name: values for name, values in batch.items() if name not in host_only}


def device_columns(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the columns that a model or an objective reads, with their rows split over the devices at hand."""
    return devices.split_rows(read_columns(batch))
