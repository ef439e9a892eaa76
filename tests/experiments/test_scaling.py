"""Learning curves: fits with a known answer, and a real curve of two tiny runs."""

import json
import shutil

import numpy as np
import pytest

from behrt_jax.metrics import power_law
from experiments.studies import scaling
from tests.experiments.conftest import ROOT, evaluation_of, has_curve, metrics_of

SIZES = np.array([100, 200, 400, 800, 1600])


def result(loss: float, accuracy: float) -> dict:
    found = {"mlm/loss": loss, "mlm/accuracy": accuracy}
    return {
        "metrics": {name: {"value": x, "low": x - 0.1, "high": x + 0.1, "n": 10} for name, x in found.items()},
    }


@pytest.mark.parametrize("known", [(1.2, 30.0, 0.7), (0.5, 8.0, 0.3), (2.0, 4.0, 0.5)])
def test_the_fit_recovers_floor_height_and_exponent(known):
    losses = known[0] + known[1] * SIZES.astype(float) ** -known[2]
    found, errors = power_law.fit_power_law(SIZES, losses)
    assert np.allclose(found, known, rtol=1e-3)
    assert (errors < 1e-3 * np.abs(found)).all()


def test_noise_widens_the_errors_and_the_truth_stays_within_them():
    rng = np.random.default_rng(0)
    losses = 1.2 + 30.0 * SIZES.astype(float) ** -0.7
    found, errors = power_law.fit_power_law(SIZES, losses + rng.normal(scale=0.01, size=len(SIZES)))
    assert (errors > 1e-3).all() and (np.abs(found - (1.2, 30.0, 0.7)) < 4 * errors).all()


def test_a_fit_of_three_numbers_needs_four_sizes():
    with pytest.raises(ValueError, match=r"a power law: found 3 sizes; expected four or more"):
        power_law.fit_power_law(SIZES[:3], np.array([3.0, 2.0, 1.5]))


def test_the_table_has_a_line_a_size_and_the_fit_below_it():
    losses = 0.5 + 10.0 * SIZES.astype(float) ** -0.5
    text = scaling.describe({int(size): result(loss, 0.5) for size, loss in zip(SIZES, losses, strict=True)})
    lines = text.splitlines()
    assert lines[0] == "| train patients | mlm/loss | mlm/accuracy |"
    assert lines[2] == "| 100 | 1.500 [1.400, 1.600] | 0.500 [0.400, 0.600] |"
    assert [line.split("|")[1].strip() for line in lines[2:7]] == ["100", "200", "400", "800", "1,600"]
    twice = 0.5 + 10.0 * 3200**-0.5
    assert lines[-1].startswith("mlm/loss = 0.50 + 10 N^-0.50 (standard error of the exponent 0.00)")
    assert lines[-1].endswith(f"twice 1,600 patients would bring it from 0.750 to {twice:.3f}")
    assert "mlm/accuracy =" not in text


def test_a_table_of_few_sizes_has_no_fit_and_no_metric_that_one_lacks():
    few = {100: result(1.5, 0.5), 200: result(1.2, 0.6)}
    del few[200]["metrics"]["mlm/accuracy"]
    assert scaling.describe(few).splitlines() == [
        "| train patients | mlm/loss |",
        "|---|---|",
        "| 100 | 1.500 [1.400, 1.600] |",
        "| 200 | 1.200 [1.100, 1.300] |",
    ]


def test_a_curve_is_worth_the_patients_at_which_another_comes_to_its_losses():
    def curve(sizes, shift):
        return {size: result(1.0 + shift * size**-0.5, 0.5) for size in sizes}

    # 1 + 5 N^-0.5 at N patients is what 1 + 10 N^-0.5 reaches at four times as many.
    lines = scaling.compare(curve((100, 400), 5.0), curve((50, 100, 200, 400, 800), 10.0)).splitlines()
    assert [line.partition(": worth ")[0] for line in lines] == [
        "mlm/loss 1.500 at 100 patients",
        "mlm/loss 1.250 at 400 patients",
    ]
    worth = [float(line.split()[-4].replace(",", "")) for line in lines]
    assert worth == pytest.approx([400, 1600], rel=0.01)
    assert power_law.patients_for(0.9, np.array([1.0, 10.0, 0.5])) == float("inf")
    lower = scaling.compare(curve((100,), -5.0), curve((50, 100, 200, 400, 800), 10.0))
    assert lower == "mlm/loss 0.500 at 100 patients: below the floor of the other's fit\n"


def test_a_folder_without_runs_is_no_curve(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run"):
        scaling.read_curve(tmp_path)


@pytest.mark.parametrize("words", [["a"], ["100", "-5"], ["0"], ["1.5"], [""]])
def test_sizes_are_numbers_of_patients(words):
    with pytest.raises(ValueError, match=rf"--sizes: found {words[-1]}; expected numbers of patients"):
        scaling.read_sizes(words, 400)
    assert scaling.read_sizes(["400", "100", "400"], 400) == [100, 400]


def test_sizes_beyond_the_patients_of_the_data_are_refused():
    with pytest.raises(ValueError, match=r"--sizes: found 1,600, 3,200; expected at most 806, the train patients"):
        scaling.read_sizes(["400", "800", "1600", "3200"], 806)


def test_the_fit_is_on_the_patients_that_runs_were_trained_on():
    """Sizes asked for beyond those there are would bend the fit: all of them are the same point."""
    losses = 1.0 + 20.0 * np.array([100, 200, 400, 806], float) ** -0.6
    real = [100, 200, 400, 806, 806, 806]
    runs = [result(losses[min(place, 3)], 0.5) | {"train_patients": size} for place, size in enumerate(real)]
    found = scaling.by_patients(runs)
    assert list(found) == [100, 200, 400, 806]
    (floor, _, _), _ = power_law.fit_power_law(np.array(list(found)), scaling._values(found, "mlm/loss"))
    assert floor == pytest.approx(1.0, abs=1e-3)
    asked = np.array([100, 200, 400, 800, 1600, 3200])
    (wrong, _, _), _ = power_law.fit_power_law(asked, np.append(losses, losses[[3, 3]]))
    assert wrong > 1.05


def test_a_run_says_how_many_patients_it_was_trained_on_and_of_an_older_one_they_are_counted(joint, tmp_path):
    expected = evaluation_of(joint)["train_patients"]
    assert scaling.read_run(joint)["train_patients"] == expected <= 40
    older = shutil.copytree(joint, tmp_path / "older", ignore=shutil.ignore_patterns("checkpoints"))
    content = evaluation_of(joint)
    del content["train_patients"]
    (older / "evaluation.json").write_text(json.dumps(content))
    assert scaling.read_run(older)["train_patients"] == expected
    (older / "evaluation.json").write_text(json.dumps({**content, "split": "tuning"}))
    with pytest.raises(ValueError, match="is of other patients than held_out"):
        scaling.read_run(older)


@pytest.mark.slow
def test_two_sizes_are_trained_once(workplace):
    folder = workplace.folder / "curve"
    tiny = [word for word in workplace.arguments("curve", train__num_steps=4) if "--config." in word]
    arguments = [f"--config={ROOT / 'configs' / 'small.py'}", f"--workdir={folder}", "--sizes=30,15", *tiny]
    first = workplace.run(arguments, "experiments.studies.scaling")
    assert first.returncode == 0, first.stderr
    started = [line.split(":")[0] for line in first.stdout.splitlines() if "experiments.pretrain" in line]
    assert started == ["15 patients", "30 patients"]
    for size in (15, 30):
        log = (folder / f"{size}.log").read_text()
        assert f"of {size} train patients" in log and "fitting baselines" not in log
        assert evaluation_of(folder / str(size))["baselines"] == {}
    assert metrics_of(folder / "15", "tuning") != metrics_of(folder / "30", "tuning")
    table = (folder / "scaling.md").read_text()
    assert table.splitlines()[2].startswith("| 15 |") and table.splitlines()[3].startswith("| 30 |")
    assert has_curve(folder / "scaling.png")

    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/*")}
    logs = [(folder / f"{size}.log").read_text() for size in (15, 30)]
    again = workplace.run(arguments, "experiments.studies.scaling")
    assert again.returncode == 0, again.stderr
    assert table in again.stdout
    later = [(folder / f"{size}.log").read_text() for size in (15, 30)]
    assert all("nothing to do" in new.removeprefix(old) for old, new in zip(logs, later, strict=True))
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*/*")} == before
