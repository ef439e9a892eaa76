import numpy as np
import pytest
import sklearn.metrics

from behrt_jax.metrics.bootstrap import (
    PerTargetScores,
    concatenate,
    estimate,
    mean_metrics,
    merge_sums,
    paired,
    skill,
    summarize,
)


def outcomes(patients, **values):
    return PerTargetScores(
        np.asarray(patients), {name: np.asarray(found, np.float32) for name, found in values.items()}
    )


def simulate(rng, num_patients, own_spread):
    """Up to 20 hits or misses a patient, whose chances differ between patients; the mean chance is 0.6."""
    counts = rng.integers(1, 21, num_patients)
    chances = np.clip(0.6 + own_spread * rng.choice([-1.0, 1.0], num_patients), 0, 1)
    patients = np.repeat(np.arange(num_patients), counts)
    return outcomes(patients, accuracy=rng.uniform(size=counts.sum()) < chances[patients])


def test_merged_ragged_batches_give_the_pooled_mean():
    rng = np.random.default_rng(0)
    values, sizes = rng.normal(size=50), (1, 17, 0, 32)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    merged = merge_sums([{"loss": (part.sum(), float(len(part))), "x": (1.0, 1.0)} for part in parts])
    assert mean_metrics(merged) == {"loss": pytest.approx(values.mean()), "x": 1.0}


def test_nothing_counted_is_not_a_number():
    assert np.isnan(mean_metrics({"loss": (0.0, 0.0)})["loss"])


def test_values_equal_those_of_scikit_learn_and_perplexity_is_exp_of_the_loss():
    rng = np.random.default_rng(1)
    patients, labels = np.sort(rng.integers(0, 9, 60)), np.append(rng.integers(0, 8, 52), np.arange(8))
    probabilities = rng.dirichlet(np.ones(8), 60)
    loss = -np.log(probabilities[np.arange(60), labels])
    hits = probabilities.argmax(axis=1) == labels
    found = summarize(outcomes(patients, loss=loss, accuracy=hits), "mlm")
    assert found["mlm/loss"]["value"] == pytest.approx(sklearn.metrics.log_loss(labels, probabilities), rel=1e-6)
    expected = sklearn.metrics.accuracy_score(labels, probabilities.argmax(axis=1))
    assert found["mlm/accuracy"]["value"] == pytest.approx(expected)
    for end in ("value", "low", "high"):
        assert found["mlm/perplexity"][end] == pytest.approx(np.exp(found["mlm/loss"][end]))
    assert set(found) == {"mlm/loss", "mlm/perplexity", "mlm/accuracy"}
    assert {entry["patients"] for entry in found.values()} == {len(np.unique(patients))}
    assert all(entry["n"] == 60 and entry["low"] < entry["value"] < entry["high"] for entry in found.values())


def test_intervals_cover_a_known_mean():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(120):
        found = summarize(simulate(rng, 80, own_spread=0.3), "mlm")["mlm/accuracy"]
        covered += found["low"] <= 0.6 <= found["high"]
    assert 104 <= covered <= 120  # 95% of 120 is 114, with a standard deviation of 2.4


def test_patients_are_drawn_whole():
    """Where a patient's targets agree, the interval is that of the patients and not of their many targets."""
    patients = np.repeat(np.arange(40), 25)
    agreeing = outcomes(patients, accuracy=np.random.default_rng(3).uniform(size=40)[patients] < 0.5)
    clustered = summarize(agreeing, "mlm")["mlm/accuracy"]
    independent = summarize(agreeing._replace(patients=np.arange(1000)), "mlm")["mlm/accuracy"]
    widths = [entry["high"] - entry["low"] for entry in (clustered, independent)]
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(25), rel=0.2)
    share = clustered["value"]
    assert widths[0] == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 40), rel=0.15)


def test_patients_weigh_by_their_targets():
    found = summarize(outcomes([7, 7, 7, 3], accuracy=[1, 1, 1, 0]), "mlm")["mlm/accuracy"]
    assert found["value"] == 0.75 and (found["low"], found["high"]) == (0.0, 1.0)


def test_the_seed_decides_the_resamples():
    some = simulate(np.random.default_rng(4), 30, 0.2)
    assert summarize(some, "mlm") == summarize(some, "mlm")
    assert summarize(some, "mlm") != summarize(some, "mlm", seed=1)


def test_one_patient_has_an_interval_without_width():
    found = summarize(outcomes([5, 5], accuracy=[1, 0]), "mlm")["mlm/accuracy"]
    assert found == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 2, "patients": 1}


def test_concatenate_keeps_patients_with_their_values():
    joined = concatenate([outcomes([1, 2], loss=[0.1, 0.2]), outcomes([], loss=[]), outcomes([3], loss=[0.3])])
    np.testing.assert_array_equal(joined.patients, [1, 2, 3])
    np.testing.assert_allclose(joined.values["loss"], [0.1, 0.2, 0.3], rtol=1e-6)


def test_paired_differences_of_a_model_with_itself_and_with_another():
    rng = np.random.default_rng(5)
    patients = np.repeat(np.arange(40), 10)
    own = rng.normal(0, 1, 40)[patients]
    loss = own + rng.normal(0, 0.1, 400)
    first, second = outcomes(patients, loss=loss), outcomes(patients, loss=loss + 0.2 + rng.normal(0, 0.1, 400))
    assert set(paired(first, first, "mlm")) == {"mlm/loss", "mlm/perplexity"}
    assert all(entry == {"value": 0, "low": 0, "high": 0} for entry in paired(first, first, "mlm").values())
    found = paired(second, first, "mlm")["mlm/loss"]
    # What patients have in common drops out: the interval is that of the differences alone.
    expected = summarize(outcomes(patients, x=second.values["loss"] - first.values["loss"]), "mlm")["mlm/x"]
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-5)
    assert found["high"] - found["low"] < 0.05


def test_only_outcomes_at_the_same_targets_are_paired():
    with pytest.raises(ValueError, match="same targets of the same patients"):
        paired(outcomes([1, 1, 2], loss=[1, 2, 3]), outcomes([1, 2, 2], loss=[1, 2, 3]), "mlm")
    with pytest.raises(ValueError, match="same targets of the same patients"):
        paired(outcomes([1, 1, 2], loss=[1, 2, 3]), outcomes([1, 1], loss=[1, 2]), "mlm")


def test_skill_is_one_less_the_ratio_of_losses_on_each_resample():
    rng = np.random.default_rng(3)
    patients, reference = rng.integers(0, 40, 400), rng.uniform(1, 2, 400)
    third, other = (outcomes(patients, loss=values) for values in (reference / 3, rng.uniform(0, 2, 400)))
    losses = [estimate(each, "x")["x/loss"] for each in (outcomes(patients, loss=reference), third, other)]
    same, better, noisy = (skill(each, losses[0]).summary() for each in losses)
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 400, "patients": 40}
    assert [better[end] for end in ("value", "low", "high")] == pytest.approx([2 / 3] * 3, rel=1e-6)
    assert noisy["low"] < noisy["value"] < noisy["high"]
    assert noisy["value"] == pytest.approx(1 - other.values["loss"].mean() / reference.mean(), rel=1e-6)
