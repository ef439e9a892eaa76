import jax
import numpy as np
import pytest

from behrt_jax.baselines.masked_codes import predict
from behrt_jax.models.pretraining import BEHRTForMLM
from behrt_jax.objectives import scoring
from behrt_jax.objectives.mlm import Masked
from tests import tiny

pytestmark = pytest.mark.usefixtures("strict_jax")


def masked_by_hand():
    """Two rows of three patients (subjects 7, 8 and 9); of each, one code is hidden, of the last two."""
    batch = {
        "codes": np.array([[1, 5, 6, 2, 1, 7, 2, 0], [1, 8, 9, 10, 2, 0, 0, 0]]),
        "patient_ids": np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 0, 0, 0]]),
        "patient_index": np.array([[7, 8], [9, -1]]),
    }
    positions = np.array([[5, 2, 0], [3, 1, 2]])
    weights = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    labels = np.take_along_axis(batch["codes"], positions, axis=1)
    inputs = batch["codes"].copy()
    inputs[0, [5, 2]] = inputs[1, [3, 1]] = 3
    return scoring.MaskedBatch(batch, Masked(inputs, positions, labels, weights))


def test_hidden_codes_belong_to_their_patients():
    masked = masked_by_hand()
    np.testing.assert_array_equal(masked.patients, [8, 7, 9, 9])
    np.testing.assert_array_equal(masked.labels, [7, 6, 10, 8])
    np.testing.assert_array_equal(masked.batch["codes"][masked.targets], masked.labels)


def test_a_baseline_that_is_given_the_labels_is_always_right():
    masked = masked_by_hand()
    found = predict(lambda batch: np.log(np.eye(11) * 0.9 + 0.009)[batch.labels], [masked, masked])
    assert (
        len(found.patients) == 8
        and (found.values["accuracy"] == 1).all()
        and (found.values["top5_accuracy"] == 1).all()
    )
    np.testing.assert_allclose(found.values["loss"], -np.log(0.909 / (0.9 + 11 * 0.009)), rtol=1e-5)


def test_a_baseline_that_knows_one_patient_is_right_on_its_codes_alone():
    masked = masked_by_hand()

    def predictor(batch):
        return np.where((batch.patients == 9)[:, None], np.eye(11)[batch.labels], np.eye(11)[0])

    found = predict(predictor, [masked])
    np.testing.assert_array_equal(found.values["accuracy"], found.patients == 9)


def plain_batches():
    return [tiny.packed_batch([[9, 7], [16], [5, 5, 6], []], 16, seed=seed) for seed in range(2)]


def test_masks_of_an_evaluation_are_fixed_and_differ_by_batch_and_draw():
    first, again = (list(scoring.mask_batches(plain_batches(), 0.3, tiny.VOCAB_SIZE, draws=3)) for _ in range(2))
    assert len(first) == 6
    for one, other in zip(first, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.masked, other.masked, strict=True))
        assert (one.masked.inputs[one.targets] == 3).all() and len(one.labels) > 0
    assert len({masked.masked.inputs.tobytes() for masked in first}) == 6
    (other_seed, *_) = scoring.mask_batches(plain_batches(), 0.3, tiny.VOCAB_SIZE, draws=1, seed=1)
    assert not np.array_equal(other_seed.masked.inputs, first[0].masked.inputs)


@pytest.mark.parametrize("some", [False, True])
def test_scores_of_a_model_are_those_of_its_logits_at_the_hidden_codes(some):
    """With candidates, softmax and rank are among these."""
    model = BEHRTForMLM(tiny.config())
    batch = plain_batches()[0]
    params = tiny.scattered(jax.jit(model.init)(jax.random.key(0), *tiny.columns(batch), **tiny.named(batch)))
    (masked,) = scoring.mask_batches([batch], 0.3, tiny.VOCAB_SIZE, draws=1)
    candidates = np.isin(np.arange(tiny.VOCAB_SIZE), masked.labels) if some else None
    found = scoring.score(scoring.make_score_step(model, candidates), params, [masked])
    logits = jax.jit(model.apply)(params, *tiny.columns({**batch, "codes": masked.masked.inputs}), **tiny.named(batch))
    wide = np.asarray(logits, np.float64)[masked.targets]
    if candidates is not None:
        wide[:, ~candidates] = -np.inf
    losses = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(wide)), masked.labels]
    np.testing.assert_allclose(found.values["loss"], losses, atol=1e-4)
    np.testing.assert_array_equal(found.values["accuracy"], wide.argmax(axis=1) == masked.labels)
    np.testing.assert_array_equal(found.patients, masked.patients)
