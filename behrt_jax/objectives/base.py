"""The objective that a train step minimises, and the weighted sum of several objectives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from behrt_jax.models.inputs import model_arguments

Sums = dict[str, tuple[jax.Array, jax.Array]]


class Objective(NamedTuple):
    """Losses as weighted means over targets, in two steps: sample the targets, then score the model on them.

    Attributes:
      prepare: (batch, key) -> arrays with rows as first axis: the batch and its targets, with all randomness except
        dropout. Targets are sampled for the whole batch; the arrays may be split by rows to save memory.
      measure: (params, prepared, dropout key or None) -> metrics as pairs (sum, count).
      count: prepared -> the count of each metric in `weights`; independent of the parameters.
      weights: weight of each metric that is a loss; `total` sums their weighted means.
    """

    prepare: Callable[[dict[str, jax.Array], jax.Array], Any]
    measure: Callable[[Any, Any, jax.Array | None], Sums]
    count: Callable[[Any], dict[str, jax.Array]]
    weights: dict[str, float]

    def total(self, means: dict[str, Any]) -> Any:
        """Returns the weighted sum of mean losses."""
        return sum(weight * means[name] for name, weight in self.weights.items())


def apply_model(model, params, batch: dict[str, jax.Array], dropout_key: jax.Array | None, **arguments) -> Any:
    """Calls a model on packed rows with further arguments of `model.apply`; a key enables dropout."""
    columns, keywords = model_arguments(batch)
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    return model.apply(params, *columns, **keywords, **arguments, deterministic=dropout_key is None, rngs=rngs)


def combine(parts: dict[str, tuple[Objective, float]]) -> Objective:
    """Combines weighted objectives into one; returns a single objective of weight 1 unchanged."""
    if len(parts) == 1 and next(iter(parts.values()))[1] == 1.0:
        return next(iter(parts.values()))[0]

    def split(key):
        return dict(zip(parts, jax.random.split(key, len(parts)), strict=True))

    def prepare(batch, key):
        keys = split(key)
        return {name: part.prepare(batch, keys[name]) for name, (part, _) in parts.items()}

    def measure(params, prepared, dropout_key):
        keys = dict.fromkeys(parts) if dropout_key is None else split(dropout_key)
        return _merge(part.measure(params, prepared[name], keys[name]) for name, (part, _) in parts.items())

    def count(prepared):
        return _merge(part.count(prepared[name]) for name, (part, _) in parts.items())

    weights = [
        {name: part_weight * weight for name, weight in part.weights.items()} for part, part_weight in parts.values()
    ]
    return Objective(prepare, measure, count, _merge(weights))


def _merge(found) -> dict:
    return {name: value for part in found for name, value in part.items()}
