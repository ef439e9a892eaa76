"""Attribution methods, applied to the tokens of a case."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from behrt_jax.interpret import attribution
from behrt_jax.interpret.cases import AttributionCase
from behrt_jax.models import inputs

logger = logging.getLogger(__name__)
METHODS = {
    "occlusion": "how much the number falls if the code had not been recorded",
    "integrated gradients": "along the path from all codes masked to the history",
    "gradient x input": "the same by one gradient at the history",
    "attention rollout": "where attention goes through all layers; says nothing of a code's effect",
    "attention, last layer": "mean of the heads; says nothing of a code's effect",
}
ROWS, BUCKET = 8, 64  # rows per batch; numbers of codes are rounded up to a multiple, so that few shapes are compiled


def explain(case: AttributionCase, model, params) -> dict[str, np.ndarray]:
    """Returns the token scores of a case by method, (N, L) each; reports the completeness of integrated gradients."""
    units = np.asarray(attribution.code_units(case.columns))
    order, names = np.argsort(units.max(axis=1), kind="stable"), list(METHODS)
    if model.config.encoder == "lstm":
        names = names[:3]
    token_scores = {name: np.zeros(units.shape, np.float32) for name in names}
    gaps, changes = np.zeros(len(units)), np.zeros(len(units))
    read = _methods(case, model, params, names[3:])
    for start in tqdm.trange(0, len(order), ROWS, desc="explaining", unit="batch"):
        chosen = np.resize(order[start : start + ROWS], ROWS)  # the last batch repeats some rows
        columns = {name: values[chosen] for name, values in inputs.device_columns(case.columns).items()}
        most = -(-int(units[chosen].max() + 1) // BUCKET) * BUCKET
        scores, (gap, change) = read(columns, units[chosen], max(most, 1))
        gaps[chosen], changes[chosen] = np.asarray(gap), np.asarray(change)
        for name, values in scores.items():
            token_scores[name][chosen] = np.asarray(values)
    mean_gap, change = np.abs(gaps).mean(), np.abs(changes).mean()
    logger.info(f"integrated gradients: sums miss {mean_gap:.1e} of changes of {change:.2f}, on average")
    return token_scores


def _methods(case: AttributionCase, model, params, attending: list[str]):
    @functools.partial(jax.jit, static_argnums=2)
    def read(columns, units, most):
        explained = attribution.is_explained(columns)
        path, gap = attribution.integrated_gradients(case.score, columns)
        token_scores = {
            "occlusion": attribution.occlusion(case.score, columns, units, most),
            "integrated gradients": path,
            "gradient x input": attribution.gradient_times_input(case.score, columns),
        }
        if attending:
            readers = attribution.read_from(columns, case.places and case.places(columns))
            heads, rollout = attribution.attention_to(model, params, columns, readers, **case.arguments)
            token_scores |= {"attention rollout": rollout, "attention, last layer": heads.mean(axis=1)}
        token_scores = {name: jnp.where(explained, values, 0.0) for name, values in token_scores.items()}
        return token_scores, (gap, gap + path.sum(axis=1))

    return read
