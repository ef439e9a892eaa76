"""Patients' outcomes: losses against optax, scikit-learn and closed forms, and labels that are missing."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.utils.class_weight import compute_class_weight

from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.objectives import classification
from behrt_jax.objectives.classification import ClassificationConfig
from tests import tiny
from tests.models.drawn import apply, parameters

try:
    from jax import enable_x64
except ImportError:  # in JAX 0.5
    from jax.experimental import enable_x64


KINDS = {"binary": 1, "multi_class": 4, "multi_label": 3}


pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


@functools.cache
def losses(kind, gamma=0.0, weighted=False):
    table = weights_of(kind) if weighted else None
    return jax.jit(lambda logits, targets: classification.classification_losses(logits, targets, kind, table, gamma))


def drawn(kind, shape=(5, 7), dtype=np.float32):
    """Logits and targets of a kind."""
    rng = np.random.default_rng(0)
    size = KINDS[kind]
    targets = rng.integers(
        0, size if kind == "multi_class" else 2, (*shape, *([size] if kind == "multi_label" else []))
    )
    return rng.normal(0, 3, (*shape, size)).astype(dtype), targets


def weights_of(kind):
    return {"binary": np.array([0.6, 3.0]), "multi_class": np.array([1.0, 0.5, 2.0, 4.0])}.get(
        kind, np.array([[0.5, 2.0], [1.0, 1.0], [0.7, 3.0]])
    )


def cross_entropy(logits, targets, kind):
    if kind == "multi_class":
        return optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), jnp.asarray(targets))
    targets = np.asarray(targets)
    return optax.sigmoid_binary_cross_entropy(logits[..., 0] if kind == "binary" else logits, jnp.asarray(targets))


@pytest.mark.parametrize("kind", KINDS)
def test_without_gamma_losses_are_cross_entropies(kind):
    logits, targets = drawn(kind)
    found = losses(kind)(logits, targets)
    np.testing.assert_allclose(found, cross_entropy(logits, targets, kind), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0.5])
def test_focal_loss_is_that_of_the_paper(kind, gamma):
    """-alpha (1 - p)^gamma log p, where p is the probability of what came."""
    logits, targets = drawn(kind)
    table = weights_of(kind)
    probability = classification.probabilities(logits.astype(np.float64), kind)
    if kind == "multi_class":
        own, alpha = np.take_along_axis(probability, targets[..., None], axis=-1)[..., 0], table[targets]
    else:
        own = np.where(targets == 1, probability, 1 - probability)
        alpha = np.where(targets == 1, table[..., 1], table[..., 0])
    found = losses(kind, gamma, weighted=True)(logits, targets)
    np.testing.assert_allclose(found, alpha * (1 - own) ** gamma * -np.log(own), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_gradients_are_those_of_central_differences(kind, gamma):
    logits, targets = drawn(kind, (6,), np.float64)
    with enable_x64():

        @jax.jit
        @jax.value_and_grad
        def loss(logits):
            table = weights_of(kind)
            return classification.classification_losses(logits, jnp.asarray(targets), kind, table, gamma).sum()

        _, slope = loss(logits)
        for place in np.ndindex(logits.shape):
            step = np.zeros_like(logits)
            step[place] = 1e-6
            expected = (loss(logits + step)[0] - loss(logits - step)[0]) / 2e-6
            np.testing.assert_allclose(slope[place], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_extreme_logits_give_finite_losses_and_gradients(kind, gamma):
    logits, targets = drawn(kind)

    @jax.jit
    @jax.value_and_grad
    def loss(logits):
        return classification.classification_losses(logits, jnp.asarray(targets), kind, gamma=gamma).sum()

    value, slope = loss(jnp.sign(logits) * 1e4)
    assert np.isfinite(value) and np.isfinite(slope).all()


@pytest.mark.parametrize("num_classes", [2, 5])
def test_balanced_weights_are_those_of_scikit_learn(num_classes):
    targets = np.random.default_rng(0).binomial(num_classes - 1, 0.3, 400)
    expected = compute_class_weight("balanced", classes=np.arange(num_classes), y=targets)
    np.testing.assert_allclose(classification.balanced_weights(targets, num_classes), expected, rtol=1e-6)


def test_balanced_weights_of_labels_leave_out_what_is_not_known():
    targets = np.array([[1, 0], [0, np.nan], [0, 1], [0, 1]])
    expected = [compute_class_weight("balanced", classes=np.arange(2), y=y) for y in ([1, 0, 0, 0], [0, 1, 1])]
    np.testing.assert_allclose(classification.balanced_weights(targets), expected, rtol=1e-6)


def test_a_class_without_patients_cannot_be_balanced():
    with pytest.raises(ValueError, match=r"found counts \[3, 0\] of the classes in 3 labels"):
        classification.balanced_weights(np.zeros(3, int))


@pytest.mark.parametrize("kind", KINDS)
def test_the_initial_bias_gives_base_rates_and_is_where_the_loss_is_lowest(kind):
    _, targets = drawn(kind, (300,))
    bias = classification.initial_bias(targets, kind, KINDS[kind])
    assert bias.shape == (KINDS[kind],) and bias.dtype == np.float32
    shares = np.eye(4)[targets].mean(axis=0) if kind == "multi_class" else targets.mean(axis=0)
    np.testing.assert_allclose(classification.probabilities(bias, kind), shares, rtol=1e-5)

    @jax.jit
    @jax.grad
    def slope(bias):
        logits = jnp.broadcast_to(bias[None], (300, len(bias)))
        return classification.classification_losses(logits, jnp.asarray(targets), kind).mean()

    np.testing.assert_allclose(slope(jnp.asarray(bias)), 0, atol=1e-6)


def test_the_initial_bias_leaves_out_unknown_labels_and_is_finite_without_positives():
    bias = classification.initial_bias(np.array([[1, 0], [0, np.nan], [np.nan, 0]]), "multi_label")
    np.testing.assert_allclose(bias, [0.0, np.log(0.5 / 2)])


def outcome_batch(kind, seed=1):
    """Two rows of three slots, two of which are empty."""
    rng = np.random.default_rng(seed)
    batch = tiny.packed_batch([[4, 3, 4], [8]], 12)
    del batch["patient_index"], batch["maskable"]
    _, targets = drawn(kind, (2, 3))
    batch["weights"] = np.array([[1, 1, 1], [1, 0, 0]], np.float32)
    return {**batch, "targets": targets.astype(np.float32)}, rng.normal(0, 2, (2, 3, KINDS[kind])).astype(np.float32)


@functools.cache
def objective_loss(kind):
    model = types.SimpleNamespace(apply=lambda params, *args, **kwargs: params)
    objective = classification.make_objective(model, ClassificationConfig(kind, "none", 0.0))
    assert objective.weights == {"classification/loss": 1.0}

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(logits, batch):
        prepared = objective.prepare(batch, jax.random.key(0))
        total, count = objective.measure(logits, prepared, None)["classification/loss"]
        return total, (count, objective.count(prepared)["classification/loss"])

    return loss


def measured(kind, batch, logits):
    """Value, count and gradient of the objective, as a function of logits."""
    (total, (count, again)), slope = objective_loss(kind)(logits, batch)
    assert count == again
    return float(total), float(count), np.asarray(slope)


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_sums_over_labelled_patients(kind):
    batch, logits = outcome_batch(kind)
    total, count, _ = measured(kind, batch, logits)
    each = np.asarray(cross_entropy(logits, batch["targets"].astype(int), kind))[batch["weights"] > 0]
    assert count == each.size == (12 if kind == "multi_label" else 4)
    assert total == pytest.approx(each.sum(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e9, -3])
def test_empty_slots_change_nothing(kind, odd):
    batch, logits = outcome_batch(kind)
    expected = measured(kind, batch, logits)
    other = batch["targets"].copy()
    other[batch["weights"] == 0] = odd
    total, count, slope = measured(kind, {**batch, "targets": other}, logits)
    assert (total, count) == expected[:2]
    np.testing.assert_array_equal(slope, expected[2])
    assert not slope[batch["weights"] == 0].any() and slope[batch["weights"] > 0].any(axis=-1).all()


def test_unknown_labels_are_left_out():
    batch, logits = outcome_batch("multi_label")
    batch["targets"][0, 1, 2] = np.nan
    total, count, slope = measured("multi_label", batch, logits)
    each = np.asarray(cross_entropy(logits, np.nan_to_num(batch["targets"]), "multi_label"))
    kept = (batch["weights"] > 0)[..., None] & ~np.isnan(batch["targets"])
    assert count == 11 and total == pytest.approx(each[kept].sum(), rel=1e-5)
    assert slope[0, 1, 2] == 0 and np.isfinite(slope).all()


def test_a_model_is_scored_patient_by_patient():
    batch, _ = outcome_batch("multi_class")
    model = BEHRTForSequenceClassification(tiny.config(), num_labels=4)
    params = parameters(model)
    objective = classification.make_objective(model, ClassificationConfig("multi_class", "none", 0.0))
    total, count = jax.jit(lambda batch: objective.measure(params, batch, None))(batch)["classification/loss"]
    columns = {name: batch[name] for name in ("codes", "ages", "visit_ids", "patient_ids", *tiny.named(batch))}
    logits = apply(model, columns, num_patients=3)
    each = np.asarray(cross_entropy(logits, batch["targets"].astype(int), "multi_class"))[batch["weights"] > 0]
    assert count == 4 and float(total) == pytest.approx(each.sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"kind": "ordinal"}, "classification.kind: found 'ordinal'; expected one of binary, multi_class, multi_label"),
        ({"class_weights": "auto"}, "classification.class_weights: found 'auto'"),
        ({"focal_gamma": -1.0}, "classification.focal_gamma: found -1.0; expected 0 or more"),
    ],
)
def test_wrong_settings_name_key_and_value(overrides, message):
    with pytest.raises(ValueError, match=message):
        ClassificationConfig(**{"kind": "binary", "class_weights": "none", "focal_gamma": 0.0, **overrides})
