"""The contestant of start-up: imports what pre-training does before its first step. Started by `worker`.

Also runs with another checkout on the path, whose package may lack the train step of benchmarks: it is read by file.
"""

import importlib.util
from pathlib import Path

import behrt_jax.workflows.pretrain  # noqa: F401


def start(settings: dict, batches: list[dict]) -> dict:
    """Starts the contestant; see `worker`."""
    spec = importlib.util.spec_from_file_location("train_step", Path(__file__).with_name("train_step.py"))
    train_step = importlib.util.module_from_spec(spec)  # pyright: ignore
    spec.loader.exec_module(train_step)  # pyright: ignore
    return train_step.start(settings, batches)
