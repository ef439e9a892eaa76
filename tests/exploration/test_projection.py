"""Projections: the loss of Khosla et al. worked out in loops, and what training does to new patients."""

import jax.numpy as jnp
import numpy as np
from sklearn.metrics import silhouette_score

from behrt_jax.exploration import projection


def test_the_loss_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(9, 4))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 2, 3])  # the last is alone and does not count
    losses = []
    for i in range(8):
        others = [a for a in range(9) if a != i]
        below = np.log(sum(np.exp(z[i] @ z[a] / 0.1) for a in others))
        positives = [p for p in others if labels[p] == labels[i]]
        losses.append(-np.mean([z[i] @ z[p] / 0.1 - below for p in positives]))
    alike = labels[:, None] == labels[None, :]
    found = projection.contrastive_loss(jnp.asarray(z, jnp.float32), jnp.asarray(alike), 0.1)
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-4)


def test_likeness_is_the_share_of_diseases_in_common():
    has = jnp.asarray([[1, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0], [1, 1, 0]], bool)
    found = np.asarray(projection.likeness(has))
    np.testing.assert_allclose(found[0], [1, 1 / 3, 0, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(found[2], [0, 0, 1, 1, 0], rtol=1e-6)


def test_a_projection_parts_groups_of_new_patients_and_is_a_function_of_the_seed():
    rng = np.random.default_rng(0)

    def draw(number):
        labels = rng.integers(3, size=number)
        inputs = rng.normal(size=(number, 20)) * 3
        inputs[:, :3] = rng.normal(size=(number, 3)) + 3 * np.eye(3)[labels]
        return inputs.astype(np.float32), labels

    (train, labels), (others, theirs) = draw(400), draw(200)
    has = labels[:, None] == np.arange(3)
    fitted = projection.fit_projection(train, has, steps=200)
    projected = fitted(others)
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-5)
    assert silhouette_score(others, theirs) < 0.1 < 0.4 < silhouette_score(projected, theirs)
    np.testing.assert_array_equal(projection.fit_projection(train, has, steps=200)(others), projected)
    assert not np.array_equal(projection.fit_projection(train, has, steps=200, seed=1)(others), projected)
