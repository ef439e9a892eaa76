"""What the tests of models and training share: a tiny model, packed batches with random content, strict JAX."""

import contextlib
import functools
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import behrt_jax
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.pretraining import BEHRTForMLM, BEHRTForPretraining
from behrt_jax.objectives.config import ObjectiveConfig
from behrt_jax.training.optimizer import OptimizerConfig
from behrt_jax.training.state import create_state
from behrt_jax.training.workdir import initialize

VOCAB_SIZE = 30
SIZES = {"embedding_dim": 8, "hidden_dim": 16, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16}


def slow_but(fast, cases) -> list:
    """Returns cases for `parametrize`: those of `fast` are for the gate, the others slow."""

    def mark(case):
        values = case if isinstance(case, tuple) else (case,)
        return pytest.param(*values, marks=[] if case in fast else pytest.mark.slow)

    return [mark(case) for case in cases]


@contextlib.contextmanager
def collect_messages():
    """Yields a list that is filled with the messages of the library, as its own handler prints them."""
    logger, handler, messages = logging.getLogger("behrt_jax"), behrt_jax._Printer(), []
    handler.emit = lambda record: messages.append(handler.format(record))
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def strict_jax():
    """Refuses silent broadcasting between ranks and random keys used twice."""
    with jax.numpy_rank_promotion("raise"), jax.debug_key_reuse(True):
        yield


def config(**overrides) -> BEHRTConfig:
    settings = {
        **SIZES,
        "max_positions": 12,
        "max_visits": 6,
        "time_bins": 12,
        "visit_bias": True,
        "rotary": "positions",
        **overrides,
    }
    return BEHRTConfig(vocab_size=VOCAB_SIZE, **settings)


def optimizer_config(**overrides) -> OptimizerConfig:
    settings = {"learning_rate": 1e-2, "warmup_share": 0.2, "weight_decay": 0.01, "b2": 0.999, "clip_norm": 1.0}
    return OptimizerConfig(**{**settings, **overrides})


def objective_config(**overrides) -> ObjectiveConfig:
    settings = {
        "name": "mlm",
        "mlm_weight": 1.0,
        "next_visit_weight": 0.5,
        "time_to_event_weight": 0.25,
        "mask_rate": 0.25,
        "mask_values": True,
        "targets": ("*",),
        "min_patients": 1,
        "history": "every_visit",
        "known_time_share": 0.0,
        "time_gap_weight": 0.1,
        "queries_per_row": 4,
        "first_event_only": False,
        "query_times": "after_visits",
        "event_edges": (30.0, 365.0),
    }
    return ObjectiveConfig(**{**settings, **overrides})


def initial_state(model: BEHRTForMLM | BEHRTForPretraining, optimizer, seed: int = 0):
    return create_state(functools.partial(initialize, model), optimizer, seed)


def scattered(params, seed: int = 0, scale: float = 0.3):
    """Moves every parameter away from its initial value, so that biases and scales matter."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32), params)


def packed_batch(lengths: list[list[int]], row_length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Lays out patients of given lengths row by row: `[CLS]`, codes of some visits, a `[SEP]` at the end."""
    rng = np.random.default_rng(seed)
    shape = (len(lengths), row_length)
    batch = {name: np.zeros(shape, np.int32) for name in ("codes", "visit_ids", "positions", "patient_ids")}
    batch |= {name: np.zeros(shape, np.float32) for name in ("ages", "time_deltas", "dates")}
    batch["maskable"] = np.zeros(shape, bool)
    batch["patient_index"] = np.full((len(lengths), max(map(len, lengths))), -1, np.int32)
    number = 0
    for row, sizes in enumerate(lengths):
        start = 0
        for slot, size in enumerate(sizes):
            here = (row, slice(start, start + size))
            batch["codes"][here] = [1, *rng.integers(5, VOCAB_SIZE, size - 2), 2]
            batch["maskable"][row, start + 1 : start + size - 1] = True
            batch["visit_ids"][here] = np.sort(rng.integers(0, 4, size))
            batch["ages"][here] = np.sort(rng.uniform(0, 95, size))
            batch["time_deltas"][here] = rng.uniform(0, 100, size)
            batch["dates"][here] = np.sort(rng.uniform(-40, 25, size))
            batch["positions"][here] = np.arange(size)
            batch["patient_ids"][here] = slot + 1
            batch["patient_index"][row, slot] = number
            start, number = start + size, number + 1
    numbers = np.random.default_rng([seed, 1])  # a stream of its own: the other columns stay as they were
    has_value = batch["maskable"] & (numbers.random(shape) < 0.7)
    batch["values"] = np.where(has_value, 2 * numbers.standard_normal(shape), np.nan).astype(np.float32)
    return batch


def columns(batch: dict) -> tuple:
    """Returns the positional arguments of a model's call."""
    return tuple(batch[name] for name in ("codes", "ages", "visit_ids", "patient_ids"))


def named(batch: dict) -> dict:
    """Returns the keyword arguments of a model's call."""
    names = ("positions", "time_deltas", "dates", *["values"] * ("values" in batch))
    return {name: batch[name] for name in names}


@contextlib.contextmanager
def edited_config(folder: Path) -> Iterator[dict]:
    """Gives the content of a workdir's `config.json`, and writes it at the end, as if it had been written so."""
    content = json.loads((folder / "config.json").read_text())
    del content["digest"]
    yield content
    (folder / "config.json").write_text(json.dumps(content))
