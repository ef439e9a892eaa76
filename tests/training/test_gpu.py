"""On a GPU: the step gives what it gives on a CPU, and training lowers the loss. `python -m pytest -m gpu`."""

import functools

import jax
import numpy as np
import pytest

from behrt_jax.models.pretraining import BEHRTForPretraining
from behrt_jax.objectives.joint import make_objective
from behrt_jax.training.loop import make_train_step
from behrt_jax.training.optimizer import make_optimizer
from behrt_jax.training.state import create_state
from behrt_jax.training.workdir import initialize
from tests import tiny

pytestmark = pytest.mark.gpu
LENGTHS = [[5, 7, 4], [9, 7], [16], [6, 6, 4]]
STEPS = 60


@pytest.fixture
def gpu() -> jax.Device:
    return jax.devices("gpu")[0]


def run(device: jax.Device, dtype: str, steps: int) -> tuple[list[float], list[np.ndarray]]:
    """Trains a tiny model on a device, in true float32 or bfloat16; returns the losses and the parameters."""
    with jax.default_device(device), jax.default_matmul_precision("float32"):
        model = BEHRTForPretraining(tiny.config(num_layers=2, dtype=dtype, dropout=0.1), ("mlm", "next_visit"))
        config = tiny.objective_config(name="joint", time_to_event_weight=0.0)
        objective = make_objective(model, config, False, is_target=np.arange(tiny.VOCAB_SIZE) > 10)
        optimizer = make_optimizer(tiny.optimizer_config(), STEPS)
        state = create_state(functools.partial(initialize, model), optimizer, 0)
        step, losses = make_train_step(objective, optimizer, 0), []
        for _ in range(steps):
            state, metrics = step(state, tiny.packed_batch(LENGTHS, 16))
            means = {name: metrics[name][0] / metrics[name][1] for name in objective.weights}
            losses.append(float(objective.total(means)))
        assert {leaf.device for leaf in jax.tree.leaves(state.params)} == {device}
        return losses, jax.device_get(jax.tree.leaves(state.params))


def test_a_step_is_that_of_a_cpu(gpu):
    (loss, *_), params = run(gpu, "float32", 3)
    (expected_loss, *_), expected = run(jax.devices("cpu")[0], "float32", 3)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for found, wanted in zip(params, expected, strict=True):
        # Adam's first updates have the size of the learning rate whatever the gradient: tiny ones may change sign.
        assert np.mean(np.abs(found - wanted) > 1e-4) < 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_lowers_the_loss(gpu, dtype):
    losses, _ = run(gpu, dtype, STEPS)
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.7 * losses[0]
