"""The table of few labels: a bootstrap of patients and of draws, averaged over runs, and the cells that are above."""

import numpy as np
import pytest

from behrt_jax.metrics.bootstrap import NUM_RESAMPLES, Estimate
from behrt_jax.probing.table import AGE, COUNTS, OURS, SCRATCH, average, format_table


def results(seed: int, above: float = 0.0, apart: float = 0.0, draws: int = 10, size: int = 16) -> dict:
    """Draws whose replicates share the noise of patients and lie `apart` by draw; ours is `above` the others."""
    noise = np.random.default_rng(seed).normal(scale=0.05, size=NUM_RESAMPLES)
    shifts = apart * (np.arange(draws) - (draws - 1) / 2)
    found = {(0, 0, AGE): Estimate(0.6, 0.6 + noise, 40)}
    for arm, level in ((COUNTS, 0.7), (OURS, 0.7 + above)):
        found |= {(size, n, arm): Estimate(level + s, level + s + noise, 40) for n, s in enumerate(shifts)}
    return found


def test_patients_are_resampled_together_in_all_draws():
    found = average([results(0)], 16, COUNTS)
    assert found.value == pytest.approx(0.7) and found.n == 40
    assert found.replicates.std() == pytest.approx(0.05, rel=0.1)  # not 0.05 / sqrt(10): the patients are the same


def test_intervals_hold_the_spread_of_draws_too():
    found = average([results(0, apart=0.1)], 16, COUNTS)
    between = 0.1 * np.arange(10).std()
    assert found.value == pytest.approx(0.7)
    assert found.replicates.std() == pytest.approx(np.hypot(0.05, between / np.sqrt(10)), rel=0.1)


def test_runs_are_averaged_as_independent_though_their_resamples_have_the_same_seed():
    found = average([results(0)] * 4, 16, COUNTS)
    assert found.n == 160 and found.replicates.std() == pytest.approx(0.05 / 2, rel=0.15)


def test_differences_are_paired_in_patients_and_draws():
    table = format_table({"ill": [results(0, 0.03, 0.1), results(1, 0.05, 0.1)]}, {"ill": "AUROC"}, [16])
    row = table.splitlines()[2]
    assert "| 0.600 | 0.700 | 0.740 | +0.040 [+0.040, +0.040] | +0.140" in row
    assert "against counts, age and sex, 1 cells: above in 1, in 1 by the whole interval; below by the whole" in table


def test_an_arm_stands_in_the_table_where_it_was_measured():
    ill, dead = results(0), results(1)
    ill |= {(16, draw, SCRATCH): Estimate(0.5, np.full(NUM_RESAMPLES, 0.5), 40) for draw in range(3)}
    head, _, first, second = format_table({"ill": [ill], "dead": [dead]}, {"ill": "A", "dead": "B"}, [16]).splitlines()[
        :4
    ]
    places = [cell.strip() for cell in head.split("|")]
    place = places.index("from scratch")
    assert first.split("|")[place].strip() == "0.500" and not second.split("|")[place].strip()
    assert "fine-tuned end to end" not in head
