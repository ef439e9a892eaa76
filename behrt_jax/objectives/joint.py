"""The pre-training objective of a recipe: a single one, or several combined."""

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
    """Builds the pre-training objective of a recipe.

    Args:
      model: a `BEHRTForPretraining` with a head for each objective; a `BEHRTForMLM` suffices for masked codes alone.
      config: the section `objective`.
      use_sep: whether `[SEP]` ends each visit of the batches.
      is_target: (V,) bool, the target codes of next visits and events; all codes if not given.
      has_value: (V,) bool, codes that carry a value; ignored with `config.mask_values`.
      replacement: how masked codes are replaced.
    """
    is_target = np.ones(model.config.vocab_size, bool) if is_target is None else is_target
    makers = {
        "mlm": functools.partial(mlm.make_objective, model, config, has_value, replacement),
        "next_visit": functools.partial(next_visit.make_objective, model, config, use_sep, is_target),
        "time_to_event": functools.partial(time_to_event.make_objective, model, config.event_edges, is_target),
    }
    return combine({name: (makers[name](), weight) for name, weight in config.weights.items()})
