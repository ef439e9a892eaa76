import dataclasses
import functools

import numpy as np
import pytest
import scipy.sparse
import sklearn.metrics

from behrt_jax.baselines import outcomes as baselines
from behrt_jax.baselines.outcomes import Candidate, Classified, Followed
from behrt_jax.data import histories as data_histories
from behrt_jax.data.dataset import TOKEN_FIELDS
from behrt_jax.regression import cox, outcome_features
from tests import survival_reference, tiny
from tests.data.handmade import patients_of

DAY, YEAR, SIZE = 1440, 1440 * 365.25, 300
TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "GENDER//F", "GENDER//M", *"ABCDEFGH")
F, M, A, B = 5, 6, 7, 8
CLASSIFIERS = ("logistic regression on age and sex", "logistic regression on codes", "gradient boosting")
FORECASTERS = ("Cox on age and sex", "Cox on codes", "gradient boosting")
HORIZONS = np.array([0.0, 100.0, 365.0, 1e6])


def moments(minutes) -> np.ndarray:
    return np.datetime64("2000-01-01", "us") + np.asarray(minutes, int).astype("timedelta64[m]")


def people(seed: int, count: int = SIZE, future=None):
    """Patients, whose predictions come after 40 to 80 years, and the log hazard that A (+) and B (-) make.

    Args:
      seed: of the draws.
      count: how many.
      future: codes of a visit right after the prediction.
    """
    rng = np.random.default_rng(seed)
    ages, has_a, has_b = rng.uniform(40, 80, count), rng.random(count) < 0.5, rng.random(count) < 0.5
    female, made = rng.random(count) < 0.5, []
    for row in range(count):
        now, codes = int(ages[row] * YEAR), [A] * int(has_a[row]) + [B] * int(has_b[row])
        visits = [[(int(rng.integers(9, 15)), now - int(days * DAY))] for days in sorted(rng.uniform(2, 4000, 5))[::-1]]
        visits[2] += [(code, visits[2][0][1]) for code in codes]
        if future is not None:
            visits.append([(code, now + place) for place, code in enumerate(future)])
        made.append({"id": row + 1, "static": [F if female[row] else M], "visits": visits})
    patients, times = patients_of(*made), moments(ages * YEAR)
    histories, kept, _ = data_histories.histories_at(patients, patients.subject_ids, times)
    assert len(kept) == count
    return histories, times, 1.5 * has_a - 1.5 * has_b, rng


def followed(seed: int, **kwargs) -> Followed:
    """Time to event of the hazard 1 / 1,000 days times what A and B make of it, half of it censored."""
    histories, times, risks, rng = people(seed, **kwargs)
    days = rng.exponential(1000 * np.exp(-risks)) + 0.01
    ends = rng.exponential(1000, len(days)) + 0.01
    return Followed(histories, times, np.minimum(days, ends), (days <= ends).astype(int))


def classified(seed: int, **kwargs) -> Classified:
    histories, times, risks, rng = people(seed, **kwargs)
    return Classified(histories, times, (rng.random(len(risks)) < 1 / (1 + np.exp(-2 * risks))).astype(int))


@pytest.fixture(scope="module", autouse=True)
def small_budget():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "TREES", 40)
        patch.setattr(baselines, "CHECK_EVERY", 10)
        patch.setitem(baselines.TREE_SETTINGS, "colsample_bynode", 0.5)
        patch.setattr(baselines, "BOOSTING", ((0.1, 2),))
        yield


@pytest.fixture(scope="module")
def classifiers():
    with tiny.collect_messages() as messages:
        found = baselines.fit_classification(classified(0), classified(1), TOKENS)
    assert tuple(found) == CLASSIFIERS and [message.split(": ")[1] for message in messages] == list(CLASSIFIERS)
    return found


@pytest.fixture(scope="module")
def forecasters():
    with tiny.collect_messages() as messages:
        found = baselines.fit_survival(followed(0), followed(1), TOKENS)
    assert tuple(found) == FORECASTERS and [message.split(": ")[1] for message in messages] == list(FORECASTERS)
    return found


def test_features_by_hand():
    now = 50 * YEAR
    visits = [[(A, now - 1000 * DAY), (B, now - 999 * DAY)], [(A, now - 90 * DAY), (4, now - 90 * DAY)]]
    visits = [[(code, int(minute)) for code, minute in visit] for visit in visits]
    person = {"static": [M], "visits": visits}
    patients, times = patients_of(person, {**person, "birth": False, "static": []}), moments([now, now])
    found = outcome_features.features(patients, times, TOKENS)
    np.testing.assert_allclose(found.basic, [[5, 0, 1], [0, 0, 0]], atol=1e-6)
    size = len(TOKENS)
    dense = found.codes.toarray()
    counts, fast, slow, recent, statics = dense[:, : 5 * size].reshape(2, 5, size).swapaxes(0, 1)
    np.testing.assert_allclose(counts[0, [4, A, B]], np.log1p([0, 2, 1]), rtol=1e-6)
    np.testing.assert_allclose(fast[0, [A, B]], np.log1p([0.5 + 2 ** (-1000 / 90), 2 ** (-999 / 90)]), rtol=1e-4)
    np.testing.assert_allclose(slow[0, [A, B]], np.log1p([2 ** (-90 / 730) + 2 ** (-1000 / 730), 2 ** (-999 / 730)]))
    np.testing.assert_array_equal(recent[0, [A, B]], [1, 0])
    assert statics[:, M].tolist() == [1, 0] and (dense[0, : 4 * size] == dense[1, : 4 * size]).all()
    bins, numbers = dense[:, 5 * size : -2], dense[:, -2:]
    assert bins.argmax(axis=1).tolist() == [11, 0] and (bins.sum(axis=1) == 1).all()
    np.testing.assert_allclose(numbers, np.log1p([[2, 90], [2, 90]]), rtol=1e-4)


def test_features_of_few_patients_are_left_out(monkeypatch):
    split = followed(0)
    twice = np.repeat(np.arange(3), 2)
    predictions, subjects = split.times[twice], split.patients.subject_ids[twice]
    histories, _, _ = data_histories.histories_at(split.patients, subjects, predictions)
    for least, expected in ((1, True), (4, False)):
        monkeypatch.setattr(outcome_features, "MIN_PATIENTS", least)
        encode = functools.partial(outcome_features.fit_scaler(histories, predictions, TOKENS).encode, tokens=TOKENS)
        assert (encode(histories, predictions).codes.shape[1] > 0) == expected
    monkeypatch.setattr(outcome_features, "MIN_PATIENTS", 10)
    encoder = outcome_features.fit_scaler(split.patients, split.times, TOKENS)
    found = encoder.encode(split.patients, split.times, TOKENS)
    np.testing.assert_allclose(found.codes.toarray().std(axis=0), 1, rtol=1e-6)
    spread = found.basic.std(axis=0)  # as they are, but for one factor
    covariates = data_histories.covariates_at(split.patients, split.times, TOKENS).std(axis=0)
    np.testing.assert_allclose(spread / spread.max(), covariates[encoder.varied] / covariates.max(), rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(np.mean(spread**2)), outcome_features.FREE, rtol=1e-6)


def test_the_planted_codes_are_found_and_only_age_and_sex_by_their_model(classifiers, forecasters):
    other, later = classified(2), followed(2)
    for name, least in zip(CLASSIFIERS, (0.0, 0.8, 0.8), strict=True):
        found = classifiers[name](other.patients, other.times)
        assert found.shape == (SIZE, 2) and (found >= 0).all()
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
        auroc = sklearn.metrics.roc_auc_score(other.classes, found[:, 1])
        assert auroc > least and (least or abs(auroc - 0.5) < 0.1), name
    for name, least in zip(FORECASTERS, (0.0, 0.7, 0.7), strict=True):
        found = forecasters[name](later.patients, later.times, HORIZONS)
        assert found.risks.shape == (SIZE, 1) and found.incidence.shape == (SIZE, 1, 4)
        concordance = survival_reference.concordance(later.events == 1, later.days, found.risks[:, 0])
        assert concordance > least and (least or abs(concordance - 0.5) < 0.1), name


def test_the_model_of_age_and_sex_ignores_codes(classifiers, forecasters):
    histories, times, _, _ = people(3)
    changed = np.where(histories.visits >= 0, 9, histories.codes).astype(np.int32)
    other = type(histories)(**{**vars(histories), "codes": changed})
    for name in CLASSIFIERS:
        same = (classifiers[name](histories, times) == classifiers[name](other, times)).all()
        assert same == (name == CLASSIFIERS[0])
    for name in FORECASTERS:
        found = [forecasters[name](patients, times, HORIZONS).incidence for patients in (histories, other)]
        assert (found[0] == found[1]).all() == (name == FORECASTERS[0])


@pytest.mark.parametrize("future", [[A] * 30, [B, 14, A]])
def test_nothing_after_the_prediction_is_seen(classifiers, forecasters, future):
    (histories, times, _, _), (other, _, _, _) = people(4, count=60), people(4, count=60, future=future)
    for name in CLASSIFIERS:
        np.testing.assert_array_equal(classifiers[name](histories, times), classifiers[name](other, times))
    for name in FORECASTERS:
        found = [forecasters[name](patients, times, HORIZONS) for patients in (histories, other)]
        np.testing.assert_array_equal(found[0].risks, found[1].risks)
        np.testing.assert_array_equal(found[0].incidence, found[1].incidence)


def test_the_answer_planted_after_the_prediction_is_not_learned():
    """A code that comes at the prediction for all of the positives, in train and after: no better than without it."""
    splits = []
    for seed in (5, 6, 7):
        histories, times, _, rng = people(seed, count=200)
        classes = rng.integers(0, 2, 200)
        planted = [[14] * 5 if positive else [13] for positive in classes]
        visits = [
            [[(9, int(minute) - DAY)], [(code, int(minute)) for code in codes]]
            for minute, codes in zip(
                (times - np.datetime64("2000-01-01")) / np.timedelta64(1, "m"), planted, strict=True
            )
        ]
        patients = patients_of(*[{"id": row + 1, "static": [F], "visits": own} for row, own in enumerate(visits)])
        known = [data_histories.histories_at(patients, patients.subject_ids, times, at)[0] for at in (0, 1)]
        splits.append([Classified(histories, times, classes) for histories in known])
    for include_at, bounds in ((0, (0.4, 0.6)), (1, (0.99, 1.0))):
        train, tuning, other = (split[include_at] for split in splits)
        for name, fitted in baselines.fit_classification(train, tuning, TOKENS).items():
            found = fitted(other.patients, other.times)[:, 1]
            auroc = sklearn.metrics.roc_auc_score(other.classes, found)
            if name != CLASSIFIERS[0]:
                assert bounds[0] <= auroc <= bounds[1], (name, include_at)


def test_settings_are_chosen_by_tuning_the_first_of_equals(messages):
    def candidate(name, value):
        return Candidate(name, np.array([value]), lambda inputs: inputs)

    candidates = [candidate("a", 3.0), candidate("b", 1.0), candidate("c", 1.0), candidate("d", 2.0)]
    best = baselines.choose("own", iter(candidates), lambda tuned: float(tuned[0]))
    assert best is candidates[1] and messages == ["fitting baselines: own: b, tuning loss 1.0000"]


@pytest.mark.parametrize("kind", ["noise", "signal"])
def test_what_tuning_says_decides(kind, messages):
    """Where tuning is turned round, the most cautious settings win; else others."""
    train, tuning = classified(0), classified(1)
    tuning = tuning._replace(classes=1 - tuning.classes) if kind == "noise" else tuning
    baselines.fit_classification(train, tuning, TOKENS)
    cautious = ("C=1e-06, at the edge" in messages[1], f" {baselines.CHECK_EVERY} trees" in messages[2])
    assert cautious == ((True, True) if kind == "noise" else (False, False)), messages


def test_boosting_predicts_with_the_trees_that_were_chosen():
    train, tuning = followed(0), followed(1)
    encode = functools.partial(outcome_features.fit_scaler(train.patients, train.times, TOKENS).encode, tokens=TOKENS)
    table, checks = encode(train.patients, train.times), encode(tuning.patients, tuning.times)
    outcome = train.days, train.events == 1
    families = {
        "risks": baselines._boosted_survival(table, *outcome, checks),
        "classes": baselines._boosted_classes(table, train.events, checks, 2),
        "net": baselines._elastic_net(table, *outcome, checks),
        "logistic": baselines._logistic(table, train.events, checks, 2, outcome_features.Inputs.joined),
    }
    for name, family in families.items():
        found = list(family)
        assert len({candidate.setting for candidate in found}) == len(found) > 2, name
        for candidate in found:
            np.testing.assert_allclose(candidate.predict(checks), candidate.tuned, rtol=1e-12, err_msg=name)
        assert np.abs(found[0].tuned - found[-1].tuned).max() > 1e-3, name


def test_forecasts_of_one_cause_are_those_of_a_cox_model(forecasters):
    train, other = followed(0), followed(2)
    found = forecasters["Cox on age and sex"](other.patients, other.times, HORIZONS)
    encode = functools.partial(outcome_features.fit_scaler(train.patients, train.times, TOKENS).encode, tokens=TOKENS)
    table, others = (encode(split.patients, split.times).basic for split in (train, other))
    tuning = followed(1)
    ways = [cox.fit_ridge(table, train.days, train.events == 1, ridge) for ridge in baselines.RIDGES]
    checks = encode(tuning.patients, tuning.times).basic

    def loss(own):  # minus the log partial likelihood, no two events being tied
        risks, seen = checks @ own, np.flatnonzero(tuning.events)
        return sum(np.log(np.exp(risks[tuning.days >= tuning.days[row]]).sum()) - risks[row] for row in seen)

    weights = min(ways, key=loss)
    np.testing.assert_allclose(found.risks[:, 0], others @ weights, atol=1e-9)
    shares, hazard = np.exp(table @ weights), np.zeros(len(HORIZONS))
    for day in train.days[train.events == 1]:  # Breslow's
        hazard += (HORIZONS >= day) / shares[train.days >= day].sum()
    expected = -np.expm1(-np.exp(others @ weights)[:, None] * hazard)
    assert (np.diff(expected, axis=1).max(axis=0) > 0.1).all()
    np.testing.assert_allclose(found.incidence[:, 0], expected, atol=1e-9)


def test_causes_compete(messages):
    """The mean chances are those of Aalen and Johansen, and the risks of two causes of opposite codes are opposed."""
    splits = []
    for seed in (0, 1):
        histories, times, risks, rng = people(seed)
        first, second = (rng.exponential(1000 * np.exp(sign * risks)) + 0.01 for sign in (-1, 1))
        ends = rng.exponential(2000, SIZE) + 0.01
        together = np.stack([ends, first, second])
        splits.append(Followed(histories, times, together.min(axis=0), together.argmin(axis=0)))
    train, tuning = splits
    fitted = baselines.fit_survival(train, tuning, TOKENS)
    assert [message.split(": ")[1] for message in messages[::3]] == [
        f"Cox on age and sex, cause {cause}" for cause in (1, 2)
    ]
    horizons = np.array([50.0, 300.0, 1000.0])
    times, expected = survival_reference.aalen_johansen(train.days, train.events, 2)
    expected = expected[:, np.searchsorted(times, horizons, side="right") - 1]
    for name, forecaster in fitted.items():
        found = forecaster(train.patients, train.times, horizons)
        assert found.risks.shape == (SIZE, 2) and found.incidence.shape == (SIZE, 2, 3)
        assert (np.diff(found.incidence, axis=2) >= 0).all() and (found.incidence.sum(axis=1) <= 1).all()
        np.testing.assert_allclose(found.incidence.mean(axis=0), expected, atol=0.03, err_msg=name)
        if name != FORECASTERS[0]:
            assert np.corrcoef(found.risks.T)[0, 1] < -0.4


@pytest.mark.slow
def test_labels_at_once_are_fitted_one_by_one_and_classes_together():
    train, tuning, other = classified(0), classified(1), classified(2)
    rng = np.random.default_rng(0)

    def both(split: Classified) -> Classified:
        return split._replace(classes=np.stack([split.classes, rng.integers(0, 2, SIZE)], axis=1).astype(bool))

    found = baselines.fit_classification(both(train), both(tuning), TOKENS)[CLASSIFIERS[1]]
    alone = baselines.fit_classification(train, tuning, TOKENS)[CLASSIFIERS[1]]
    predicted = found(other.patients, other.times)
    np.testing.assert_array_equal(predicted[:, 0], alone(other.patients, other.times)[:, 1])
    assert predicted.shape == (SIZE, 2) and predicted[:, 1].std() < predicted[:, 0].std()
    # A class that train lacks has a place, and no chance.
    three = (split._replace(classes=split.classes * 2) for split in (train, tuning))
    for fitted in baselines.fit_classification(*three, TOKENS).values():
        predicted = fitted(other.patients, other.times)
        assert predicted.shape == (SIZE, 3) and not predicted[:, 1].any() and predicted[:, 2].std() > 0


def test_logistic_regression_is_that_of_scikit_learn():
    train = classified(0)
    encode = functools.partial(outcome_features.fit_scaler(train.patients, train.times, TOKENS).encode, tokens=TOKENS)
    table = encode(train.patients, train.times)
    found = list(baselines._logistic(table, train.classes, table, 2, outcome_features.Inputs.joined))
    dense = np.hstack([table.basic, table.codes.toarray()])
    for strength, candidate in zip(baselines.STRENGTHS, found, strict=True):
        model = sklearn.linear_model.LogisticRegression(C=strength, solver="newton-cholesky").fit(dense, train.classes)
        np.testing.assert_allclose(candidate.tuned, model.predict_proba(dense), atol=5e-3)


def test_a_fit_is_the_same_twice(forecasters):
    other, again = followed(2), baselines.fit_survival(followed(0), followed(1), TOKENS)
    for name, forecaster in forecasters.items():
        found = [fitted(other.patients, other.times, HORIZONS).incidence for fitted in (forecaster, again[name])]
        np.testing.assert_array_equal(*found, err_msg=name)


def test_splits_that_cannot_be_fitted_are_refused():
    train, later = classified(0), followed(0)
    with pytest.raises(ValueError, match="^train: all 300 rows have one class"):
        baselines.fit_classification(train._replace(classes=np.zeros(SIZE, int)), train, TOKENS)
    with pytest.raises(ValueError, match="^train: none of 300 rows has an event of cause 1"):
        baselines.fit_survival(later._replace(events=np.zeros(SIZE, int)), later, TOKENS)
    with pytest.raises(ValueError, match="^train: none of 300 rows has an event of cause 1"):
        baselines.fit_survival(later._replace(events=later.events * 2), later, TOKENS)
    nobody, _, _ = data_histories.histories_at(train.patients, np.zeros(0, int), train.times[:0])
    with pytest.raises(ValueError, match="^tuning: no prediction with a history is left"):
        baselines.fit_classification(train, Classified(nobody, train.times[:0], train.classes[:0]), TOKENS)


@pytest.mark.slow
def test_tuning_without_events_leaves_the_most_cautious_settings(messages):
    tuning = followed(1)._replace(events=np.zeros(SIZE, int))
    baselines.fit_survival(followed(0), tuning, TOKENS)
    strongest = baselines.NET_RATIOS[0]
    assert (
        "loss 0.0000" in messages[0]
        and f"L1 share {strongest}," in messages[1]
        and f" {baselines.CHECK_EVERY} trees" in messages[2]
    )


@pytest.mark.parametrize("kind", ["classification", "survival"])
def test_embeddings_are_read_by_one_model_alone(kind):
    """What the embeddings know of the risk, no code tells: the hazard has a part that is in them alone."""
    rng = np.random.default_rng(5)

    def drawn(seed):
        histories, times, _, _ = people(seed)
        hidden = rng.normal(size=len(times))
        embeddings = np.stack([rng.normal(size=len(times)), 2 * hidden], axis=1).astype(np.float32)
        if kind == "classification":
            return Classified(histories, times, (hidden + rng.normal(size=len(times)) > 0).astype(int), embeddings)
        days = rng.exponential(1000 * np.exp(-2 * hidden)) + 0.01
        return Followed(histories, times, np.minimum(days, 2000), (days < 2000).astype(int), embeddings)

    train, tuning, held_out = drawn(0), drawn(1), drawn(2)
    fit = baselines.fit_classification if kind == "classification" else baselines.fit_survival
    found, without = fit(train, tuning, TOKENS), fit(train._replace(embeddings=None), tuning, TOKENS)
    assert set(found) - set(without) == {baselines.BOOSTED}
    known = (held_out.patients, held_out.times)

    def score(name):
        if kind == "classification":
            said = found[name](*known, held_out.embeddings)[:, 1]
            return sklearn.metrics.roc_auc_score(held_out.classes, said)
        said = found[name](*known, np.array([1000.0]), held_out.embeddings)
        assert ((said.incidence >= 0) & (said.incidence <= 1)).all()
        return survival_reference.concordance(held_out.events > 0, held_out.days, said.risks[:, 0])

    assert score(baselines.BOOSTED) > 0.75 > 0.6 > score("gradient boosting")


def test_age_is_read_by_the_splines_of_the_model_in_all_regressions():
    """A hazard that rises to 60 and falls again: a straight line knows nothing of it."""
    rng = np.random.default_rng(0)

    def bent(seed):
        histories, times, _, _ = people(seed, count=900)
        risks = -np.abs(data_histories.ages_at(histories, times) - 60) / 5
        days = rng.exponential(1000 * np.exp(-risks)) + 0.01
        return Followed(histories, times, np.minimum(days, 5000), (days < 5000).astype(int)), risks

    (train, _), (tuning, _), (other, risks) = bent(0), bent(1), bent(2)
    found = baselines.fit_survival(train, tuning, TOKENS)
    for name in FORECASTERS:
        said = found[name](other.patients, other.times, HORIZONS).risks[:, 0]
        assert np.corrcoef(said, risks)[0, 1] > 0.85, name
    basic = outcome_features.read(other.patients, other.times, TOKENS).basic
    np.testing.assert_allclose(basic, data_histories.covariates_at(other.patients, other.times, TOKENS))


def test_a_regression_on_age_and_sex_ends_inside_its_grid(messages):
    """A C-index hardly tells ridges apart, and would take the first of them."""
    baselines.fit_survival(followed(0), followed(1), TOKENS)
    assert messages[0].startswith("fitting baselines: Cox on age and sex: ridge "), messages
    assert "edge" not in messages[0], messages


def test_a_choice_at_the_edge_of_what_is_tried_is_reported(messages):
    edge, other = Candidate("a", np.array([1.0]), len, True), Candidate("b", np.array([2.0]), len)
    baselines.choose("own", [edge, other], lambda tuned: float(tuned[0]))
    assert messages == ["fitting baselines: own: a, at the edge of the settings tried, tuning loss 1.0000"]


@pytest.mark.parametrize("kind", ["classification", "survival"])
def test_without_birth_and_sex_the_models_of_them_are_left_out(kind, messages):
    """As in the public sample of ACES, which has neither."""

    def stripped(seed):
        split = classified(seed) if kind == "classification" else followed(seed)
        patients, keep = split.patients, split.patients.visits >= 0
        columns = {name: getattr(patients, name)[keep] for name in TOKEN_FIELDS}
        offsets = np.append(0, np.cumsum(np.bincount(patients.owners[keep], minlength=len(patients))))
        unborn = {"has_birth": np.zeros(len(patients), bool), "offsets": offsets}
        return split._replace(patients=dataclasses.replace(patients, **columns, **unborn))

    fit = baselines.fit_classification if kind == "classification" else baselines.fit_survival
    found, names = fit(stripped(0), stripped(1), TOKENS), FORECASTERS
    names = CLASSIFIERS if kind == "classification" else FORECASTERS
    assert tuple(found) == names[1:] and messages[0].startswith(
        f"fitting baselines: {names[0]}: left out, as train has nothing"
    )
    other = stripped(2)
    for fitted in found.values():
        said = fitted(other.patients, other.times, *([HORIZONS] if kind == "survival" else []))
        assert len(said if kind == "classification" else said.risks) == SIZE


@pytest.mark.parametrize("boosted", [False, True])
def test_a_table_of_inputs_is_fitted_and_its_settings_are_chosen_on_tuning(boosted):
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[outcome_features.Inputs, np.ndarray]:
        codes = (rng.random((count, 6)) < 0.4) * 1.0
        happened = rng.random(count) < 1 / (1 + np.exp(2 - 4 * codes[:, 0]))
        return outcome_features.Inputs(np.ones((count, 1)), scipy.sparse.csr_array(codes)), happened

    (train, died), (tuning, tuning_died), (held_out, held_out_died) = draw(400), draw(200), draw(400)
    scaled = outcome_features.fit_columns(train, np.arange(400)).scale(train)
    assert scaled.basic.shape[1] == 0 and scaled.codes.shape[1] == 6  # a constant column is left out
    predict = baselines.fit_inputs((train, died), (tuning, tuning_died), np.arange(400), boosted)
    scores = predict(held_out)
    assert scores.shape == (400,) and sklearn.metrics.roc_auc_score(held_out_died, scores) > 0.8
    assert abs(scores.mean() - held_out_died.mean()) < 0.1
