"""What is published of a run, and what must not be."""

import dataclasses
import json
import platform
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

import behrt_jax
from behrt_jax.data.config import DataConfig
from behrt_jax.data.vocabulary import ValueScale, Vocabulary
from behrt_jax.publishing import checks, model_card, publish
from behrt_jax.recipes import default

SIMULATED = model_card.Origin("simulated", "Apache-2.0", "Made by Synthea.")


@pytest.fixture(scope="session")
def published(workplace, whole) -> tuple[Path, list[str]]:
    output = workplace.folder / "published"
    return output, publish.publish(whole[0], output, SIMULATED, 1, "one core")


def copy_of(run: Path, folder: Path) -> Path:
    return shutil.copytree(run, folder / "copy")


def test_the_best_parameters_are_loaded_as_they_were(published, whole):
    mine, theirs = behrt_jax.load(published[0]), behrt_jax.load(whole[0])
    jax.tree.map(np.testing.assert_array_equal, mine.params, theirs.params)
    assert mine.vocabulary.fingerprint == theirs.vocabulary.fingerprint and mine.model == theirs.model
    (step,) = (published[0] / "checkpoints").iterdir()
    losses = {line["step"]: line["loss"] for line in read_tuning(whole[0])}
    assert int(step.name) == min(losses, key=lambda number: losses[number])
    assert json.loads((step / "metrics" / "metrics").read_text())["loss"] == losses[int(step.name)]


def read_tuning(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{**line, "loss": line["mlm/loss"]} for line in lines if line["split"] == "tuning"]


def test_nothing_of_the_optimizer_the_logs_or_the_machine_goes_out(published, whole, workplace):
    folder, lines = published
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "vocabulary.json",
        "evaluation.json",
        "checkpoints",
    }
    assert not [path for path in folder.rglob("*") if path.name in ("rest", "opt_state")]
    for file in (path for path in folder.rglob("*") if path.is_file()):
        for name in (str(workplace.folder), str(whole[0]), platform.node(), str(Path.cwd())):
            by_chance = file.parent.name == "d" and len(name) < 5  # two letters are somewhere in compressed numbers
            assert by_chance or name.encode() not in file.read_bytes(), file
    assert json.loads((folder / "config.json").read_text())["recipe"]["data"]["path"] == "meds"
    assert "data.path became 'meds'" in lines
    assert any(line.startswith("goes out: ") and "in how many train patients" in line for line in lines)


def test_a_file_cut_short_is_told(published, tmp_path):
    folder = copy_of(published[0], tmp_path)
    blob = max((folder / "checkpoints").rglob("d/*"), key=lambda file: file.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(ValueError, match="none of the checkpoints"):
        behrt_jax.load(folder)


def test_the_card_says_what_a_reader_needs(published):
    card = (published[0] / "README.md").read_text()
    config, vocabulary, _, params = behrt_jax.load(published[0])
    for text in (
        "license: apache-2.0",
        "library_name: behrt_jax",
        "Not for clinical use",
        "## Limits",
        "Made by Synthea. Licence: Apache-2.0.",
        "on one core",
        'behrt_jax.load("published")',
        f"{behrt_jax.count_parameters(params):,} parameters",
        f"| {len(vocabulary):,} |",
        "BEHRT (this run)",
    ):
        assert text in card
    value = json.loads((published[0] / "evaluation.json").read_text())["metrics"]["mlm/accuracy"]
    assert f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" in card
    assert str(config.train.num_steps) in card


def test_codes_of_few_real_patients_are_refused(published, whole, tmp_path):
    vocabulary = behrt_jax.load(whole[0]).vocabulary
    few = sum(patients < 11 for patients in vocabulary.patients)
    floor = publish.FLOORS["real"]
    with pytest.raises(ValueError, match=rf"vocabulary.json: {few} codes are of fewer than 11 .*--min_patients"):
        publish.publish(whole[0], tmp_path / "real", SIMULATED, floor)
    assert not list(tmp_path.iterdir())
    publish.publish(whole[0], tmp_path / "allowed", SIMULATED._replace(patients="real"), min(vocabulary.patients))
    assert "traces of them" in (tmp_path / "allowed" / "README.md").read_text()


@pytest.mark.parametrize(
    ("edges", "patients", "floor", "is_right"),
    [
        ((137.0, 142.0), (20, 20, 20), 11, False),
        ((140.0, 150.0), (20, 20, 20), 11, True),
        ((140.0, 150.0), (20, 10, 20), 11, False),
        ((140.0, 150.0), (20, 10, 20), 5, True),
        ((140.0, 150.0), (20, 9, 20), 5, False),  # 10 at least
        ((140.0, 150.0), (20, 20), 5, False),  # one bin is of so few that it is no token
    ],
)
def test_bins_of_values_that_tell_of_patients_are_refused(edges, patients, floor, is_right):
    codes = tuple(f"LAB//1//Q{place}" for place in range(1, len(patients) + 1))
    binned = Vocabulary(codes, patients, patients, {"LAB//1": edges})
    if is_right:
        checks.check_value_edges(binned, floor)
        return
    with pytest.raises(ValueError, match=r"vocabulary.json: the values of 1 codes .*--config.data.value_digits=2"):
        checks.check_value_edges(binned, floor)


@pytest.mark.parametrize(
    ("median", "deviation", "patients", "is_right"),
    [(138.2, 3.5, 20, True), (138.23, 3.5, 20, False), (138.2, 3.46, 20, False), (138.2, 3.5, 10, False)],
)
def test_scales_of_values_that_tell_of_patients_are_refused(median, deviation, patients, is_right):
    scales = {"LAB//1": {"mmol/L": ValueScale(median, deviation, patients)}}
    scaled = Vocabulary(("LAB//1",), (50,), (50,), {}, scales)
    if is_right:
        checks.check_value_edges(scaled, 11)
        return
    with pytest.raises(ValueError, match=r"vocabulary.json: the values of 1 codes .*--config.data.value_digits=2"):
        checks.check_value_edges(scaled, 11)


def test_nothing_of_one_patient_goes_out(whole, tmp_path):
    """In a band of 76 rows; nor what it could be computed from with the whole: the smallest other band."""
    run, floor = copy_of(whole[0], tmp_path), 3
    entry = {"value": 0.61234, "low": 0.58765, "high": 0.63456, "n": 4321, "patients": 300}
    one = {"value": 0.51239, "low": 0.41238, "high": 0.71237, "n": 76, "patients": 1}
    next_smallest = {**entry, "value": 0.66239, "patients": 40}
    bands = {"age=80+": one, "age=60-80": next_smallest, "age=20-40": entry}
    metrics = {"mlm/accuracy": entry} | {f"mlm/accuracy/{name}": each for name, each in bands.items()}
    versus = {name: {"value": each["value"] - 0.2, "low": 0.0, "high": 0.9} for name, each in metrics.items()}
    result = {"split": "held_out", "patients": 300, "metrics": metrics}
    result |= {"baselines": {"linear": metrics}, "versus": {"linear": versus}}
    (run / "evaluation.json").write_text(json.dumps(result))
    origin = SIMULATED._replace(patients="real")
    lines = publish.publish(run, tmp_path / "out", origin, floor)
    assert any(line.startswith("left out: 2 metrics of fewer than 3 patients") for line in lines)
    texts = [file.read_text(errors="ignore") for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert any("0.61234" in text for text in texts)
    for value in ("0.51239", "0.41238", "0.512 [", "0.66239", "0.662 [", "age=80+", "age=60-80"):
        assert not any(value in text for text in texts), value


def test_splits_and_evaluations_of_few_patients_are_refused(tmp_path):
    report = {"patients/train": 90, "patients/tuning": 10, "patients/held_out": 20}
    checks.check_splits(report, 10)
    with pytest.raises(ValueError, match="tuning: fewer than 11 patients"):
        checks.check_splits(report, 11)
    (tmp_path / "evaluation.json").write_text(json.dumps({"split": "held_out", "patients": 3, "metrics": {}}))
    with pytest.raises(ValueError, match="is of 3 held-out patients; expected 11 or more"):
        checks.read_evaluation(tmp_path / "evaluation.json", 11)


def test_small_groups_and_other_runs_are_left_out(tmp_path):
    entry = {"value": 0.5, "low": 0.4, "high": 0.6}
    whole = {
        "next_visit/x": {**entry, "n": 90, "patients": 90},
        "next_visit/x/type=A": {**entry, "n": 76, "patients": 1},
    }
    result = {"split": "held_out", "patients": 90, "metrics": whole, "baselines": {"linear": whole, "runs/b": whole}}
    result["versus"] = {"linear": dict.fromkeys(whole, entry), "/home/me/b": whole}
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    found, dropped = checks.read_evaluation(tmp_path / "evaluation.json", floor=11)
    assert dropped == 1 and found["baselines"].keys() == found["versus"].keys() == {"linear"}
    for table in (found["metrics"], found["baselines"]["linear"], found["versus"]["linear"]):
        assert table.keys() == {"next_visit/x"}


@pytest.mark.parametrize("content", [None, "{", '{"split": "tuning"}'])
def test_a_run_without_held_out_scores_is_refused(whole, tmp_path, content):
    folder = copy_of(whole[0], tmp_path)
    (folder / "evaluation.json").unlink()
    if content:
        (folder / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match=r"evaluation.json: .*experiments.evaluate"):
        publish.publish(folder, tmp_path / "out", SIMULATED, floor=1)


def test_a_damaged_best_checkpoint_is_refused(whole, tmp_path):
    folder = copy_of(whole[0], tmp_path)
    steps = {int(path.name): path for path in (folder / "checkpoints").iterdir()}
    losses = {line["step"]: line["loss"] for line in read_tuning(folder) if line["step"] in steps}
    next((steps[min(losses, key=losses.__getitem__)] / "params").rglob("d/*")).unlink()
    with pytest.raises(ValueError, match=r"none of the checkpoints \[\d+\] can be read"):
        publish.publish(folder, tmp_path / "out", SIMULATED, floor=1)


def test_paths_of_a_users_tables_do_not_go_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = DataConfig(**default.get_config().data.to_dict())
    tables = ("icd", "/data/hospital/groups.csv", f"{tmp_path}/own.csv", "beside.csv")
    config = dataclasses.replace(config, unit_table="/data/hospital/units.csv", roll_up=tables, path="../meds")
    found, changes = checks.without_places(config)
    assert (found.unit_table, found.path) == ("units.csv", "meds")
    assert found.roll_up == ("icd", "groups.csv", "own.csv", "beside.csv")
    assert [change.split()[0] for change in changes] == ["data.path", "data.unit_table", "data.roll_up"]
    again, changes = checks.without_places(dataclasses.replace(found, unit_table=""))
    assert not changes and again.unit_table == ""


def test_a_file_that_names_the_machine_is_refused(tmp_path):
    (tmp_path / "README.md").write_text(f"trained in {Path.cwd()}/runs")
    with pytest.raises(ValueError, match=r"README.md: names .* take it out"):
        checks.check_anonymous(tmp_path)


@pytest.mark.slow
def test_the_command_refuses_to_write_over_other_folders(published, whole, workplace):
    def run(output: Path, *more: str) -> subprocess.CompletedProcess:
        given = [f"--workdir={whole[0]}", f"--output={output}", "--patients=simulated", "--license=MIT", *more]
        return workplace.run(given, "experiments.publish")

    done = run(whole[0], "--overwrite")
    assert done.returncode == 2 and "error: --output=" in done.stderr and (whole[0] / "metrics.jsonl").exists()
    again = workplace.folder / "again"
    shutil.copytree(published[0], again)
    assert run(again).returncode == 2
    done = run(again, "--overwrite")
    assert done.returncode == 0 and "license: mit" in (again / "README.md").read_text(), done.stderr
