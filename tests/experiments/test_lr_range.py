"""The learning-rate range test on curves with a known answer, and on a tiny model whose loss falls, then rises."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import small
from experiments.studies import lr_range
from tests.experiments.conftest import TINY, has_curve

RATES = np.geomspace(1e-5, 1.0, 51)  # ten steps a decade


def test_the_steepest_fall_and_the_rise_by_half_are_found():
    # Flat at 6, falls by 4 around 1e-3, and rises again from 0.1 on.
    decades = np.log10(RATES)
    losses = 4 - 2 * np.tanh(2 * (decades + 3)) + np.where(decades > -1, 8 * (decades + 1), 0)
    steepest, diverges = lr_range.advise(RATES, losses)
    assert steepest == pytest.approx(1e-3, rel=1e-6)
    first = np.flatnonzero(losses[40:] >= 1.5 * losses.min())[0] + 40
    assert diverges == RATES[first] and 0.1 < diverges < 0.2


def test_nan_counts_as_diverged_and_none_as_infinity():
    falling = np.linspace(6, 2, 51)
    assert lr_range.advise(RATES, falling)[1] == np.inf
    broken = falling.copy()
    broken[-1] = np.nan
    assert lr_range.advise(RATES, broken)[1] == RATES[-1]


def test_a_loss_that_only_rises_is_no_error():
    steepest, diverges = lr_range.advise(RATES, np.linspace(2, 8, 51))
    assert steepest == RATES[0] and diverges == RATES[np.flatnonzero(np.linspace(2, 8, 51) >= 3)[0]]


@pytest.mark.usefixtures("quick_compilation")
def test_a_tiny_model_learns_and_then_diverges(workplace, tmp_path):
    config: ConfigDict = small.get_config()
    config.update_from_flattened_dict({**TINY, "data.path": str(workplace.data)})
    config.data.prepared_dir = str(workplace.folder / "prepared")
    rates, losses = lr_range.measure(config, 60, 1e-4, 100.0)
    assert rates[0] == pytest.approx(1e-4) and len(rates) == len(losses) <= 60
    assert np.allclose(np.diff(np.log(rates)), np.log(1e6) / 59)
    best = int(np.nanargmin(losses))
    assert 0 < best < len(losses) - 1
    assert losses[best] < losses[0] - 0.2 and not losses[-1] < 1.5 * losses[best]
    steepest, diverges = lr_range.advise(rates, losses)
    assert 1e-4 < steepest <= rates[best] < diverges <= 100
    lr_range.draw(rates, losses, str(tmp_path / "curve.png"))
    assert has_curve(tmp_path / "curve.png")
