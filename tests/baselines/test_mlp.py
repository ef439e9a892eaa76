"""Small networks on sparse features, against dense numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from behrt_jax.baselines import mlp
from behrt_jax.baselines.mlp import Features, MLPConfig, Schedule


def sparse(rng, shape, share=0.3) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array((rng.normal(size=shape) * (rng.uniform(size=shape) < share)).astype(np.float32))


@pytest.mark.parametrize("is_shared", [True, False])
def test_products_of_features_are_those_of_the_dense_matrix(is_shared):
    rng = np.random.default_rng(0)
    groups = scipy.sparse.csr_array(np.eye(3, dtype=np.float32)[[0, 0, 2, 1, 2, 2, 0]])
    features = Features(sparse(rng, (7, 5)), *((groups, sparse(rng, (3, 5))) if is_shared else ()))
    dense = features.own.toarray() + ((groups @ features.shared).toarray() if is_shared else 0)
    weights, values = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 4), (7, 4)))
    np.testing.assert_allclose(features @ weights, dense @ weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features[2:6] @ weights, dense[2:6] @ weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features.transposed_matmul(values), dense.T @ values, rtol=1e-5, atol=1e-6)


def squared(logits, targets):
    return ((logits - targets) ** 2).sum(axis=-1)


def numpy_mlp(params, dense):
    return np.maximum(dense @ params["first"] + params["hidden_bias"], 0) @ params["weights"] + params["bias"]


def test_a_step_follows_the_gradient_and_the_average_its_parameters():
    """Central differences of the loss in plain numpy; the first step of Adam moves by the rate against their signs."""
    rng = np.random.default_rng(1)
    features, targets = Features(sparse(rng, (6, 5))), rng.normal(size=(6, 2)).astype(np.float32)
    recipe = MLPConfig(1e-3, hidden=4)
    training = mlp.begin(recipe, 5, np.array([0.1, -0.2]))
    training.params["weights"][:] = rng.normal(size=(4, 2))
    before = {name: np.array(values, np.float64) for name, values in training.params.items()}
    after = mlp.make_step(recipe, squared)(training, features, targets, 1)
    dense = features.own.toarray().astype(np.float64)
    for name, values in before.items():
        for place in np.ndindex(values.shape):
            losses = []
            for sign in (1, -1):
                moved = {**before, name: values.copy()}
                moved[name][place] += sign * 1e-5
                losses.append(((numpy_mlp(moved, dense) - targets) ** 2).sum(axis=1).mean())
            slope = (losses[0] - losses[1]) / 2e-5
            change = float(after.params[name][place] - values[place])
            assert change == pytest.approx(-1e-3 * np.sign(slope) if abs(slope) > 1e-4 else 0.0, abs=2e-5)
    assert np.abs(after.average["first"] - after.params["first"]).max() > 0  # behind by a little


def test_dropout_drops_its_share_and_keeps_the_mean():
    rest = {"hidden_bias": jnp.zeros(200), "weights": jnp.eye(200), "bias": jnp.zeros(200)}
    found = mlp.logits_of(rest, jnp.ones((50, 200)), 0.25, jax.random.key(0))
    assert float((found == 0).mean()) == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(np.unique(found), [0, 1 / 0.75], rtol=1e-6)


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([2.0, 1.0, 0.5], 3, False),  # too few to say
        ([2.0, 1.0, 0.9, 0.8], 2, False),
        ([2.0, 1.0, 0.9999, 0.9998], 2, True),  # lower, by next to nothing
        ([2.0, 1.0, 1.2, 1.1], 2, True),
        ([2.0, 1.0, 1.2, 0.9], 2, False),
    ],
)
def test_flat_once_the_last_losses_are_no_lower(losses, patience, expected):
    assert mlp.is_flat(losses, patience) is expected


def test_networks_end_one_by_one_each_when_it_is_flat_and_the_lowest_is_kept(messages):
    """Tuning losses by hand: the first network is flat at the third check, the other one falls to the end."""
    planned = {"flat": iter([3.0, 2.0, 2.5, 2.4]), "falls": iter([3.0, 2.0, 1.0, 0.5])}
    widths = {"flat": 2, "falls": 3}
    seen = {name: [] for name in planned}

    def tuning_loss(params):
        name = next(name for name, width in widths.items() if width == params["hidden_bias"].size)
        seen[name].append(np.array(params["bias"]))
        return next(planned[name])

    rng = np.random.default_rng(2)
    batch = Features(sparse(rng, (6, 5))), np.ones((6, 2), np.float32)
    recipes = {name: MLPConfig(0.01, width) for name, width in widths.items()}
    schedule = Schedule(8, 2, 2)
    best = mlp.train_networks(iter([batch] * 8), recipes, np.zeros(2), squared, tuning_loss, schedule)
    assert [message.removeprefix("fitting baselines: ") for message in messages] == [
        "step 2 of at most 8: flat 3.000, falls 3.000",
        "step 4 of at most 8: flat 2.000, falls 2.000",
        "step 6 of at most 8: flat 2.500, falls 1.000",
        "step 8 of at most 8: flat 2.400, falls 0.500",
        "falls: stopped at its budget of 8 steps while its tuning loss still fell",
    ]
    np.testing.assert_array_equal(best["flat"]["bias"], seen["flat"][1])
    np.testing.assert_array_equal(best["falls"]["bias"], seen["falls"][3])


def test_prefetch_keeps_the_order_and_passes_errors_on():
    def items():
        yield from range(3)
        raise ValueError("a batch that cannot be made")

    found = mlp.prefetch(items())
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="cannot be made"):
        next(found)
    assert list(mlp.prefetch(range(5))) == list(range(5))
