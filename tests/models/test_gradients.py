"""Gradients of every choice and head are those of central differences, and finite for the oddest patients."""

import functools

import jax
import numpy as np
import pytest

from behrt_jax.models.config import CHOICES
from tests import tiny
from tests.models import variants

try:
    from jax import enable_x64
except ImportError:  # in JAX 0.5
    from jax.experimental import enable_x64


STEP = 1e-5
HEADS = {  # of each model, and the places that it scores
    "current recipe": ("codes", "masked_positions"),
    "causal, months": ("next visit", None),
    "sinusoidal positions": ("label", None),
    "one head": ("labels", None),
    "all of time": ("next visit", "visit_ends"),
    "months": ("labels", None),
    "lstm": ("label", None),
}


pytestmark = pytest.mark.usefixtures("strict_jax")


def wide(tree):
    return jax.tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf, tree)


@pytest.mark.parametrize("name", tiny.slow_but(["current recipe", "causal, months"], HEADS))
def test_each_parameter_has_the_gradient_of_central_differences(name):
    config, (head, places) = variants.config_of(name), HEADS[name]
    batch, weights = wide(variants.awkward_batch()), wide(variants.drawn(config, (head,)))
    if head == "codes" or places or config.pooling != "attention":
        del weights["behrt"]["attention_pooling"]
    rng = np.random.default_rng(0)

    @jax.value_and_grad
    def loss(weights, batch, along):
        logits = variants.score(config, weights, batch, head, **({places: batch["places"]} if places else {}))
        return (logits * along[: logits.shape[1], : logits.shape[2]][None]).sum()

    along = rng.standard_normal((4, tiny.VOCAB_SIZE))
    with enable_x64():
        run = variants.compiled(loss, weights, batch, along)
        _, gradient = jax.device_get(run(weights, batch, along))
        leaves, tree = jax.tree.flatten(weights)
        for index, (path, slope) in enumerate(jax.tree_util.tree_leaves_with_path(gradient)):
            direction = rng.standard_normal(slope.shape)
            ends = []
            for sign in (1, -1):
                moved = [*leaves[:index], leaves[index] + sign * STEP * direction, *leaves[index + 1 :]]
                ends.append(float(run(jax.tree.unflatten(tree, moved), batch, along)[0]))
            expected = (ends[0] - ends[1]) / (2 * STEP)
            assert slope.dtype == np.float64 and abs(expected) > 1e-6, path
            np.testing.assert_allclose((slope * direction).sum(), expected, rtol=1e-5, atol=1e-7, err_msg=str(path))


def test_gradients_are_held_for_every_choice_and_head():
    configs = [variants.config_of(name) for name in HEADS]
    for key in ("position_encoding", "rotary", "encoder"):
        assert {getattr(config, key) for config in configs} == set(CHOICES[key]), key
    pooled = {
        variants.config_of(name).pooling for name, (head, places) in HEADS.items() if head != "codes" and not places
    }
    assert pooled == set(CHOICES["pooling"])
    assert {head for head, _ in HEADS.values()} == set(variants.HEADS)


def odd_batch() -> dict[str, np.ndarray]:
    """A row of one patient with 600 visits, one of padding alone, and one of patients with three, two and one token."""
    batch = tiny.packed_batch([[600], [], [3, 2, 2]], 600, seed=2)
    batch["visit_ids"][0] = np.arange(600)
    batch["ages"][0] = np.linspace(0, 120, 600)
    batch["ages"][2, :7] = [0, 0, 0, 120, 120, np.nan, np.nan]
    batch["dates"][2, :2] = np.nan
    batch["patient_ids"][2, 6] = 0
    return batch


@functools.cache
@pytest.mark.parametrize(
    ("name", "max_visits"),
    tiny.slow_but(
        [("current recipe", 6), ("causal, months", 512)],
        [
            ("current recipe", 6),
            ("causal, months", 512),
            ("sinusoidal positions", 6),
            ("one head", 512),
            ("months", 6),
            ("lstm", 512),
        ],
    ),
)
def test_the_oddest_patients_give_finite_states_scores_and_gradients(name, max_visits):
    config = variants.config_of(name, max_visits=max_visits)

    @functools.partial(jax.grad, has_aux=True)
    def gradient(weights, batch):
        hidden, logits = variants.encode(config, weights, batch), variants.score(config, weights, batch, "label")
        return logits.sum() + (hidden**2).mean(), (hidden, logits)

    arguments = variants.drawn(config, ("label",)), odd_batch()
    found = jax.device_get(variants.compiled(gradient, *arguments)(*arguments))
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert np.isfinite(leaf).all(), path
