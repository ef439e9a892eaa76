import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax.data.vocabulary import MASK, NUM_SPECIAL
from behrt_jax.models.pretraining import CodeQueries
from behrt_jax.objectives import mlm
from tests import tiny

RATE = 0.15
DRAWS = 2000
BATCH = tiny.packed_batch([[20, 11, 3], [30], [8, 8, 8, 8], []], 40)


pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


@functools.cache
def many_draws(replacement):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(DRAWS))
    hide = functools.partial(mlm.mask_codes, rate=RATE, vocab_size=tiny.VOCAB_SIZE, replacement=replacement)
    draw = jax.jit(jax.vmap(hide, (0, None, None)))
    return jax.device_get(draw(keys, BATCH["codes"], BATCH["maskable"]))


@jax.jit
def hide_codes(key):
    return mlm.mask_codes(key, BATCH["codes"], BATCH["maskable"], RATE, tiny.VOCAB_SIZE)


def chosen_places(masked):
    """(draws, B, L) bool: where a code was chosen."""
    chosen = np.zeros((len(masked.inputs), *BATCH["codes"].shape), bool)
    draw, row, slot = np.nonzero(masked.weights)
    chosen[draw, row, masked.positions[draw, row, slot]] = True
    assert chosen.sum() == masked.weights.sum()  # no place is chosen twice
    return chosen


def test_ids_are_those_of_the_vocabulary():
    assert (mlm.MASK_ID, mlm.FIRST_CODE_ID) == (MASK, NUM_SPECIAL)


@pytest.mark.parametrize("replacement", [mlm.TRAINING, mlm.EVALUATION])
def test_only_maskable_places_are_chosen_and_all_others_stay(replacement):
    masked = many_draws(replacement)
    chosen = chosen_places(masked)
    assert not chosen[:, ~BATCH["maskable"]].any()
    assert chosen.any(axis=0)[BATCH["maskable"]].all()
    kept = np.broadcast_to(BATCH["codes"], chosen.shape)
    np.testing.assert_array_equal(masked.inputs[~chosen], kept[~chosen])


def test_labels_are_the_codes_that_were_there():
    masked = many_draws(mlm.TRAINING)
    expected = np.take_along_axis(np.broadcast_to(BATCH["codes"], masked.inputs.shape), masked.positions, axis=2)
    np.testing.assert_array_equal(masked.labels, expected)


def test_the_share_is_exact_in_the_mean_and_no_row_exceeds_its_room():
    masked = many_draws(mlm.TRAINING)
    room = math.ceil(RATE * 40)
    assert masked.positions.shape == (DRAWS, 4, room)
    counts, maskable = masked.weights.sum(axis=2), BATCH["maskable"].sum(axis=1)
    assert set(np.unique(masked.weights)) == {0.0, 1.0}
    for row in range(4):
        wanted = RATE * maskable[row]
        assert {math.floor(wanted), math.ceil(wanted)} >= set(counts[:, row].tolist())
        assert abs(counts[:, row].mean() - wanted) < 4 * 0.5 / math.sqrt(DRAWS)
    assert counts[:, 3].max() == 0


def test_every_maskable_place_is_as_likely_as_any_other():
    share = chosen_places(many_draws(mlm.TRAINING)).mean(axis=0)[BATCH["maskable"]]
    assert abs(share - RATE).max() < 4.5 * math.sqrt(RATE * (1 - RATE) / DRAWS)


def test_a_row_full_of_codes_and_a_rate_of_one_hide_all():
    codes = jnp.asarray(np.random.default_rng(0).integers(5, 30, (2, 10)), jnp.int32)
    maskable = jnp.asarray([[True] * 10, [True] * 3 + [False] * 7])
    hide = jax.jit(lambda key: mlm.mask_codes(key, codes, maskable, 1.0, 30, mlm.EVALUATION))
    masked = hide(jax.random.key(0))
    np.testing.assert_array_equal(masked.inputs, np.where(maskable, 3, codes))
    assert masked.weights.sum() == 13


def test_training_replaces_80_10_10():
    masked = many_draws(mlm.TRAINING)
    chosen = masked.weights > 0
    inputs = np.take_along_axis(masked.inputs, masked.positions, axis=2)[chosen]
    labels, total = masked.labels[chosen], chosen.sum()
    share_masked, share_same = (inputs == 3).mean(), (inputs == labels).mean()
    # A random code is the code itself once in 25 times.
    for found, expected in ((share_masked, 0.8), (share_same, 0.1 + 0.1 / 25)):
        assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / total)
    replaced = inputs[(inputs != 3) & (inputs != labels)]
    assert replaced.min() == 5 and replaced.max() == tiny.VOCAB_SIZE - 1
    counts = np.bincount(replaced, minlength=tiny.VOCAB_SIZE)[5:]
    assert counts.min() > 0.5 * counts.mean()


def test_evaluation_replaces_all_by_mask():
    masked = many_draws(mlm.EVALUATION)
    assert (masked.inputs[chosen_places(masked)] == 3).all()


def test_masks_are_new_every_draw_and_the_same_for_the_same_key():
    places = chosen_places(many_draws(mlm.TRAINING)).reshape(DRAWS, -1)
    assert len(np.unique(places[:100], axis=0)) == 100
    again, twice = (hide_codes(jax.random.key(7)) for _ in range(2))
    assert all(np.array_equal(first, second) for first, second in zip(again, twice, strict=True))


def test_outcomes_by_hand():
    """Four codes scored; the label's rank counts every score at least as high, itself included."""
    logits = np.zeros((1, 4, 8), np.float32)
    logits[0, 0] = [9, 1, 1, 1, 1, 1, 1, 1]  # label 0: first
    logits[0, 1] = [1, 1, 1, 1, 1, 0, 0, 0]  # label 0: tied with four others, so fifth
    logits[0, 2] = [1, 1, 1, 1, 1, 1, 0, 0]  # label 0: tied with five others, so sixth
    logits[0, 3] = [9, 8, 7, 6, 5, 4, 3, 2]  # label 7: last
    labels = np.array([[0, 0, 0, 7]])
    masked = mlm.Masked(labels, labels, labels, np.ones((1, 4)))
    found = mlm.masked_outcomes(jnp.asarray(logits), masked)
    np.testing.assert_array_equal(found["accuracy"], [[1, 0, 0, 0]])
    np.testing.assert_array_equal(found["top5_accuracy"], [[1, 1, 0, 0]])


def test_outcomes_equal_those_of_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 7, 30)).astype(np.float32)
    labels = rng.integers(0, 30, (3, 7))
    found = mlm.masked_outcomes(jnp.asarray(logits), mlm.Masked(labels, labels, labels, np.ones((3, 7))))
    order = np.argsort(-logits, axis=-1)
    place = (order == labels[..., None]).argmax(axis=-1)
    wide = logits.astype(np.float64)
    chosen = np.take_along_axis(wide, labels[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found["loss"], np.log(np.exp(wide).sum(axis=-1)) - chosen, rtol=1e-5)
    np.testing.assert_array_equal(found["accuracy"], place == 0)
    np.testing.assert_array_equal(found["top5_accuracy"], place < 5)


def as_queries(logits) -> CodeQueries:
    """What a model gives whose logits these are."""
    return CodeQueries(logits, jnp.zeros(logits.shape[-1]), jnp.eye(logits.shape[-1]))


def scores_as_model():
    """A model whose logits are its parameters, to look at the objective alone."""
    return types.SimpleNamespace(
        config=types.SimpleNamespace(vocab_size=tiny.VOCAB_SIZE),
        apply=lambda params, *args, **kwargs: as_queries(params),
    )


def test_the_loss_counts_chosen_places_alone():
    objective = mlm.make_objective(scores_as_model(), tiny.objective_config(mask_rate=RATE))
    _, masked = jax.device_get(jax.jit(objective.prepare)(BATCH, jax.random.key(3)))
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(*masked.labels.shape, tiny.VOCAB_SIZE)), jnp.float32)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(logits):
        prepared = objective.prepare(BATCH, jax.random.key(3))
        metrics = objective.measure(logits, prepared, None)
        return metrics["mlm/loss"][0], (objective.count(prepared)["mlm/loss"], metrics)

    (total, (count, metrics)), gradient = loss(logits)
    assert {name: float(found) for name, (_, found) in metrics.items()} == dict.fromkeys(metrics, float(count))
    assert metrics.keys() >= {"mlm/loss", "mlm/accuracy", "mlm/top5_accuracy"} and objective.weights == {"mlm/loss": 1}
    chosen = np.asarray(masked.weights) > 0
    assert count == chosen.sum() and 0 < count < chosen.size
    assert not gradient[~chosen].any() and gradient[chosen].any(axis=-1).all()
    wide = np.asarray(logits, np.float64)
    losses = np.log(np.exp(wide).sum(axis=-1)) - np.take_along_axis(wide, masked.labels[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(total, losses[chosen].sum(), rtol=1e-5)
    (moved, (_, moved_metrics)), _ = loss(jnp.where(chosen[..., None], logits, 1e3))
    assert moved == total and moved_metrics == metrics


def test_training_draws_dropout_and_evaluation_does_not():
    seen = []

    def apply(params, *args, deterministic, rngs, **kwargs):
        seen.append((deterministic, rngs))
        return as_queries(params)

    model = types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=tiny.VOCAB_SIZE), apply=apply)
    logits = jnp.zeros((4, math.ceil(RATE * 40), tiny.VOCAB_SIZE))
    objective = mlm.make_objective(model, tiny.objective_config(mask_rate=RATE))
    prepared = objective.prepare(BATCH, jax.random.key(3))
    for key in (jax.random.key(4), None):
        objective.measure(logits, prepared, key)
    assert [deterministic for deterministic, _ in seen] == [False, True]
    assert seen[0][1]["dropout"] == jax.random.key(4) and seen[1][1] is None


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match=f"objective.mask_rate: found {rate}; expected more than 0 and at most 1"):
        tiny.objective_config(mask_rate=rate)


def test_codes_with_a_value_are_never_hidden_where_they_are_to_be_seen():
    batch = {
        name: values for name, values in tiny.packed_batch([[40, 33, 7], [80]], 80).items() if name != "patient_index"
    }
    has_value = np.arange(tiny.VOCAB_SIZE) % 3 == 0
    with_value = has_value[batch["codes"]]

    def how_often(mask_values):
        config = tiny.objective_config(mask_rate=0.3, mask_values=mask_values)
        objective = mlm.make_objective(scores_as_model(), config, has_value, mlm.EVALUATION)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(300))
        masked = jax.device_get(jax.jit(jax.vmap(lambda key: objective.prepare(batch, key)[1]))(keys))
        return (masked.inputs == mlm.MASK_ID).mean(axis=0)

    found = how_often(mask_values=False)
    assert not found[with_value].any()
    assert abs(found[batch["maskable"] & ~with_value].mean() - 0.3) < 0.02
    assert (how_often(mask_values=True)[batch["maskable"]] > 0).all()


def test_the_objective_masks_as_mask_codes():
    objective = mlm.make_objective(scores_as_model(), tiny.objective_config(mask_rate=RATE))
    batch, found = objective.prepare(BATCH, jax.random.key(3))
    expected = hide_codes(jax.random.split(jax.random.key(3))[1])
    assert batch is BATCH and found.positions.shape[1] == math.ceil(RATE * 40)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
