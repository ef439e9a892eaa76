"""The table of few labels: draws share their resamples of patients, runs on other patients do not."""

import numpy as np
import pytest

from behrt_jax.metrics import NUM_RESAMPLES, Estimate
from experiments.few_labels_table import ARMS, FORETOLD, average, format_table


def results(seed: int, above: float = 0.0, draws: int = 2) -> dict[tuple[int, int, str], Estimate]:
    """Draws of 16 patients whose replicates differ between draws by a constant alone; pre-trained is `above`."""
    noise = np.random.default_rng(seed).normal(scale=0.05, size=NUM_RESAMPLES)
    shifts = {(draw, arm): 0.1 * draw + above * (arm == "pretrained") for draw in range(draws) for arm in ARMS}
    return {(16, *key): Estimate(0.7 + shift, 0.7 + shift + noise, 40) for key, shift in shifts.items()}


def test_draws_are_averaged_and_their_resamples_kept_together():
    found = average([results(0)], 16, 2, "scratch")
    assert found.value == pytest.approx(0.75) and found.n == 40
    assert found.replicates.std() == pytest.approx(0.05, rel=0.1)  # not 0.05 / sqrt(2): the patients are the same


def test_runs_are_averaged_as_independent_though_their_resamples_have_the_same_seed():
    found = average([results(0)] * 4, 16, 2, "scratch")
    assert found.value == pytest.approx(0.75) and found.n == 160
    assert found.replicates.std() == pytest.approx(0.05 / np.sqrt(4), rel=0.15)


def test_the_difference_of_arms_is_paired_within_runs():
    table = format_table({"ill": [results(0, 0.03), results(1, 0.05)]}, {"ill": "AUROC"}, [16], 2)
    assert "| 0.750 | 0.790 | +0.040 [+0.040, +0.040] |" in table  # the noise is the same in both arms
    assert "16 patients: above in 1 of 1 tasks, in 1 with the interval." in table


def test_what_is_foretold_without_a_label_stands_beside():
    found = {"ill": [results(0), results(1)], "dead": [results(2)]}
    for number, its in enumerate(found["ill"]):
        its[FORETOLD] = Estimate(0.6 + 0.1 * number, np.full(NUM_RESAMPLES, 0.6 + 0.1 * number), 40)
    ill, dead = format_table(found, {"ill": "AUROC", "dead": "AUROC"}, [16], 2).splitlines()[2:4]
    assert ill.startswith("| ill | AUROC | 0.650 [0.650, 0.650] | 0.750 |")
    assert dead.startswith("| dead | AUROC |  | 0.750 |")
