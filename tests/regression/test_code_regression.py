"""The regression that heads read: what it finds, who tells train, and that a file keeps it."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from behrt_jax.data.dataset import take
from behrt_jax.metrics import survival
from behrt_jax.regression import code_regression, outcome_features
from behrt_jax.regression.code_regression import FOLDS, Target
from tests.baselines.test_outcomes import TOKENS, classified, followed, people

SIZE = 600


def survival_target(split) -> Target:
    return Target(np.ones(len(split.days), bool), split.events > 0, split.days)


def fit(train, tuning, target=survival_target, **changes):
    targets = [(target(train)._replace(**changes), target(tuning))]
    parts = ((part.patients, part.times) for part in (train, tuning))
    return code_regression.fit(*parts, targets, TOKENS)


def say(found, split, **kwargs):
    return found.log_risks(split.patients, split.times, TOKENS, **kwargs)


def concordance(split, risks) -> float:
    return survival.concordance(split.events > 0, split.days, risks)


@pytest.fixture(scope="module")
def splits():
    return followed(0, count=SIZE), followed(1, count=SIZE), followed(2, count=SIZE)


@pytest.fixture(scope="module")
def found(splits):
    return fit(*splits[:2])


def test_the_planted_hazard_is_recovered(found, splits):
    held_out = splits[2]
    _, _, truth, _ = people(2, count=SIZE)
    said = say(found, held_out)
    assert said.shape == (SIZE, 1) and said.dtype == np.float32
    assert concordance(held_out, said[:, 0]) > concordance(held_out, truth) - 0.01
    assert np.corrcoef(said[:, 0], truth)[0, 1] > 0.97


def test_train_is_told_by_those_who_have_not_seen_it(splits):
    """Outcomes that nothing foretells: what has seen them seems to know them, what has not does not."""
    train, tuning, _ = splits
    rng = np.random.default_rng(0)
    # Few rows and a hardly shrunk fit, so that having seen an outcome would show.
    rows = np.arange(SIZE) < 150
    few = train._replace(patients=take(train.patients, rows), times=train.times[rows])
    few = few._replace(days=rng.exponential(1000, 150) + 1, events=np.ones(150, int))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_regression, "NET_PENALTIES", np.array([0.003]))
        known = fit(few, tuning)
    seen, unseen = (concordance(few, say(known, few, is_train=flag)[:, 0]) for flag in (False, True))
    assert seen > 0.6 and unseen < 0.54
    own = code_regression.fold_of(few.patients.subject_ids)
    for fold in range(FOLDS):
        rows = own == fold
        part = few._replace(patients=take(few.patients, rows), times=few.times[rows])
        alone = known._replace(members=[[known.members[0][1 + fold]] * (1 + FOLDS)])
        np.testing.assert_array_equal(say(alone, part), say(known, few, is_train=True)[rows])


@pytest.mark.slow
def test_a_product_of_two_codes_is_found(splits):
    """Either A or B, not both: neither alone says anything much."""

    def of(split, seed):
        counts = np.zeros((len(split.times), 2))
        for column, code in enumerate((7, 8)):
            owners = split.patients.owners[split.patients.codes == code]
            counts[:, column] = np.bincount(owners, minlength=len(split.times)) > 0
        rng = np.random.default_rng(seed)
        risks = 0.4 * counts[:, 0] + 2.0 * (counts[:, 0] != counts[:, 1])
        return split._replace(days=rng.exponential(1000 * np.exp(-risks)) + 0.01, events=np.ones(SIZE, int))

    train, tuning, held_out = (of(split, seed) for seed, split in enumerate(splits))
    reached = concordance(held_out, say(fit(train, tuning), held_out)[:, 0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_regression, "STRONGEST", 1)
        alone = concordance(held_out, say(fit(train, tuning), held_out)[:, 0])
    assert reached > alone + 0.05


def test_binary_outcomes_that_are_not_all_known():
    train, tuning, held_out = (classified(seed, count=SIZE) for seed in range(3))

    def target(split):
        return Target(np.ones(len(split.classes), bool), split.classes > 0)

    known = np.arange(SIZE) % 4 > 0
    # What is not known is wrong on purpose: reading it would turn the regression round.
    wrong = np.where(known, train.classes > 0, train.classes == 0)
    found = fit(train, tuning, target, known=known, happened=wrong)
    plain = fit(train, tuning, target, happened=wrong)
    auroc = [roc_auc_score(held_out.classes, say(each, held_out)[:, 0]) for each in (found, plain)]
    assert auroc[0] > 0.8  # who knows the truth reaches 0.82
    assert np.abs(say(found, held_out)).mean() > 1.2 * np.abs(say(plain, held_out)).mean()


def test_nothing_after_the_prediction_time_moves_it(found):
    before, after = followed(2, count=50), followed(2, count=50, future=[7, 8, 9])
    np.testing.assert_array_equal(say(found, before), say(found, after))


def test_a_file_keeps_it_and_anything_else_is_an_error(found, splits, tmp_path):
    file = tmp_path / "regression.npz"
    found.save(file)
    again = code_regression.load(file)
    for is_train in (False, True):
        np.testing.assert_array_equal(
            say(again, splits[2], is_train=is_train), say(found, splits[2], is_train=is_train)
        )
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match="regression.npz: not a regression that experiments.finetune wrote"):
        code_regression.load(file)
    with pytest.raises(ValueError, match="run it anew"):
        code_regression.load(tmp_path / "none.npz")


def test_files_of_older_runs_read_age_as_a_straight_line(found, splits, tmp_path):
    """Their encoders chose among the columns of `features`, and the file does not say so."""
    split, file = splits[0], tmp_path / "regression.npz"
    table = outcome_features.features(split.patients, split.times, TOKENS)
    line = np.array([0]), table.basic.mean(axis=0)[:1], np.ones(1), np.array([8, 9]), np.ones(2)
    nothing = code_regression.Weights(np.zeros((0, 2), int), np.zeros(0), np.ones(0), np.arange(3.0), np.array([-9, 9]))
    old = code_regression.CodeRegression(
        outcome_features.FeatureScaler(*line, splines=False), np.zeros(3), np.ones(3), [[nothing] * (1 + FOLDS)]
    )
    old.save(file)
    with np.load(file) as arrays:
        np.savez(file, **{name: values for name, values in arrays.items() if name != "encoder/splines"})
    expected = table.codes[:, [8, 9]].toarray() @ [1.0, 2.0]
    np.testing.assert_allclose(say(code_regression.load(file), split)[:, 0], expected, rtol=1e-6)
    found.save(file)
    assert code_regression.load(file).encoder.splines
