import numpy as np
import pytest
import scipy.sparse
import sklearn.metrics

from behrt_jax.metrics import bootstrap, multilabel
from behrt_jax.metrics.multilabel import Examples

SAMPLED = ("micro_f1", "loss", "recall@10", "precision@10", "average_precision", "macro_auroc", "calibration_error")


def simulate(seed=0, num_patients=30, num_codes=12, levels=25):
    """Up to 20 visits a patient with scores on few levels, so that many tie; every visit has a target."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients) * 7 + 3, rng.integers(1, 21, num_patients))
    shape = len(patients), num_codes
    chances = np.clip(rng.beta(1, 3, num_codes) + rng.normal(0, 0.15, shape), 0.02, 0.98)
    targets = rng.uniform(size=shape) < chances
    targets[np.arange(len(targets)), rng.integers(0, num_codes, len(targets))] = True
    noisy = np.clip(chances + rng.normal(0, 0.1, shape), 0.01, 0.99)
    probabilities = (np.round(noisy * levels) / levels).clip(0.01, 0.99).astype(np.float32)
    return probabilities, Examples(targets, patients, rng.uniform(size=shape) < 0.5)


def values(probabilities, examples, threshold=0.4, **options):
    found = multilabel.measure(probabilities, examples, threshold, **options)
    return {name.removeprefix("next_visit/"): estimate.value for name, estimate in found.items()}


def kept_codes(targets):
    return np.flatnonzero((targets.sum(axis=0) >= 10) & ((~targets).sum(axis=0) >= 10))


@pytest.mark.parametrize("seed", range(3))
def test_values_equal_those_of_scikit_learn(seed):
    probabilities, examples = simulate(seed)
    targets, codes = examples.targets, kept_codes(examples.targets)
    assert 5 < len(codes)
    found = values(probabilities, examples, 0.4)
    flat = targets.ravel(), probabilities.ravel()
    predicted = probabilities >= np.float32(0.4)
    expected = {
        "average_precision": sklearn.metrics.average_precision_score(*flat),
        "macro_average_precision": sklearn.metrics.average_precision_score(
            targets[:, targets.sum(axis=0) >= 10], probabilities[:, targets.sum(axis=0) >= 10]
        ),
        "macro_auroc": sklearn.metrics.roc_auc_score(targets[:, codes], probabilities[:, codes]),
        "micro_f1": sklearn.metrics.f1_score(targets, predicted, average="micro"),
        "macro_f1": sklearn.metrics.f1_score(
            targets[:, targets.sum(axis=0) >= 10], predicted[:, targets.sum(axis=0) >= 10], average="macro"
        ),
        "loss": targets.shape[1] * sklearn.metrics.log_loss(*flat),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_codes_of_fewer_than_ten_positives_are_in_no_mean_over_codes():
    probabilities, examples = simulate()
    examples.targets[:, 0] = np.arange(len(probabilities)) < 9
    found = multilabel.measure(probabilities, examples, 0.4)
    expected = (examples.targets.sum(axis=0) >= 10).sum()
    assert expected < 12 and found["next_visit/macro_f1"].n == expected
    examples.targets[:, 0] = np.arange(len(probabilities)) >= 9  # enough positives, and 9 negatives
    found = multilabel.measure(probabilities, examples, 0.4)
    assert found["next_visit/macro_f1"].n == expected + 1 and found["next_visit/macro_auroc"].n == expected


def test_sparse_targets_are_the_same_and_the_best_threshold_beats_every_other():
    probabilities, examples = simulate(4)
    sparse = scipy.sparse.csr_array(examples.targets)
    assert values(probabilities, examples) == values(probabilities, examples._replace(targets=sparse))
    best = multilabel.best_threshold(probabilities, sparse)
    cuts = np.unique(probabilities)
    scores = [sklearn.metrics.f1_score(examples.targets, probabilities >= cut, average="micro") for cut in cuts]
    assert best == cuts[np.argmax(scores)] and 0 < np.argmax(scores) < len(cuts) - 1
    assert values(probabilities, examples, best)["micro_f1"] == pytest.approx(max(scores))


def test_hits_by_hand_with_ties_against_the_model():
    scores = np.array([[0.9, 0.5, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2], [0.1, 0.2, 0.3, 0.4, 0.5]])
    targets = np.array([[1, 1, 1, 0, 1], [0, 0, 1, 1, 1], [1, 0, 0, 0, 1]], bool)
    expected = {1: [1, 0, 1], 2: [1, 0, 1], 3: [2, 1, 1], 4: [3, 2, 1], 5: [4, 3, 2], 9: [4, 3, 2]}
    for k, hits in expected.items():
        np.testing.assert_array_equal(multilabel.hits_at(scores, targets, k), hits)


def slow_hits(scores, targets, k):
    """Sorts by score; of ties, targets last."""
    return [
        sum(
            targets[row, code]
            for code in sorted(range(scores.shape[1]), key=lambda c: (-scores[row, c], targets[row, c]))[:k]
        )
        for row in range(len(scores))
    ]


def test_recall_and_precision_at_k_against_sorting():
    probabilities, examples = simulate(5, num_codes=40, levels=8)
    found, targets = values(probabilities, examples), examples.targets
    for k in (10, 30):
        recall = np.array(slow_hits(probabilities, targets, k)) / targets.sum(axis=1)
        assert found[f"recall@{k}"] == pytest.approx(recall.mean())
    for k in (1, 10):
        assert found[f"precision@{k}"] == pytest.approx(np.mean(slow_hits(probabilities, targets, k)) / k)


def test_new_and_repeated_codes_against_brute_force():
    probabilities, examples = simulate(6, num_codes=40)
    found, targets, seen = values(probabilities, examples), examples.targets, examples.seen_before
    for name, cells in (("new", ~seen), ("repeat", seen)):
        expected = sklearn.metrics.average_precision_score(targets[cells], probabilities[cells])
        assert found[f"average_precision/{name}"] == pytest.approx(expected)
    recalls = []
    for scores, wanted, new in zip(probabilities, targets, ~seen, strict=True):
        if (wanted & new).any():
            recalls.append(slow_hits(scores[None, new], wanted[None, new], 10)[0] / (wanted & new).sum())
    assert found["recall@10/new"] == pytest.approx(np.mean(recalls))


def test_parts_of_the_table_against_brute_force():
    probabilities, examples = simulate(7)
    rng = np.random.default_rng(0)
    types = rng.choice(["DRUG", "CONDITION"], 12)
    ages, sexes = rng.uniform(0, 100, len(probabilities)), rng.choice(["F", "M", ""], len(probabilities))
    ages[:5] = np.nan
    cells = multilabel.group_cells(types, ages, sexes)
    assert set(cells) == {"type=DRUG", "type=CONDITION", "sex=F", "sex=M"} | {
        f"age={band}" for band in ("0-20", "20-40", "40-60", "60-80", "80+")
    }
    found = multilabel.measure(probabilities, examples._replace(cells=cells), 0.4)
    for name, rows, columns in (
        ("type=DRUG", slice(None), types == "DRUG"),
        ("age=40-60", (ages >= 40) & (ages < 60), slice(None)),
        ("sex=F", sexes == "F", slice(None)),
    ):
        wanted, scores = examples.targets[rows][:, columns].ravel(), probabilities[rows][:, columns].ravel()
        part = found[f"next_visit/average_precision/{name}"]
        assert part.value == pytest.approx(sklearn.metrics.average_precision_score(wanted, scores))
        assert part.n == wanted.sum()
        positive = examples.targets[rows][:, columns].any(axis=1)
        assert part.patients == len(np.unique(examples.patients[rows][positive])) > 1
    assert found["next_visit/loss"].patients == found["next_visit/calibration_error"].patients
    assert found["next_visit/loss"].patients == len(np.unique(examples.patients))


def test_calibration_error_against_sorted_bins():
    rng = np.random.default_rng(8)
    probabilities = rng.permutation(np.linspace(0.001, 0.999, 30 * 60)).reshape(60, 30).astype(np.float32)
    targets = rng.uniform(size=probabilities.shape) < probabilities**2
    bins = np.split(np.argsort(probabilities, axis=None), 15)
    means = np.array([probabilities.ravel()[each].mean() for each in bins])
    shares = np.array([targets.ravel()[each].mean() for each in bins])
    examples = Examples(targets, np.arange(60), np.zeros_like(targets))
    assert values(probabilities, examples)["calibration_error"] == pytest.approx(
        np.abs(means - shares).mean(), rel=1e-5
    )


def test_the_curve_of_precision_and_recall_lies_on_that_of_scikit_learn():
    probabilities, examples = simulate(9, levels=400)
    precision, recall, thresholds = multilabel.precision_recall(probabilities, examples.targets, points=20)
    assert 10 < len(precision) <= 20 and recall.max() == 1
    for share, found, cut in zip(precision, recall, thresholds, strict=True):
        predicted = probabilities >= cut
        assert share == pytest.approx(sklearn.metrics.precision_score(examples.targets, predicted, average="micro"))
        assert found == pytest.approx(sklearn.metrics.recall_score(examples.targets, predicted, average="micro"))


def test_resamples_equal_the_metric_of_the_resampled_patients():
    """Histograms against scikit-learn on the very patients drawn; coarse bins are shifted by their error alone."""
    probabilities, examples = simulate(10, num_patients=40, levels=3000)
    probabilities += np.random.default_rng(1).uniform(0, 1e-4, probabilities.shape).astype(np.float32)
    found = multilabel.measure(probabilities, examples, 0.4)
    patients, owners = np.unique(examples.patients, return_inverse=True)
    codes = kept_codes(examples.targets)
    for number, drawn in enumerate(bootstrap.resamples(len(patients))[:20]):
        rows = np.repeat(np.arange(len(owners)), drawn[owners])
        wanted, scores = examples.targets[rows], probabilities[rows]
        expected = {
            "average_precision": (sklearn.metrics.average_precision_score(wanted.ravel(), scores.ravel()), 1e-3),
            "macro_auroc": (sklearn.metrics.roc_auc_score(wanted[:, codes], scores[:, codes]), 3e-3),
            "micro_f1": (sklearn.metrics.f1_score(wanted, scores >= 0.4, average="micro"), 1e-6),
            "macro_f1": (sklearn.metrics.f1_score(wanted, scores >= 0.4, average="macro"), 1e-6),
            "loss": (12 * sklearn.metrics.log_loss(wanted.ravel(), scores.ravel()), 1e-4),
            "macro_average_precision": (sklearn.metrics.average_precision_score(wanted, scores), 5e-3),
        }
        for name, (value, tolerance) in expected.items():
            assert found[f"next_visit/{name}"].replicates[number] == pytest.approx(value, abs=tolerance), name


def test_histograms_of_many_positives_stay_close_to_the_exact_value(monkeypatch):
    rng = np.random.default_rng(11)
    targets = rng.uniform(size=(2000, 40)) < 0.25
    probabilities = (1 / (1 + np.exp(-rng.normal(1.5 * targets, 1)))).astype(np.float32)
    errors, original = [], multilabel._estimate

    def spy(found, value, n, patients):
        errors.append(abs(found[0] - value))
        return original(found, value, n, patients)

    monkeypatch.setattr(multilabel, "_estimate", spy)
    owners, weights = np.repeat(np.arange(50), 40), np.ones((2, 50), np.float32)
    multilabel._micro_average_precision(probabilities, targets, np.True_, owners, weights)
    assert len(errors) == 1 and 0 < errors[0] < 1e-3
    multilabel._means_over_codes(probabilities, targets, owners, weights, np.float32(0.5))
    assert len(errors) == 4 and 0 < max(errors) < 2e-3


def test_intervals_of_means_are_those_of_summarize():
    probabilities, examples = simulate(12)
    hits = np.array(slow_hits(probabilities, examples.targets, 1), float)
    expected = bootstrap.summarize(bootstrap.PerTargetScores(examples.patients, {"precision@1": hits}), "next_visit")
    found = multilabel.measure(probabilities, examples, 0.4)["next_visit/precision@1"].summary()
    assert found == pytest.approx(expected["next_visit/precision@1"], abs=1e-6)


def test_intervals_cover_a_known_precision_and_average_precision():
    """Two codes of which one comes with chance 0.7 and the other with 0.3, by patient; the model knows the chances."""
    rng, covered = np.random.default_rng(13), np.zeros(2)
    for _ in range(40):
        patients = np.repeat(np.arange(60), 5)
        chances = np.clip(np.array([0.7, 0.3]) + rng.normal(0, 0.1, (60, 1)), 0.05, 0.95)[patients]
        targets = rng.uniform(size=(300, 2)) < chances
        found = multilabel.measure(
            np.tile(np.float32([0.7, 0.3]), (300, 1)), Examples(targets, patients, np.zeros_like(targets)), 0.5
        )
        truths = {"precision@1": 0.7, "average_precision": 0.7 * 0.7 + 0.3 * 0.5}
        for place, (name, truth) in enumerate(truths.items()):
            entry = found[f"next_visit/{name}"].summary()
            covered[place] += entry["low"] <= truth <= entry["high"]
    assert (covered >= 34).all() and covered.min() <= 40


def test_a_model_equals_itself_and_beats_a_worse_one_by_more_than_noise():
    probabilities, examples = simulate(14, num_patients=60)
    rng = np.random.default_rng(0)
    worse = np.clip(probabilities + rng.normal(0, 0.2, probabilities.shape), 0.01, 0.99).astype(np.float32)
    first, second = (multilabel.measure(each, examples, 0.4) for each in (probabilities, worse))
    for entry in bootstrap.compare(first, first).values():
        assert entry == {"value": 0, "low": 0, "high": 0}
    differences, name = bootstrap.compare(first, second), "next_visit/average_precision"
    assert differences[name]["low"] > 0
    assert differences[name]["value"] == pytest.approx(first[name].value - second[name].value)
    alone = first[name].summary()
    assert differences[name]["high"] - differences[name]["low"] < 0.9 * (alone["high"] - alone["low"])


def test_the_order_of_visits_changes_nothing():
    probabilities, examples = simulate(15)
    order = np.random.default_rng(1).permutation(len(probabilities))
    cells = multilabel.group_cells(ages=np.linspace(0, 99, len(order)))
    examples = examples._replace(cells=cells)
    other = Examples(*(each[order] for each in examples[:3]), cells={name: part[order] for name, part in cells.items()})
    first = multilabel.measure(probabilities, examples, 0.4)
    second = multilabel.measure(probabilities[order], other, 0.4)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].summary() == pytest.approx(second[name].summary(), abs=1e-6)


def test_what_cannot_be_measured_is_left_out():
    probabilities = np.full((3, 2), 0.5, np.float32)
    targets = np.ones((3, 2), bool)
    found = multilabel.measure(probabilities, Examples(targets, np.arange(3), targets), 0.5)
    missing = {"average_precision/new", "recall@10/new", "macro_f1", "macro_auroc", "macro_average_precision"}
    assert not missing & {name.removeprefix("next_visit/") for name in found}
    assert all(np.isfinite(list(estimate.summary().values())).all() for estimate in found.values())
    assert found["next_visit/micro_f1"].value == 1
