"""Parameters drawn by numpy and models called under jit: compiling `init` takes longer than most tests."""

import functools

import jax
import numpy as np

from behrt_jax.models.pretraining import BEHRTForPretraining
from tests import tiny


@functools.cache
def parameters(model, pooling: str | None = None, seed: int = 0):
    """Draws the variables of a model; with `pooling`, those of `get_patient_embedding` too."""
    arguments = {"method": "get_patient_embedding", "pooling": pooling} if pooling else {}
    if isinstance(model, BEHRTForPretraining):
        arguments = {"method": "score_all"}
    batch = tiny.packed_batch([[2]], 2)
    init = functools.partial(model.init, **arguments)
    shapes = jax.eval_shape(init, jax.random.key(0), *tiny.columns(batch), **tiny.named(batch))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        begin = path[-1].key == "scale"
        width = leaf.shape[0] if path[-1].key == "kernel" else 10
        return (begin + rng.standard_normal(leaf.shape) / width**0.5).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _compiled(model, static: tuple):
    return jax.jit(functools.partial(model.apply, **dict(static)))


def apply(model, batch: dict, params=None, **arguments) -> np.ndarray:
    """Calls a model on a batch; numbers and names among the arguments are static."""
    static = {name: value for name, value in arguments.items() if isinstance(value, int | str)}
    rest = {name: value for name, value in arguments.items() if name not in static}
    call = _compiled(model, tuple(sorted(static.items())))
    return np.asarray(call(params or parameters(model), *tiny.columns(batch), **tiny.named(batch), **rest))
