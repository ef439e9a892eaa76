"""Explanations as a user runs them, the truth they are held against, and whose histories may be written."""

import json
import shutil

import numpy as np
import pytest

from behrt_jax.data.metadata import check_allowed, is_synthetic
from behrt_jax.interpret import ground_truth
from tests.experiments.conftest import ROOT

ABOUT = "metadata/dataset.json"


def test_only_data_that_says_so_is_synthetic(tmp_path):
    assert is_synthetic(ROOT / "data" / "synthea-1151") and not is_synthetic(tmp_path)
    (tmp_path / "metadata").mkdir()
    for text in ('{"etl_name": "MIMIC-IV_ETL"}', "{}", "[]", "no JSON"):
        (tmp_path / ABOUT).write_text(text)
        assert not is_synthetic(tmp_path)
        with pytest.raises(ValueError, match="patients may be real.*--patients=0, or give --show_patients"):
            check_allowed(tmp_path, show_patients=False)
        check_allowed(tmp_path, show_patients=True)
    (tmp_path / ABOUT).write_text('{"etl_name": "behrt_jax.data.simulate"}')
    check_allowed(tmp_path, show_patients=False)


def test_agreement_is_perfect_with_the_truth_and_none_with_noise():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(40, 60)) * (rng.random((40, 60)) < 0.5)
    truth[0, 3:] = 0  # too few codes with an effect
    truth[1, 8:] = np.nan  # too few codes
    own = ground_truth.agreement(truth, truth, np.arange(40))
    assert own.patients.tolist() == list(range(2, 40))
    for values in own.values.values():
        np.testing.assert_allclose(values, 1.0)
    turned = ground_truth.agreement(truth, -truth, np.arange(40)).values
    np.testing.assert_allclose([*turned["auroc"], *turned["pearson"]], [1.0] * 38 + [-1.0] * 38)
    noise = ground_truth.agreement(truth, rng.random(truth.shape), np.arange(40)).values
    assert abs(noise["auroc"].mean() - 0.5) < 0.1 and abs(noise["spearman"].mean()) < 0.1


@pytest.mark.slow
def test_examples_are_written_and_methods_compared(workplace, joint):
    (workplace.data / ABOUT).unlink(missing_ok=True)
    folder = workplace.folder / "explained"
    shutil.copytree(joint, folder)
    given = [f"--workdir={folder}", "--patients=2", "--num_patients=4"]
    refused = workplace.run(given, "experiments.explain")
    assert refused.returncode == 2 and refused.stderr.startswith("error:") and "--show_patients" in refused.stderr
    done = workplace.run([*given, "--show_patients"], "experiments.explain")
    assert done.returncode == 0, done.stderr
    assert "against what the same model says without each code" in done.stdout and "random" in done.stdout
    found = json.loads((folder / "attributions.json").read_text())
    assert found["asked"] == "next_visit" and not found["synthetic"] and len(found["patients"]) == 2
    for patient in found["patients"]:
        assert [prediction["probability"] for prediction in patient["predictions"]] == sorted(
            (prediction["probability"] for prediction in patient["predictions"]), reverse=True
        )
        drivers = patient["predictions"][0]["drivers"]
        assert set(drivers) == set(found["methods"])
        assert all(len(values) == len(patient["tokens"]) for values in drivers.values())
        numbers = [visit["visit"] for visit in patient["visits"]]
        assert numbers == list(range(len(numbers))) and patient["came"]
        assert {token["visit"] for token in patient["tokens"]} <= {*numbers, None}
