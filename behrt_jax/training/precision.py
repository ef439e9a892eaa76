"""The dtype of matrix products: what `model.dtype="auto"` stands for on a device."""

import re
from collections.abc import Mapping
from typing import Any

AUTO = "auto"
BFLOAT16_CAPABILITY = 8  # of NVIDIA GPUs; from Ampere on, their tensor cores multiply bfloat16


def fastest_dtype(device: Any) -> str:
    """Returns `bfloat16` for a JAX device that multiplies it in hardware, otherwise `float32`.

    These are TPUs, and NVIDIA GPUs of compute capability 8.0 or higher. CPUs and other GPUs compute in float32.
    """
    capability = re.match(r"(\d+)\.\d+$", str(getattr(device, "compute_capability", "")))
    is_recent_gpu = device.platform == "gpu" and capability and int(capability[1]) >= BFLOAT16_CAPABILITY
    return "bfloat16" if device.platform == "tpu" or is_recent_gpu else "float32"


def resolve_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Returns a config, given as nested dicts, with `dtype` where its `model.dtype` is `auto`."""
    model = config.get("model", {})
    return {**config, "model": {**model, "dtype": dtype}} if model.get("dtype") == AUTO else dict(config)
