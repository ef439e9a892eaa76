"""Models that together have every choice of a config, weights for them, and a batch of patients who are awkward."""

import functools

import jax
import numpy as np

from behrt_jax.models.behrt import BEHRT
from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.models.pretraining import BEHRTForMLM, BEHRTForNextVisitPrediction
from tests import tiny

PLAIN = {"visit_bias": False, "rotary": "none", "time_bins": 0}
CONFIGS = {
    "defaults": PLAIN,
    "current recipe": {"num_heads": 4},
    "months": {"rotary": "ages", "position_encoding": "none"},
    "causal, months": {"causal": True, "rotary": "ages", "position_encoding": "none", "pooling": "attention"},
    "causal alone": {**PLAIN, "causal": True, "max_age": 60, "age_bin_size": 7.0},
    "sinusoidal positions": {
        "position_encoding": "sinusoidal",
        "time_bin_days": 7.0,
        "rotary": "none",
        "pooling": "max",
    },
    "one head": {**PLAIN, "visit_bias": True, "num_heads": 1, "pooling": "cls", "value_encoding": "film"},
    "rotary alone": {**PLAIN, "rotary": "positions", "pooling": "attention"},
    "all of time": {"position_encoding": "sinusoidal", "rotary": "ages", "causal": True},
    "lstm": {**PLAIN, "encoder": "lstm", "pooling": "last"},
    "lstm, no positions": {"encoder": "lstm", "position_encoding": "none", "pooling": "attention"},
}
HEADS = {
    "codes": BEHRTForMLM,
    "next visit": BEHRTForNextVisitPrediction,
    "label": BEHRTForSequenceClassification,
    "labels": functools.partial(BEHRTForSequenceClassification, num_labels=3),
}
PATIENTS = 3  # in a row, at most
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def config_of(name: str, **overrides):
    return tiny.config(**{**CONFIGS[name], **overrides})


def poolings(config) -> list[str]:
    return [*(["cls"] if config.sees_future else []), "mean", "max", "attention"]


def drawn(config, heads: tuple[str, ...] = ()) -> dict:
    """Weights of a `BEHRT` with all poolings, and of heads, by name; without a run of `init`.

    Float32 holds the sine of 1,000 radians to 3e-5. So that outputs can be held to 1e-5, the product of queries and
    keys is small where they turn once in 6 months.
    """
    batch = tiny.packed_batch([[2]], 2)
    columns, named = tiny.columns(batch), tiny.named(batch)
    pooled = functools.partial(BEHRT(config).init, method="get_patient_embedding", pooling="attention")
    shapes = {"behrt": jax.eval_shape(pooled, jax.random.key(0), *columns, **named)["params"]}
    for name in heads:
        shapes[name] = jax.eval_shape(HEADS[name](config).init, jax.random.key(0), *columns, **named)["params"]["head"]

    def begin(path, leaf):
        return np.full(leaf.shape, path[-1].key == "scale", np.float32)

    return tiny.scattered(
        jax.tree_util.tree_map_with_path(begin, shapes), scale=0.15 if config.rotary == "ages" else 0.3
    )


def encode(config, weights: dict, batch: dict) -> jax.Array:
    return BEHRT(config).apply({"params": weights["behrt"]}, *tiny.columns(batch), **tiny.named(batch))


def pool(config, weights: dict, batch: dict, pooling: str) -> jax.Array:
    several = {**tiny.named(batch), "num_patients": PATIENTS, "method": "get_patient_embedding"}
    return BEHRT(config).apply({"params": weights["behrt"]}, *tiny.columns(batch), **several, pooling=pooling)


def score(config, weights: dict, batch: dict, head: str, **arguments) -> jax.Array:
    """What a head gives, for all patients of a row where it is one for patients."""
    if head != "codes" and "visit_ends" not in arguments:
        arguments["num_patients"] = PATIENTS
    params = {"params": {"behrt": weights["behrt"], "head": weights[head]}}
    return HEADS[head](config).apply(params, *tiny.columns(batch), **tiny.named(batch), **arguments)


def compiled(function, *arguments):
    """`jax.jit` for these arguments, with half its time to compile and slower code."""
    return jax.jit(function).lower(*arguments).compile(QUICK)


def awkward_batch() -> dict[str, np.ndarray]:
    """Rows of three, one and two patients: unknown ages, 0 and 120 years, visits and positions past the tables.

    Ages are multiples of 1/64 year, so that their months are exact in float32.
    """
    batch = tiny.packed_batch([[6, 3, 5], [16], [2, 5]], 16, seed=1)
    batch["ages"] = np.round(batch["ages"] * 64) / 64
    batch["ages"][0, :9] = [0, 0.5, np.nan, 59.75, 100, 120, np.nan, np.nan, np.nan]
    batch["ages"][1, 14:] = [99.5, 120]
    batch["visit_ids"][0, 9:14] = [4, 5, 5, 6, 9]
    batch["visit_ids"][1] = np.arange(16) // 2
    batch["time_deltas"][1, :8] = [0, 0.25, 3, 7, 8191, 20_000, -1, 83.5]
    batch["dates"][0, 2:5] = np.nan
    batch["values"][1, :6] = [-30, -10, 0, 0.25, 10, 1e6]
    batch["places"] = np.array([[5, 8, 13, 9], [1, 15, 15, 7], [6, 1, 0, 2]])  # tokens, often the last of a visit
    return batch
