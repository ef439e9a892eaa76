"""The grid over which baselines' networks are tuned."""

import pytest

from behrt_jax.baselines import masked_codes, next_visit
from behrt_jax.baselines.mlp import Recipe
from behrt_jax.evaluation.loaded_run import load_run
from experiments.studies import tune_baselines

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_grid_holds_each_pair_once_and_regressions_no_dropout():
    found = tune_baselines.read_grid(["0.003", "0.01"], ["0", "0.5"], 64)
    assert found == {
        "rate 0.003, dropout 0": Recipe(0.003, 64, 0.0),
        "rate 0.003, dropout 0.5": Recipe(0.003, 64, 0.5),
        "rate 0.01, dropout 0": Recipe(0.01, 64, 0.0),
        "rate 0.01, dropout 0.5": Recipe(0.01, 64, 0.5),
    }
    assert list(tune_baselines.read_grid(["0.03"], ["0.3", "0.5"], 0).values()) == [Recipe(0.03)]


@pytest.mark.parametrize(
    ("rates", "dropouts", "message"),
    [
        (["fast"], ["0.5"], "--rates: found fast"),
        (["0"], ["0.5"], "--rates: found 0;"),
        (["nan"], ["0.5"], "--rates: found nan"),
        (["0.1"], ["1"], "--dropouts: found 1;"),
        (["0.1"], ["-0.1"], "--dropouts: found -0.1"),
    ],
)
def test_numbers_out_of_range_are_refused(rates, dropouts, message):
    with pytest.raises(ValueError, match=message):
        tune_baselines.read_grid(rates, dropouts, 512)


@pytest.mark.slow
def test_each_network_of_the_grid_is_fitted_on_both_objectives(joint, monkeypatch):
    monkeypatch.setattr(masked_codes, "NETWORK_STEPS", 60)
    monkeypatch.setattr(masked_codes, "CHECK_EVERY", 20)
    monkeypatch.setattr(next_visit, "MAX_STEPS", 60)
    run = load_run(joint, "tuning", None, lambda line: None)
    recipes = tune_baselines.read_grid(["0.00001", "0.003"], ["0"], 16)
    for tune in (tune_baselines.tune_masked, tune_baselines.tune_next_visits):
        lines = []
        tune(run, recipes, lines.append)
        last = [line for line in lines if line.startswith("step ")][-1].partition(": ")[2]
        losses = dict(part.rsplit(" ", 1) for part in last.split(", rate "))
        slow, fast = (float(losses[name]) for name in ("1e-05, dropout 0", "rate 0.003, dropout 0"))
        assert fast < slow  # a rate of nearly nothing stays at the frequencies of train
