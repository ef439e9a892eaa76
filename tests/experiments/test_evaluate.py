"""Evaluation of a trained workdir on other splits and other data."""

import runpy
import shutil
import signal
import sys

import pytest

from behrt_jax.baselines import masked_codes
from behrt_jax.evaluation.pretrained import evaluate_run
from tests import tiny
from tests.experiments.conftest import cut_data_set, evaluation_of


@pytest.fixture
def trained(whole, tmp_path, monkeypatch):
    """A copy of the trained workdir, so that its own evaluation stays; baselines are fitted briefly."""
    monkeypatch.setattr(masked_codes, "NETWORK_STEPS", 50)
    return shutil.copytree(whole[0], tmp_path / "trained")


@pytest.mark.slow
def test_another_split_by_the_command(trained, whole, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", f"--workdir={trained}", "--split=tuning"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("experiments.evaluate", run_name="__main__")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert not ended.value.code
    result, printed = evaluation_of(trained), capsys.readouterr().out
    assert result["split"] == "tuning" and 8 <= result["patients"] <= 10
    assert result["metrics"] != evaluation_of(whole[0])["metrics"]
    assert f"tuning: {result['patients']} patients" in printed and str(trained / "evaluation.json") in printed


@pytest.mark.slow
def test_other_data(trained, whole, tmp_path):
    other = cut_data_set(tmp_path / "other", skip=50)
    result = evaluate_run(trained, "held_out", str(other))
    assert result.about["split"] == "held_out" and 8 <= result.about["patients"] <= 10
    assert result.own != evaluation_of(whole[0])["metrics"]
    assert evaluation_of(trained) == result.to_dict()


def test_data_that_changed_since_training_is_refused(trained, tmp_path):
    with tiny.edited_config(trained) as config:
        config["recipe"]["data"]["path"] = str(cut_data_set(tmp_path / "other", skip=50))
    with pytest.raises(ValueError, match="gives another vocabulary than .* was trained with"):
        evaluate_run(trained, "held_out")
