"""The objective that a recipe asks for: one of them, or several together."""

import functools

import numpy as np

from behrt_jax.objectives import mlm, next_visit, time_to_event
from behrt_jax.objectives.base import Objective, combine
from behrt_jax.objectives.config import ObjectiveConfig


def make_objective(
    model,
    config: ObjectiveConfig,
    use_sep: bool,
    is_target: np.ndarray | None = None,
    has_value: np.ndarray | None = None,
    replacement: mlm.Replacement = mlm.TRAINING,
) -> Objective:
    """Returns the objective that a recipe asks for.

    Args:
      model: a `BEHRTForPretraining` with a head for each; for masked codes alone, a `BEHRTForMLM` will do.
      config: the section `objective`.
      use_sep: whether `[SEP]` ends each visit of the batches.
      is_target: (V,) bool, what next visits and events are about; all codes if not given.
      has_value: (V,) bool, codes that carry a value; not read with `config.mask_values`.
      replacement: what stands in the place of hidden codes.
    """
    is_target = np.ones(model.config.vocab_size, bool) if is_target is None else is_target
    makers = {
        "mlm": functools.partial(mlm.make_objective, model, config, has_value, replacement),
        "next_visit": functools.partial(next_visit.make_objective, model, config, use_sep, is_target),
        "time_to_event": functools.partial(time_to_event.make_objective, model, config.event_edges, is_target),
    }
    return combine({name: (makers[name](), weight) for name, weight in config.weights.items()})
