import numpy as np
import pytest
import scipy.special

from behrt_jax.baselines import masked_codes
from behrt_jax.baselines.mlp import MLPConfig
from behrt_jax.objectives.mlm import Masked
from behrt_jax.objectives.scoring import MaskedBatch, mask_batches
from tests import tiny

V = 10  # codes 5 to 9


def masked_batch(hidden: list[tuple[int, int]]) -> MaskedBatch:
    """Row 0: a patient of three visits {5, 6}, {7}, {5, 8} and one of {9, 6}; row 1: a patient of {5}, {9}, {7}."""
    batch = {
        "codes": np.array([[1, 5, 6, 2, 7, 2, 5, 8, 2, 1, 9, 6, 2, 0], [1, 5, 2, 9, 2, 7, 2, 0, 0, 0, 0, 0, 0, 0]]),
        "visit_ids": np.array([[0, 0, 0, 0, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 2, 2, 0, 0, 0, 0, 0, 0, 0]]),
        "patient_ids": np.array([[1] * 9 + [2] * 4 + [0], [1] * 7 + [0] * 7]),
        "patient_index": np.array([[0, 1], [2, -1]]),
    }
    batch["maskable"] = batch["codes"] >= 5
    batch["ages"] = np.where(np.arange(14) < 6, 33.0, 61.0) * np.ones((2, 1))
    positions, weights = np.zeros((2, 4), int), np.zeros((2, 4))
    inputs = batch["codes"].copy()
    for row in range(2):
        places = [place for at, place in hidden if at == row]
        positions[row, : len(places)], weights[row, : len(places)] = places, 1
        inputs[row, places] = 3
    labels = np.take_along_axis(batch["codes"], positions, axis=1)
    return MaskedBatch(batch, Masked(inputs, positions, labels, weights))


def probabilities(predictor, batch):
    found = predictor(batch)
    assert found.shape == (len(batch.labels), V)
    np.testing.assert_allclose(scipy.special.logsumexp(found, axis=1), 0, atol=1e-6)
    return np.exp(found)


COUNTS = np.array([0, 0, 0, 0, 0, 3, 2, 2, 1, 2.0])
FREQUENCY = COUNTS / 10


def test_counts_of_codes_and_of_pairs_within_patients():
    counts, following = masked_codes.count_codes([masked_batch([]).batch], V)
    np.testing.assert_array_equal(counts, COUNTS)
    table = following.toarray()
    # Of 21 tokens of three patients, all but each patient's last are followed by another of the same patient.
    assert table.sum() == 9 + 4 + 7 - 3
    assert (table[1, 5], table[5, 6], table[2, 7], table[5, 8], table[5, 2]) == (2, 1, 2, 1, 1)
    assert table[2, 1] == 0 and not table[0].any() and not table[:, 0].any()


def test_most_frequent_code_is_the_frequency_of_train():
    found = probabilities(masked_codes.most_frequent(FREQUENCY), masked_batch([(0, 1), (1, 3)]))
    np.testing.assert_allclose(found, np.stack([FREQUENCY] * 2), atol=1e-9)


def test_own_most_frequent_counts_visible_codes_of_the_patient():
    batch = masked_batch([(0, 1), (0, 10), (1, 3)])
    found = probabilities(masked_codes.own_most_frequent(FREQUENCY, 2.0), batch)
    own = np.zeros((3, V))
    own[0, [5, 6, 7, 8]] = 1  # of the first patient, without the hidden 5
    own[1, 6] = 1
    own[2, [5, 7]] = 1
    expected = (own + 2 * FREQUENCY) / (own.sum(axis=1, keepdims=True) + 2)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_bigram_multiplies_what_both_neighbours_say():
    _, following = masked_codes.count_codes([masked_batch([]).batch], V)
    batch = masked_batch([(0, 2), (0, 4), (0, 10)])
    found = probabilities(masked_codes.bigram(FREQUENCY, following, 1.0), batch)
    table, codes = following.toarray(), FREQUENCY > 0

    def given(row):
        row = row * codes
        return (row + FREQUENCY) / (row.sum() + 1)

    neighbours = [(5, 2), (2, 2), (1, 6)]  # of the hidden 6, 7 and 9
    for row, (left, right) in enumerate(neighbours):
        with np.errstate(invalid="ignore"):
            expected = np.nan_to_num(given(table[left]) * given(table[:, right]) / FREQUENCY)
        np.testing.assert_allclose(found[row], expected / expected.sum(), atol=1e-6)


def test_bigram_learns_nothing_from_a_hidden_neighbour():
    _, following = masked_codes.count_codes([masked_batch([]).batch], V)
    predictor = masked_codes.bigram(FREQUENCY, following, 1.0)
    batch = masked_batch([(0, 1), (0, 2)])
    found = probabilities(predictor, batch)
    row = following.toarray()[:, 2] * (FREQUENCY > 0)  # the hidden 6 stands between a masked code and [SEP]
    expected = (row + FREQUENCY) / (row.sum() + 1)
    np.testing.assert_allclose(found[1], expected, atol=1e-6)


def dense_features(batch):
    """Returns the features of each masked code, (n, 41)."""
    found, rows = masked_codes.features(batch, V, 5)
    return (found @ np.eye(4 * 5 + 21, dtype=np.float32))[rows]


def features_of(batch, row):
    """Returns the blocks of one masked code: own visit, visit before, after, history (each by code), age."""
    dense = dense_features(batch)[row]
    assert len(dense) == 4 * 5 + 21
    own, before, after, history = dense[:20].reshape(4, 5)
    return own, before, after, history, dense[20:41]


def test_hidden_codes_of_a_visit_share_a_row_unless_their_ages_differ():
    batch = masked_batch([(0, 1), (0, 2), (0, 6), (0, 7)])
    batch.batch["ages"][0, 7] = 66.0
    found, rows = masked_codes.features(batch, V, 5)
    assert len(found) == 3 and rows[0] == rows[1] and len(set(rows)) == 3
    ages = dense_features(batch)[:, 20:]
    np.testing.assert_array_equal(ages.argmax(axis=1), [1 + 33 // 5] * 2 + [1 + 61 // 5, 1 + 66 // 5])


def codes(*wanted):
    return np.isin(np.arange(5, 10), wanted).astype(float)


def test_linear_features_of_a_visit_between_two_others():
    own, before, after, history, age = features_of(masked_batch([(0, 4)]), 0)
    np.testing.assert_array_equal(own, codes())  # its only code is the hidden one
    np.testing.assert_array_equal(before, codes(5, 6))
    np.testing.assert_array_equal(after, codes(5, 8))
    np.testing.assert_allclose(history, np.log1p([2, 1, 0, 1, 0]))
    assert age.sum() == 1 and age[1 + 33 // 5] == 1


def test_linear_features_never_cross_patients():
    batch = masked_batch([(0, 7), (0, 10), (1, 1), (1, 5)])
    own, before, after, *_ = features_of(batch, 0)  # the last visit of a patient with another patient behind
    np.testing.assert_array_equal(own, codes(5))
    np.testing.assert_array_equal(before, codes(7))
    np.testing.assert_array_equal(after, codes())
    own, before, after, history, age = features_of(batch, 1)  # the only visit of the patient behind
    np.testing.assert_array_equal(own, codes(6))
    assert not before.any() and not after.any()
    np.testing.assert_allclose(history, np.log(2) * codes(6))
    assert age[1 + 61 // 5] == 1
    own, before, after, *_ = features_of(batch, 2)  # the first patient of the second row
    assert not own.any() and not before.any()
    np.testing.assert_array_equal(after, codes(9))
    own, before, after, *_ = features_of(batch, 3)  # the last visit of all
    np.testing.assert_array_equal(before, codes(9))
    assert not own.any() and not after.any()


def test_an_unknown_age_has_a_bin_of_its_own():
    batch = masked_batch([(0, 4)])
    batch.batch["ages"][0, 4] = np.nan
    assert features_of(batch, 0)[4][0] == 1


@pytest.mark.parametrize("hidden", [[(0, 1), (0, 7), (1, 3)], [(0, 2), (0, 4), (0, 10), (1, 5)]])
def test_no_feature_and_no_prediction_depends_on_a_hidden_code(hidden):
    batch = masked_batch(hidden)
    _, following = masked_codes.count_codes([masked_batch([]).batch], V)
    rng = np.random.default_rng(0)
    other = {**batch.batch, "codes": batch.batch["codes"].copy()}
    other["codes"][batch.targets] = rng.permutation(other["codes"][batch.targets])
    changed = MaskedBatch(other, batch.masked._replace(labels=np.full_like(batch.masked.labels, 5)))
    first, second = dense_features(batch), dense_features(changed)
    np.testing.assert_array_equal(first, second)
    for predictor in (masked_codes.own_most_frequent(FREQUENCY, 1.0), masked_codes.bigram(FREQUENCY, following, 1.0)):
        np.testing.assert_array_equal(predictor(batch), predictor(changed))


def test_the_strength_of_lowest_tuning_loss_is_chosen():
    tuning = [masked_batch([(0, 1), (0, 4), (1, 3)])]
    candidates = [lambda batch, share=share: truth_or_even(batch, share) for share in (0.1, 0.7, 0.3)]
    assert masked_codes.choose(candidates, tuning) is candidates[1]


def truth_or_even(batch, share):
    return np.log(share * np.eye(V)[batch.labels] + (1 - share) / V)


def partner_batches(seed, count):
    """Visits of pairs (5, 10), (6, 11) ...: the visible code of a visit tells the hidden one."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        batch = tiny.packed_batch([[1 + 3 * 8], [1 + 3 * 8]], 25, seed=number)
        pairs = rng.integers(5, 10, (2, 8))
        visits = np.stack([pairs, pairs + 5, np.full_like(pairs, 2)], axis=2).reshape(2, -1)
        batch["codes"][:, 1:] = visits
        batch["visit_ids"][:, 1:] = np.repeat(np.arange(8), 3)
        batch["maskable"] = batch["codes"] >= 5
        yield batch


def test_the_linear_model_finds_a_planted_rule(monkeypatch):
    monkeypatch.setattr(masked_codes, "NETWORK_STEPS", 100)
    monkeypatch.setattr(masked_codes, "RECIPES", {"own": MLPConfig(0.1)})

    def hide(seed, count):
        return mask_batches(partner_batches(seed, count), 0.15, 15, draws=1, seed=seed)

    frequency = np.where(np.arange(15) >= 5, 0.1, 0.0)
    predictor = masked_codes.fit_networks(lambda: hide(0, 100), list(hide(1, 5)), frequency)["own"]
    found, even = [], []
    for batch in hide(2, 20):
        log_probabilities = predictor(batch)
        np.testing.assert_allclose(scipy.special.logsumexp(log_probabilities, axis=1), 0, atol=0.05)
        rows, places = batch.targets
        partner = np.where(batch.labels < 10, places + 1, places - 1)
        told = batch.masked.inputs[rows, partner] != 3
        found.append((log_probabilities.argmax(axis=1) == batch.labels)[told])
        even.append(told.mean())
    assert np.concatenate(found).mean() > 0.97 and np.mean(even) > 0.5


def exclusive_batches(seed, count):
    """Patients of one visit of three codes; the first two tell the third together, and neither alone."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        batch = tiny.packed_batch([[5]] * 64, 5, seed=number)
        first, second = rng.integers(0, 2, (2, 64))
        batch["codes"][:, 1:4] = np.stack([5 + first, 7 + second, 9 + (first ^ second)], axis=1)
        batch["visit_ids"][:] = 0
        batch["maskable"] = batch["codes"] >= 9
        yield batch


@pytest.mark.slow
def test_the_mlp_finds_an_interaction_that_the_linear_model_cannot_express(monkeypatch):
    monkeypatch.setattr(masked_codes, "NETWORK_STEPS", 400)
    monkeypatch.setattr(masked_codes, "RECIPES", {"linear": MLPConfig(0.03), "MLP": MLPConfig(0.01, hidden=32)})

    def hide(seed, count):
        return mask_batches(exclusive_batches(seed, count), 1.0, 15, draws=1, seed=seed)

    frequency = np.where(np.arange(15) >= 5, 0.1, 0.0)
    fitted = masked_codes.fit_networks(lambda: hide(0, 400), list(hide(1, 10)), frequency)
    shares = {}
    for name, predictor in fitted.items():
        shares[name] = np.mean([(predictor(batch).argmax(1) == batch.labels).mean() for batch in hide(2, 40)])
    assert shares["MLP"] > 0.95 and shares["linear"] < 0.7


def fit_partners(recipe, **budget):
    frequency = np.where(np.arange(15) >= 5, 0.1, 0.0)
    tuning = list(mask_batches(partner_batches(1, 20), 0.15, 15, draws=1, seed=1))
    masked = mask_batches(partner_batches(0, 10**6), 0.15, 15, draws=1, seed=0)
    fitted = masked_codes.fit_networks(lambda: masked, tuning, frequency, {"own": recipe}, **budget)
    return masked_codes.predict(fitted["own"], tuning).values["loss"].mean()


def test_the_budget_is_at_least_what_the_model_saw_and_a_network_stopped_by_it_is_reported(monkeypatch, messages):
    monkeypatch.setattr(masked_codes, "NETWORK_STEPS", 20)
    monkeypatch.setattr(masked_codes, "CHECK_EVERY", 20)
    fit_partners(MLPConfig(0.001), model_steps=60)
    assert len(messages) == 4 and messages[2].startswith("fitting baselines: step 60 of at most 60: own ")
    assert messages[3] == "fitting baselines: own: stopped at its budget of 60 steps while its tuning loss still fell"


def test_rare_codes_share_what_the_linear_model_leaves(monkeypatch):
    monkeypatch.setattr(masked_codes, "MAX_CODES", 3)
    monkeypatch.setattr(masked_codes, "NETWORK_STEPS", 50)
    batch = masked_batch([(0, 1), (0, 7), (1, 3)])
    for predictor in masked_codes.fit_networks(lambda: iter([batch] * 100), [batch], FREQUENCY).values():
        found = probabilities(predictor, batch)
        np.testing.assert_allclose(found[:, 8] / found[:, 9], FREQUENCY[8] / FREQUENCY[9], rtol=1e-4)


def test_every_baseline_is_fitted_and_scored(messages):
    batch = masked_batch([(0, 1), (0, 7), (1, 3)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masked_codes, "NETWORK_STEPS", 50)
        fitted = masked_codes.fit_baselines(lambda: [batch.batch], lambda: iter([batch] * 100), [batch], V)
    assert len(fitted) == 4 and messages
    for predictor in fitted.values():
        outcomes = masked_codes.predict(predictor, [batch])
        assert np.isfinite(outcomes.values["loss"]).all()
        np.testing.assert_array_equal(outcomes.patients, [0, 0, 2])
