from functools import partial

import numpy as np
import pytest
import sklearn.metrics

from behrt_jax.metrics import bootstrap, classification, multilabel
from behrt_jax.metrics.classification import EPSILON, measure

PAIR = {"auroc", "auprc", "calibration_slope", "calibration_error", "f1", "brier", "loss", "prevalence"}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch, request):
    """The first of the thousand, where it is not their distribution that is tested."""
    if "intervals" not in request.node.name:
        monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 60)


def simulate(seed=0, num_patients=60, labels=None, levels=40):
    """Up to 8 rows a patient, whose chances have something in common; scores on few levels, so that many tie."""
    rng = np.random.default_rng(seed)
    patients = rng.permutation(np.repeat(np.arange(num_patients) * 7 + 3, rng.integers(1, 9, num_patients)))
    own = rng.normal(-1, 1, 7 * num_patients + 3)[patients]
    shape = (len(patients),) if labels is None else (len(patients), labels)
    logits = (own if labels is None else own[:, None]) + rng.normal(0, 1, shape)
    targets = rng.uniform(size=shape) < 1 / (1 + np.exp(-logits))
    scores = 1 / (1 + np.exp(-1.5 * logits - rng.normal(0, 1, shape)))
    return np.clip(np.round(scores * levels) / levels, 0.01, 0.99), targets, patients


def classes(seed=1, num_classes=4):
    probabilities, _, patients = simulate(seed, labels=num_classes)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    chosen = np.random.default_rng(seed).uniform(size=(len(patients), 1))
    targets = np.minimum((probabilities.cumsum(axis=1) < chosen).sum(axis=1), num_classes - 1)
    return probabilities, targets, patients


def slope(probabilities, targets):
    logits = np.log(probabilities / (1 - probabilities))[:, None]
    fitted = sklearn.linear_model.LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits, targets)
    return fitted.coef_[0, 0]


def expected_of_binary(probabilities, targets, cut):
    net_benefits = {}
    for p in classification.NET_BENEFIT_THRESHOLDS:
        chosen = probabilities >= p
        net_benefits[f"net_benefit@{p}"] = ((chosen & targets).sum() - (chosen & ~targets).sum() * p / (1 - p)) / len(
            targets
        )
    return net_benefits | {
        "auroc": sklearn.metrics.roc_auc_score(targets, probabilities),
        "auprc": sklearn.metrics.average_precision_score(targets, probabilities),
        "brier": sklearn.metrics.brier_score_loss(targets, probabilities),
        "loss": sklearn.metrics.log_loss(targets, probabilities),
        "prevalence": targets.mean(),
        "f1": sklearn.metrics.f1_score(targets, probabilities >= cut),
        "calibration_slope": slope(probabilities, targets),
    }


def values(found, number=None):
    """The values, or those of one resample, without the prefix."""
    chosen = {name.removeprefix("classification/"): each for name, each in found.items()}
    return {name: each.value if number is None else each.replicates[number] for name, each in chosen.items()}


def drawn_rows(patients, number):
    """The rows of a resample, those of a patient drawn twice twice."""
    unique, owners = np.unique(patients, return_inverse=True)
    return np.repeat(np.arange(len(owners)), bootstrap.resamples(len(unique))[number][owners])


@pytest.mark.parametrize("seed", range(3))
def test_binary_values_and_resamples_equal_those_of_scikit_learn(seed):
    probabilities, targets, patients = simulate(seed)
    found = measure(probabilities, targets, patients, 0.4)
    assert {name for name in values(found) if "@" not in name} == PAIR
    expected = expected_of_binary(probabilities, targets, 0.4)
    assert {name: values(found)[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    for number in range(5):
        rows = drawn_rows(patients, number)
        expected = expected_of_binary(probabilities[rows], targets[rows], 0.4)
        assert {name: values(found, number)[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_calibration_error_against_sorted_bins():
    rng = np.random.default_rng(3)
    probabilities = rng.permutation(np.linspace(0.001, 0.999, 500))
    targets = rng.uniform(size=500) < probabilities**2
    bins = np.split(np.argsort(probabilities), 10)
    distances = [abs(probabilities[some].mean() - targets[some].mean()) for some in bins]
    found = measure(probabilities, targets, np.arange(500))["classification/calibration_error"]
    assert found.value == pytest.approx(np.mean(distances))
    rows = drawn_rows(np.arange(500), 0)  # its bins stay those of the data
    parts = [rows[np.isin(rows, some)] for some in bins]
    expected = sum(abs((probabilities[some] - targets[some]).sum()) for some in parts) / 500
    assert found.replicates[0] == pytest.approx(expected)


def test_multi_label_is_the_mean_over_labels_that_can_be_measured():
    probabilities, targets, patients = simulate(4, labels=4)
    targets[:, 3] = False
    cuts, names = [0.2, 0.4, 0.6, 0.5], ["a", "b", "c", "never"]
    found = measure(probabilities, targets, patients, cuts, labels=names)
    for number in (None, 0, 1):
        rows = np.arange(len(patients)) if number is None else drawn_rows(patients, number)
        each = [expected_of_binary(probabilities[rows, k], targets[rows, k], cuts[k]) for k in range(3)]
        seen = values(found, number)
        for name in ("auroc", "auprc", "calibration_slope"):
            assert seen[name] == pytest.approx(np.mean([one[name] for one in each]), abs=1e-6)
            for label, one in zip(names, each, strict=False):
                assert seen[f"{name}/label={label}"] == pytest.approx(one[name], abs=1e-6)
        brier = ((probabilities[rows] - targets[rows]) ** 2).mean()
        assert seen["brier"] == pytest.approx(brier)
        assert seen["f1"] == pytest.approx(sum(one["f1"] for one in each) / 4)  # no hit of what never came is 0
    assert "classification/auroc/label=never" not in found and "classification/brier/label=never" in found


def test_multi_class_values_and_resamples_equal_those_of_scikit_learn():
    probabilities, targets, patients = classes()
    found = measure(probabilities, targets, patients, labels=["a", "b", "c", "d"])
    for number in (None, 0, 1, 2):
        rows = np.arange(len(patients)) if number is None else drawn_rows(patients, number)
        pair, seen = (targets[rows], probabilities[rows]), values(found, number)
        expected = {
            "auroc": sklearn.metrics.roc_auc_score(*pair, multi_class="ovr"),
            "accuracy": sklearn.metrics.accuracy_score(pair[0], pair[1].argmax(axis=1)),
            "loss": sklearn.metrics.log_loss(*pair),
            "brier": ((pair[1] - np.eye(4)[pair[0]]) ** 2).sum(axis=1).mean(),
            "auroc/label=b": sklearn.metrics.roc_auc_score(pair[0] == 1, pair[1][:, 1]),
        }
        assert {name: seen[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert 0 < values(found)["calibration_error"] < 0.2


def test_groups_equal_the_metrics_of_their_rows_on_the_same_resamples():
    probabilities, targets, patients = simulate(5)
    rng = np.random.default_rng(0)
    ages, sexes = rng.uniform(20, 100, len(targets)), rng.choice(["F", "M", ""], len(targets))
    targets[ages >= 80] = True
    found = measure(probabilities, targets, patients, 0.4, multilabel.group_cells(ages=ages, sexes=sexes))
    for name, rows in (("sex=F", sexes == "F"), ("age=40-60", (ages >= 40) & (ages < 60))):
        for number in (None, 3):
            drawn = np.arange(len(patients)) if number is None else drawn_rows(patients, number)
            drawn = drawn[rows[drawn]]
            for metric, value in expected_of_binary(probabilities[drawn], targets[drawn], 0.4).items():
                assert values(found, number)[f"{metric}/{name}"] == pytest.approx(value, abs=1e-6)
        assert found[f"classification/auroc/{name}"].n == rows.sum()
        assert found[f"classification/auroc/{name}"].patients == len(np.unique(patients[rows])) < rows.sum()
    groups = {name.split("/", 2)[2] for name in found if name.count("/") == 2}
    assert groups == {"sex=F", "sex=M", "age=20-40", "age=40-60", "age=60-80"}  # of 80+ all have it, of 0-20 none is


def test_the_threshold_of_each_label_beats_every_other():
    probabilities, targets, _ = simulate(6, labels=3)
    found = classification.best_threshold(probabilities, targets)
    for label in range(3):
        cuts = np.unique(probabilities[:, label])
        scores = [sklearn.metrics.f1_score(targets[:, label], probabilities[:, label] >= cut) for cut in cuts]
        assert found[label] == pytest.approx(cuts[np.argmax(scores)]) and 0 < np.argmax(scores)
    alone = classification.best_threshold(probabilities[:, 0], targets[:, 0])
    assert alone.shape == () and alone == found[0]


def test_a_threshold_of_float32_is_met_by_the_probability_it_was_taken_from():
    probabilities, targets = np.array([0.1, 0.3, 0.7]), np.array([False, False, True])
    cut = classification.best_threshold(probabilities, targets)
    assert measure(probabilities, targets, np.arange(3), cut)["classification/f1"].value == 1


def test_net_benefit_by_hand():
    """Of ten rows two have it; at 0.2 the model chooses both and two more: 2/10 - 2/10 * 0.25."""
    probabilities = np.array([0.9, 0.25, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01])
    found = measure(probabilities, np.arange(10) < 2, np.arange(10))
    assert found["classification/net_benefit@0.2"].value == pytest.approx(0.2 - 0.2 * 0.25)
    assert found["classification/net_benefit@0.3"].value == pytest.approx(0.1 - 0.1 * 3 / 7)


def test_extreme_probabilities_are_cut_off_and_separated_classes_have_no_slope():
    found = measure(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1]), np.arange(4))
    assert "classification/calibration_slope" not in found and found["classification/auroc"].value == 1
    wrong = measure(np.array([0.0, 1.0]), np.array([1, 0]), np.arange(2))
    assert wrong["classification/loss"].value == pytest.approx(-np.log(EPSILON))


def test_intervals_cover_the_truth_and_patients_are_drawn_whole():
    """Scores are normal around 0 and 1: the AUROC is that of a normal, 0.76; each patient's rows are alike."""
    rng, covered, patients = np.random.default_rng(7), 0, np.repeat(np.arange(80), 4)
    owners, weights = classification.patient_weights(patients, 320, seed=0)
    for _ in range(60):
        targets = (rng.uniform(size=80) < 0.4)[patients]
        scores = rng.normal(targets[::4], 1)[patients]
        found = classification.replicate(partial(auroc_of, scores, targets), owners, weights)
        entry = classification.estimates(found, "", "", np.arange(320))["auroc"].summary()
        covered += entry["low"] <= 0.76025 <= entry["high"]
    assert 51 <= covered <= 60  # 95% of 60 is 57, with a standard deviation of 1.7; by rows alone some 65%


def auroc_of(scores, targets, weights):
    return {"auroc": classification.auroc(scores, targets, weights)}


def test_a_model_equals_itself_and_beats_a_worse_one_by_more_than_noise():
    probabilities, targets, patients = simulate(8, num_patients=150)
    worse = np.clip(probabilities + np.random.default_rng(0).normal(0, 0.3, len(targets)), 0.01, 0.99)
    first, second = (measure(each, targets, patients, 0.4) for each in (probabilities, worse))
    assert all(entry == {"value": 0, "low": 0, "high": 0} for entry in bootstrap.compare(first, first).values())
    found = bootstrap.compare(first, second)["classification/auroc"]
    assert found["low"] > 0 and found["value"] == pytest.approx(values(first)["auroc"] - values(second)["auroc"])


def test_many_rows_are_worked_on_in_parts(monkeypatch):
    probabilities, targets, patients = simulate(9)
    whole = measure(probabilities, targets, patients)
    monkeypatch.setattr(classification, "CELLS", 70 * len(targets))
    parted = measure(probabilities, targets, patients)
    for name, each in whole.items():
        np.testing.assert_allclose(parted[name].replicates, each.replicates, atol=1e-6)


def test_resamples_of_one_class_are_left_to_the_metrics_that_need_none():
    targets = np.arange(12) == 0
    found = measure(np.linspace(0.1, 0.9, 12), targets, np.arange(12), groups={"half": np.arange(12) < 6})
    missing = np.isnan(found["classification/auroc/half"].replicates).mean()
    assert missing == pytest.approx((11 / 12) ** 12, abs=0.1)
    assert np.isfinite(found["classification/brier"].replicates).all()
    assert all(np.isfinite([*each.summary().values()]).all() for each in found.values())


@pytest.mark.parametrize("came", [False, True])
def test_of_one_class_what_tells_classes_apart_is_left_out(came):
    probabilities, targets, patients = simulate(11)
    groups, targets = multilabel.group_cells(sexes=np.where(patients % 2, "F", "M")), np.full(len(targets), came)
    found = values(measure(probabilities, targets, patients, 0.4, groups))
    assert {name for name in found if "@" not in name} == {"brier", "loss", "calibration_error", "f1", "prevalence"}
    expected = expected_of_one_class(probabilities, targets)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    scores = probabilities.repeat(2).reshape(-1, 2)
    of_labels = values(measure(scores, np.stack([targets, targets], axis=1), patients, labels=["a", "b"]))
    assert of_labels["brier"] == pytest.approx(expected["brier"]) and not any("auprc" in name for name in of_labels)
    of_classes = values(measure(scores / scores.sum(axis=1, keepdims=True), np.full(len(targets), 1), patients))
    assert set(of_classes) == {"accuracy", "loss", "brier", "calibration_error"}


def expected_of_one_class(probabilities, targets):
    losses = -np.log(np.where(targets, probabilities, 1 - probabilities))
    return {
        "brier": sklearn.metrics.brier_score_loss(targets, probabilities, labels=[0, 1]),
        "loss": losses.mean(),
        "f1": sklearn.metrics.f1_score(targets, probabilities.astype(np.float32) >= np.float32(0.4)),
        "prevalence": targets.mean(),
    }


@pytest.mark.parametrize(
    ("probabilities", "targets", "message"),
    [
        ([0.1, np.nan, 2], [0, 1, 1], "2 of 3 probabilities are NaN or outside"),
        ([0.1, 0.2], [0, 1, 1], r"\(2,\) do not fit targets \(3,\)"),
        ([0.1, 0.2, 0.3], [0, 1, 2], "1 of 3 targets are none of the 2 classes 0 to 1"),
        ([0.1, 0.2, 0.3], [0, 1, np.nan], "1 of 3 targets are none of the 2 classes"),
        ([[0.1, 0.9]] * 3, [0, 1, 5], "1 of 3 targets are none of the 2 classes"),
        ([], [], "1 row or more"),
    ],
)
def test_what_does_not_fit_is_said(probabilities, targets, message):
    with pytest.raises(ValueError, match=message):
        measure(np.array(probabilities), np.array(targets), np.arange(len(targets)))


def test_labels_and_patients_that_do_not_fit_are_said():
    probabilities, targets, patients = simulate(10, labels=3)
    with pytest.raises(ValueError, match=r"\(4,\) patients do not fit"):
        measure(probabilities, targets, patients[:4])
    with pytest.raises(ValueError, match="1 names do not fit 3 labels"):
        measure(probabilities, targets, patients, labels=["a"])
