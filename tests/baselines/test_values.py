"""Baselines for values of masked codes: what they may read, and what a known truth says they predict."""

import numpy as np
import pytest

from behrt_jax.baselines import values
from behrt_jax.models.heads import QUANTILES
from behrt_jax.objectives import mlm, scoring
from tests import tiny

VOCAB_SIZE = 12


def masked_batch(seed: int = 0) -> scoring.MaskedBatch:
    """Three packed rows of few codes, most with a value, 40% of them masked; some tokens share a time."""
    rng = np.random.default_rng(seed)
    batch = tiny.packed_batch([[14, 9], [20], [5, 6, 7]], 24, seed)
    batch["codes"] = np.where(batch["maskable"], rng.integers(5, 8, batch["codes"].shape), batch["codes"])
    batch["times"] = np.sort(rng.integers(0, 12, batch["codes"].shape), axis=1)
    places = np.argsort(-(batch["maskable"] + rng.random(batch["codes"].shape)), axis=1)[:, :6].astype(np.int32)
    labels = np.take_along_axis(batch["codes"], places, axis=1)
    weights = np.take_along_axis(batch["maskable"], places, axis=1).astype(np.float32)
    inputs = batch["codes"].copy()
    np.put_along_axis(inputs, places, np.where(weights > 0, mlm.MASK_ID, labels), axis=1)
    return scoring.MaskedBatch(batch, mlm.Masked(inputs, places, labels, weights))  # pyright: ignore


@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_value_is_that_of_plain_loops(seed):
    masked = masked_batch(seed)
    batch, hidden = masked.batch, set(zip(*masked.targets, strict=True))
    expected = []
    for row, place in zip(*masked.targets, strict=True):
        candidates = [
            (abs(batch["times"][row, other] - batch["times"][row, place]), other > place, abs(other - place), other)
            for other in range(batch["codes"].shape[1])
            if (row, other) not in hidden
            and batch["patient_ids"][row, other] == batch["patient_ids"][row, place]
            and batch["codes"][row, other] == batch["codes"][row, place]
            and not np.isnan(batch["values"][row, other])
        ]
        expected.append(batch["values"][row, min(candidates)[-1]] if candidates else np.nan)
    found, has_value = values.nearest_values(masked), ~np.isnan(batch["values"][masked.targets])
    np.testing.assert_array_equal(found[has_value], np.float32(expected)[has_value])
    assert np.isnan(found).any() or seed and not np.isnan(found).all()
    kept = values.find_values([masked, masked])
    assert len(kept.values) == 2 * has_value.sum() and not np.isnan(kept.values).any()
    np.testing.assert_array_equal(kept.codes[: has_value.sum()], masked.labels[has_value])


def draw(rng, count: int) -> values.MaskedValues:
    """Code 5 is 0.8 x the nearest value + noise of 0.3; code 6 has none; code 7 is of too few."""
    codes = rng.choice([5, 6, 7], count, p=[0.5, 0.49, 0.01])
    nearest = np.where(codes == 5, rng.normal(1.0, 1.0, count), np.nan)
    numbers = np.where(codes == 6, rng.normal(-2.0, 0.5, count), 0.8 * nearest + 0.3 * rng.normal(size=count))
    return values.MaskedValues(np.arange(count) % 50, codes, np.float32(np.nan_to_num(numbers)), np.float32(nearest))


def test_baselines_reach_what_a_known_truth_allows():
    rng = np.random.default_rng(0)
    train, test = draw(rng, 8000), draw(rng, 8000)
    fitted = values.fit_baselines(train._replace(codes=np.where(train.codes == 7, 8, train.codes)), VOCAB_SIZE)
    normal = np.quantile(rng.standard_normal(1_000_000), QUANTILES)
    of_code, of_nearest = (fitted[name](test) for name in (values.CODE_QUANTILES, values.NEAREST))
    is_line, is_other = test.codes == 5, test.codes == 6
    for code, mean, spread in ((5, 0.8, np.hypot(0.8, 0.3)), (6, -2.0, 0.5)):
        chosen = of_code[test.codes == code]
        np.testing.assert_allclose(chosen, np.broadcast_to(mean + spread * normal, chosen.shape), atol=0.1)
    expected = 0.8 * test.nearest[is_line][:, None] + 0.3 * normal
    np.testing.assert_allclose(of_nearest[is_line], expected, atol=0.1)
    np.testing.assert_array_equal(of_nearest[is_other], of_code[is_other])  # without another value
    pooled = np.quantile(train.values, QUANTILES)
    np.testing.assert_array_equal(of_code[test.codes == 7][0], pooled)  # a code that train lacks
    scores = {name: values.predict(predictor, test).values for name, predictor in fitted.items()}
    losses = {name: each["quantile_loss"][is_line].mean() for name, each in scores.items()}
    assert losses[values.NEAREST] < 0.45 * losses[values.CODE_QUANTILES]
    for each in scores.values():
        assert each["coverage"][is_line | is_other].mean() == pytest.approx(0.8, abs=0.02)


def test_the_loss_is_the_mean_pinball_loss_and_coverage_counts_both_ends():
    quantiles = np.sort(np.random.default_rng(0).normal(size=(7, len(QUANTILES)))).astype(np.float32)
    numbers = np.append(quantiles[0, 0] - 1, [quantiles[1, 1], quantiles[2, 5], quantiles[3, 9], 5.0, 0.0, np.nan])
    found = mlm.value_outcomes(quantiles, np.float32(numbers))  # pyright: ignore
    for row, number in enumerate(numbers[:-1]):
        errors = [(number - each, level) for each, level in zip(quantiles[row], QUANTILES, strict=True)]
        loss = np.mean([error * level if error > 0 else error * (level - 1) for error, level in errors])
        assert found["quantile_loss"][row] == pytest.approx(loss, rel=1e-4)
        assert found["coverage"][row] == (quantiles[row, 1] <= np.float32(number) <= quantiles[row, 9])
    assert found["coverage"][:5].tolist() == [0, 1, 1, 1, 0]
    assert np.isnan(found["quantile_loss"][6]) and np.isnan(found["coverage"][6])
