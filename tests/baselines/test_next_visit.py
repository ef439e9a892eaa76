import dataclasses
import math

import numpy as np
import pytest
import scipy.sparse
import sklearn.linear_model

from behrt_jax.baselines import next_visit as baselines
from behrt_jax.baselines import next_visit_features
from behrt_jax.baselines.mlp import MLPConfig
from behrt_jax.baselines.next_visit import Split, Table
from behrt_jax.data import code_counts, dataset, next_visit_targets, windows
from behrt_jax.data.dataset import Patients
from tests import tiny

V = 10  # codes 5 to 9, of which 5, 6 and 7 are targets
DAY, YEAR = 1440, 1440 * 365.25


def make_split(patients: list[tuple[list[int], list[tuple[float, list[int]]]]], has_birth=None) -> Split:
    """Makes a split of patients of (static tokens, visits of (age in years, codes))."""
    tokens, sizes = [], []
    for statics, visits in patients:
        own = [(code, -1, 0) for code in statics]
        own += [(code, number, age * YEAR) for number, (age, codes) in enumerate(visits) for code in codes]
        tokens += own
        sizes.append(len(own))
    codes, visits, minutes = (np.array(column, np.int32) for column in zip(*tokens, strict=True))
    count = len(patients)
    has_birth = np.ones(count, bool) if has_birth is None else np.array(has_birth)
    origins, offsets = np.zeros(count, np.int32), np.append(0, np.cumsum(sizes))
    made = Patients(np.arange(count), has_birth, origins, offsets, codes, visits, minutes, 0 * minutes)
    return split_of(made, np.isin(np.arange(V), [5, 6, 7]))


def split_of(patients: Patients, is_target: np.ndarray) -> Split:
    index = windows.index_visits(patients, 64)
    return Split(patients, index, next_visit_targets.find_next_visits(patients, index, is_target))


FIRST = ([8], [(20, [5, 9]), (20.5, [5, 6]), (22, [9]), (23, [7, 5])])
SECOND = ([], [(50, [6]), (51, [6, 7])])
BOTH = [FIRST, SECOND]


def test_the_visits_to_predict_and_their_frequency_by_hand():
    split = make_split(BOTH)
    expected = [[1, 1, 0], [1, 0, 1], [0, 1, 1]]
    np.testing.assert_array_equal(split.examples.targets.toarray(), expected)
    np.testing.assert_allclose(baselines.frequency(split.examples), [2 / 3, 2 / 3, 2 / 3])


def test_histories_by_hand():
    split = make_split(BOTH, has_birth=[True, False])
    found = next_visit_features.describe_histories(*split, V)
    np.testing.assert_array_equal(found.counts.toarray()[:, 5:], [[1, 0, 0, 0, 1], [2, 1, 0, 0, 2], [0, 1, 0, 0, 0]])
    np.testing.assert_array_equal(found.last.toarray()[:, 5:], [[1, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]])
    np.testing.assert_array_equal(found.statics.toarray()[:, 5:], [[0, 0, 0, 1, 0], [0, 0, 0, 1, 0], [0] * 5])
    np.testing.assert_array_equal(found.visits, [1, 3, 1])
    np.testing.assert_allclose(found.ages, [20, 22, np.nan], rtol=1e-6)
    np.testing.assert_allclose(found.days, [0, 1.5 * 365.25, 0], rtol=1e-6)


def test_features_by_hand():
    split = make_split(BOTH, has_birth=[True, False])
    dense = baselines.features_of(split, V).toarray()
    assert dense.shape == (3, 4 * V + 24)
    counts, recent, last, statics = dense[:, : 4 * V].reshape(3, 4, V)[:, :, 5:].swapaxes(0, 1)
    old = 2 ** (-1 / 8)
    np.testing.assert_allclose(counts[1], np.log1p([2, 1, 0, 0, 2]), rtol=1e-6)
    np.testing.assert_allclose(recent[1], np.log1p([old + old**2, old, 0, 0, 1 + old**2]), rtol=1e-6)
    np.testing.assert_array_equal(last[1], [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(statics[:, 3], [1, 1, 0])
    ages = dense[:, 4 * V : -3]
    np.testing.assert_array_equal(ages.argmax(axis=1), [1 + 20 // 5, 1 + 22 // 5, 0])
    assert (ages.sum(axis=1) == 1).all()
    np.testing.assert_allclose(dense[:, -3:], np.log1p([[1, 0, 0], [3, 1.5 * 365.25, 0], [1, 0, 0]]), rtol=1e-6)
    known = baselines.features_of(split, V, time_known=True).toarray()
    np.testing.assert_array_equal(known[:, : 4 * V], dense[:, : 4 * V])
    ages = known[:, 4 * V : 4 * V + 21]  # at the start of the visit to predict
    np.testing.assert_array_equal(ages.argmax(axis=1), [1 + 20 // 5, 1 + 23 // 5, 0])
    ahead = np.array([0.5, 1.0, 1.0]) * 365.25
    np.testing.assert_allclose(known[:, -2:], np.log1p(np.stack([ahead, ahead], axis=1)), rtol=1e-5)


@pytest.mark.parametrize("half_life", [math.inf, 3.0])
def test_sums_over_the_past_against_a_loop_over_bundled_patients(bundled, bundled_train, half_life, monkeypatch):
    monkeypatch.setattr(next_visit_features, "CHUNK", 50)
    size = len(bundled.vocabulary)
    is_target = next_visit_targets.target_codes(bundled.vocabulary, ("CONDITION//*",), 5)
    stop = bundled_train.offsets[12]
    columns = {name: getattr(bundled_train, name)[:stop] for name in ("codes", "visits", "minutes", "microseconds")}
    subjects = {name: getattr(bundled_train, name)[:12] for name in ("subject_ids", "has_birth", "origins")}
    split = split_of(Patients(**subjects, offsets=bundled_train.offsets[:13], **columns), is_target)
    codes = code_counts.visit_codes(split.patients, split.index, size).astype(np.float32)
    found = next_visit_features.add_past(codes, split.index, split.examples, half_life).toarray()
    assert len(found) > 100
    owners = split.index.owners
    dense, times = codes.toarray(), split.patients.times
    starts = times[split.index.starts[0]]
    for row, visit in enumerate(split.examples.visits):
        past = np.flatnonzero((owners == owners[visit]) & (starts < starts[visit]))
        weights = 0.5 ** ((past[-1] - past) / half_life)
        np.testing.assert_allclose(found[row], weights @ dense[past], atol=1e-3)
    known = next_visit_features.describe_histories(*split, size)
    for row in range(0, len(found), 17):
        patient, start = split.examples.patients[row], split.examples.starts[row]
        own = np.arange(split.patients.offsets[patient], split.patients.offsets[patient + 1])
        codes, visits = split.patients.codes[own], split.patients.visits[own]
        is_past = (visits >= 0) & (times[own] < start)
        assert known.visits[row] == len(set(visits[is_past]))
        assert set(known.statics[[row]].indices) == {code for code in codes[visits < 0] if code >= 5}
        last = is_past & (visits == visits[is_past].max())
        assert set(known.last[[row]].indices) == {code for code in codes[last] if code >= 5}
        assert known.ages[row] == pytest.approx(times[own][is_past].max() / dataset.MICROSECONDS / YEAR)


def test_repeat_last_visit_by_hand():
    train = make_split([FIRST, SECOND, ([], [(30, [7]), (31, [6]), (32, [6, 5])])])
    # Last visits, of the targets: {5}, {}, {6}, {7}, {6}; what followed: {5, 6}, {5, 7}, {6, 7}, {6}, {5, 6}.
    found = baselines.repeat_last(train, V, 2.0)(make_split(BOTH))
    mean = 3 / 4
    share = np.array([3, 4, 2]) / 5
    repeated = (np.array([1, 2, 0]) + 2 * mean) / (np.array([1, 2, 1]) + 2)
    begun = (np.array([2, 2, 2]) + 2 * share) / (np.array([4, 3, 4]) + 2)
    expected = [[repeated[0], begun[1], begun[2]], begun, [begun[0], repeated[1], begun[2]]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_own_frequency_by_hand():
    share = np.array([0.2, 0.4, 0.1])
    found = baselines.own_frequency(share, V, 1.0, 3.0)(make_split(BOTH))
    seen = np.array([[1, 0, 0], [0.5 + 0.25, 0.5, 0], [0, 1, 0]])
    visits = np.array([[1], [1.75], [1]])
    np.testing.assert_allclose(found, (seen + 3 * share) / (visits + 3), rtol=1e-6)
    whole = baselines.own_frequency(share, V, math.inf, 3.0)(make_split(BOTH))
    np.testing.assert_allclose(whole[1], (np.array([2, 1, 0]) + 3 * share) / 6, rtol=1e-6)


def test_the_candidate_of_lowest_loss_is_chosen():
    split = make_split(BOTH)
    truth = split.examples.targets.toarray()

    def candidate(share):
        return lambda split: np.where(truth, share, 1 - share).astype(np.float32)

    candidates = [candidate(share) for share in (0.3, 0.8, 0.6)]
    assert baselines.choose(candidates, split) is candidates[1]
    found = baselines.mean_loss(candidates[1](split), split.examples.targets)
    assert found == pytest.approx(-3 * math.log(0.8), rel=1e-6)


def random_patients(seed, count=30, visits=8):
    """Patients of random codes in which 6 follows whatever visit holds 9, and only there; 5 comes anywhere."""
    rng, patients = np.random.default_rng(seed), []
    for _ in range(count):
        own, before = [], False
        for number in range(visits):
            codes = [5] if rng.uniform() < 0.5 else [7]
            codes += [6] if before else []
            before = rng.uniform() < 0.4
            own.append((30 + number + rng.uniform(), codes + ([9] if before else [])))
        patients.append(([8] if rng.uniform() < 0.5 else [], own))
    return patients


@pytest.fixture(scope="module")
def fitted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "MAX_STEPS", 200)
        patch.setattr(baselines, "BATCH_SIZE", 64)
        patch.setattr(baselines, "RECIPES", {"logistic regression": MLPConfig(0.05), "MLP": MLPConfig(0.02, 32, 0.5)})
        train, tuning = make_split(random_patients(0)), make_split(random_patients(1))
        with tiny.collect_messages() as messages:
            found = baselines.fit_baselines(train, tuning, V)
        assert messages[0] == "fitting baselines: counting" and len(messages) > 2
        return found


NAMES = ("frequency", "repeat last visit", "own frequency with decay", "logistic regression", "MLP")


def test_every_baseline_gives_probabilities(fitted):
    split = make_split(random_patients(2))
    assert tuple(fitted) == NAMES
    for predictor in fitted.values():
        found = predictor(split)
        assert found.shape == split.examples.targets.shape and found.dtype == np.float32
        assert (found >= 0).all() and (found <= 1).all()


@pytest.mark.parametrize("name", ["logistic regression", "MLP"])
def test_a_planted_rule_is_found(fitted, name):
    split = make_split(random_patients(2))
    found, truth = fitted[name](split)[:, 1], split.examples.targets.toarray()[:, 1]
    assert 0.2 < truth.mean() < 0.6
    assert found[truth].min() > 0.6 and found[~truth].max() < 0.3
    counted = fitted["own frequency with decay"](split)[:, 1]
    assert counted[truth].min() < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_nothing_at_or_after_the_visit_to_predict_is_seen(fitted, name):
    """Changes visit 4 of every patient and all after it, and takes the last ones away; earlier predictions stay."""
    patients, rng = random_patients(3), np.random.default_rng(0)
    changed = []
    for statics, visits in patients:
        future = [(age + 40, list(rng.choice(np.arange(5, 10), 3, replace=False)) + [5]) for age, _ in visits[4:6]]
        changed.append((statics, visits[:4] + future))
    first, second = make_split(patients), make_split(changed)
    found = []
    for split in (first, second):
        visit = split.examples.visits - split.index.first_visit[split.examples.patients]
        predictions = fitted[name](split)
        found.append([predictions[visit == number] for number in (1, 2, 3, 4, 5)])
    for number in range(4):
        np.testing.assert_array_equal(found[0][number], found[1][number])
    if name != "frequency":
        assert (found[0][4] != found[1][4]).any()


@pytest.mark.parametrize("rate", [0.05, 0.002])
def test_logistic_regression_reaches_the_optimum_of_scikit_learn(rate, messages):
    """At the lower rate this takes some thousand steps; a network is not stopped while its loss falls."""
    rng = np.random.default_rng(4)
    features = (rng.uniform(size=(400, 6)) < 0.4).astype(np.float32)
    chances = 1 / (1 + np.exp(-(features @ rng.normal(0, 1, (6, 3)) + rng.normal(0, 0.5, 3))))
    table = Table(scipy.sparse.csr_array(features), scipy.sparse.csr_array(rng.uniform(size=(400, 3)) < chances))
    found = baselines.train_on_tables(table, table, {"own": MLPConfig(rate)})["own"]
    assert not any("budget" in message for message in messages)
    predicted = baselines.probabilities(found, table.features)
    for code in range(3):
        wanted = table.targets.toarray()[:, code]
        expected = sklearn.linear_model.LogisticRegression(C=np.inf, tol=1e-8).fit(features, wanted)
        np.testing.assert_allclose(predicted[:, code], expected.predict_proba(features)[:, 1], atol=0.02)


def test_the_parameters_of_the_lowest_tuning_loss_are_kept(monkeypatch, messages):
    """Random targets cannot be learned: past the first check the loss of tuning grows, and training stops."""
    rng = np.random.default_rng(5)
    tables = [
        Table(scipy.sparse.csr_array(rng.normal(size=(60, 40)).astype(np.float32)), half(rng, (60, 2)))
        for _ in range(2)
    ]
    monkeypatch.setattr(baselines, "CHECK_EVERY", 20)
    found = baselines.train_on_tables(*tables, {"own": MLPConfig(0.05)})["own"]
    losses = [float(message.split()[-1]) for message in messages]
    assert len(losses) == 4 and losses[-1] > losses[0] + 0.1
    kept = baselines.mean_loss(baselines.probabilities(found, tables[1].features), tables[1].targets)
    assert kept == pytest.approx(losses[0], abs=1e-3)


def test_the_budget_holds_as_many_examples_as_the_model_saw(monkeypatch, messages):
    """The loss falls too slowly to be flat before either budget, and the network is reported."""
    rng = np.random.default_rng(6)
    features = scipy.sparse.csr_array(rng.normal(size=(90, 4)).astype(np.float32))
    table = Table(features, scipy.sparse.csr_array(features.toarray()[:, :2] > 0))
    monkeypatch.setattr(baselines, "MAX_STEPS", 20)
    monkeypatch.setattr(baselines, "CHECK_EVERY", 20)
    monkeypatch.setattr(baselines, "BATCH_SIZE", 30)
    baselines.train_on_tables(table, table, {"own": MLPConfig(0.001)}, model_examples=30 * 60)
    assert [message.split(": ")[1] for message in messages[:-1]] == [
        f"step {number} of at most 60" for number in (20, 40, 60)
    ]
    assert messages[-1] == "fitting baselines: own: stopped at its budget of 60 steps while its tuning loss still fell"


def half(rng, shape):
    return scipy.sparse.csr_array(rng.uniform(size=shape) < 0.5)


def test_a_batch_and_a_sample_keep_features_with_their_targets():
    count = 50
    table = Table(scipy.sparse.csr_array(np.eye(count, dtype=np.float32)), scipy.sparse.csr_array(np.eye(count) > 0))
    batches = baselines.mini_batches(table, 20)
    parts = [next(batches) for _ in range(4)]
    for features, targets in parts:
        np.testing.assert_array_equal(features.own.toarray(), targets)
    assert (parts[0][1] + parts[1][1]).sum(axis=0).max() == 1  # within a pass no example comes twice
    split = make_split(random_patients(6))
    some = baselines.sample_examples(split, 40)
    assert len(some.examples) == 40 and baselines.sample_examples(split, 10**6) is split
    rows = np.searchsorted(split.examples.visits, some.examples.visits)
    np.testing.assert_array_equal(some.examples.targets.toarray(), split.examples.targets.toarray()[rows])
    whole = baselines.features_of(split, V).toarray()
    np.testing.assert_array_equal(baselines.features_of(some, V).toarray(), whole[rows])
    assert dataclasses.replace(some.examples).visits is some.examples.visits


def test_a_split_without_visits_to_predict_is_refused():
    empty = make_split([([], [(30.0, [5])]), ([], [(40.0, [6])])])
    with pytest.raises(ValueError, match="^train: none of 2 patients has a second visit .* objective.min_patients"):
        baselines.fit_baselines(empty, empty, V)
