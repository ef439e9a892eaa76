"""The objective that a train step minimises, and the weighted sum of several objectives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

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


def combine(parts: dict[str, tuple[Objective, float]]) -> Objective:
    """Combines weighted objectives into one; returns a single objective of weight 1 unchanged."""
    if len(parts) == 1 and next(iter(parts.values()))[1] == 1.0:
        return next(iter(parts.values()))[0]

    def split(key):
        return dict(zip(parts, jax.random.split(key, len(parts)), strict=True))

    def prepare(batch, key):
        return {name: part.prepare(batch, part_key) for (name, part_key), (part, _) in _pairs(split(key), parts)}

    def measure(params, prepared, dropout_key):
        keys = dict.fromkeys(parts) if dropout_key is None else split(dropout_key)
        return _merge(
            part.measure(params, prepared[name], part_key) for (name, part_key), (part, _) in _pairs(keys, parts)
        )

    def count(prepared):
        return _merge(part.count(prepared[name]) for name, (part, _) in parts.items())

    weights = [
        {name: part_weight * weight for name, weight in part.weights.items()} for part, part_weight in parts.values()
    ]
    return Objective(prepare, measure, count, _merge(weights))


def _pairs(keys: dict, parts: dict):
    return zip(keys.items(), parts.values(), strict=True)


def _merge(found) -> dict:
    return {name: value for part in found for name, value in part.items()}
