"""The sweep: finished runs are not repeated, failures are named, and changed inputs are refused."""

import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.studies import sweep
from tests.experiments.conftest import ROOT, cut_data_set, evaluation_of

CHANGES_NOTHING = "nothing to do"


@pytest.fixture
def environment(workplace, monkeypatch):
    """Runs start in the repository, with the workplace's quick compilation."""
    monkeypatch.chdir(ROOT)
    for name, value in workplace.environment.items():
        monkeypatch.setenv(name, value)


def pretraining(workplace, folder, **overrides) -> sweep.Run:
    given = [word for word in workplace.arguments("", train__num_steps=4, **overrides) if "--config." in word]
    return sweep.training("pretrain", "configs/small.py", folder, {"train.evaluate_every": 2}, *given)


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_a_finished_run_is_not_repeated_a_failing_one_is_named_and_a_changed_input_refused(workplace, tmp_path):
    data = cut_data_set(tmp_path / "meds", skip=0)
    good = pretraining(workplace, tmp_path / "good", data__path=data)
    bad = pretraining(workplace, tmp_path / "bad", model__num_heads=3)
    with pytest.raises(
        ValueError, match="1 of 2 runs failed: 'three heads' with status 2: error: .*num_heads"
    ) as error:
        sweep.run_all({"as it is": good, "three heads": bad}, jobs=2)
    assert "as it is" not in str(error.value) and str(bad.log) in str(error.value)
    assert evaluation_of(good.workdir)["baselines"] == {}
    tuning = sweep.read_metrics(good.workdir, "tuning")
    assert [line["step"] for line in tuning] == [2, 4]

    first = good.log.read_text()
    files = {file: file.stat().st_mtime_ns for file in good.workdir.iterdir()}
    sweep.run_all({"as it is": good})
    assert CHANGES_NOTHING in good.log.read_text().removeprefix(first)
    assert {file: file.stat().st_mtime_ns for file in good.workdir.iterdir()} == files

    shard = next((data / "data").glob("*.parquet"))
    other = cut_data_set(tmp_path / "other", skip=50)
    shard.write_bytes(next((other / "data").glob("*.parquet")).read_bytes())
    (data / "metadata" / "subject_splits.parquet").write_bytes(
        (other / "metadata" / "subject_splits.parquet").read_bytes()
    )
    with pytest.raises(ValueError, match="'as it is' with status 2: error: .*good"):
        sweep.run_all({"as it is": good})
    assert {file: file.stat().st_mtime_ns for file in good.workdir.iterdir()} == files
    with pytest.raises(ValueError, match="'longer' with status 2: error: .*train.num_steps"):
        sweep.run_all({"longer": good._replace(arguments=(*good.arguments, "--config.train.num_steps=6"))})


def test_each_job_has_its_share_of_the_cores(tmp_path, monkeypatch):
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    before, seen = os.sched_getaffinity(0), []

    def execute(*arguments):
        time.sleep(0.2)  # so that both threads take part
        shown = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
        seen.append(subprocess.run(shown, stdout=subprocess.PIPE, text=True).stdout)
        return 0

    monkeypatch.setattr(sweep, "_execute", execute)
    sweep.run_all({str(number): sweep.Run("none", tmp_path, ()) for number in range(4)}, jobs=2)
    cores = sorted(before)
    assert {*seen} == {f"{cores[0::2]}\n", f"{cores[1::2]}\n"} and os.sched_getaffinity(0) == before


def test_an_interrupted_sweep_stops_its_runs_and_starts_no_other(tmp_path):
    """A run that would sleep for ever ends, and the next one has no log."""
    program = f"""
import signal
from pathlib import Path
from behrt_jax.training.interrupts import exit_on_signal
from experiments.studies import sweep
signal.signal(signal.SIGTERM, exit_on_signal)  # as every command does
sweep.sys.executable = {str(tmp_path / "sleeper")!r}
runs = {{name: sweep.Run("none", Path({str(tmp_path)!r}) / name, ()) for name in ("first", "second")}}
sweep.run_all(runs)
"""
    sleeper = tmp_path / "sleeper"
    sleeper.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    sleeper.chmod(0o755)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not (tmp_path / "second.log").exists()


def test_runs_that_are_missing_are_errors_and_tables_are_markdown(tmp_path):
    with pytest.raises(ValueError, match="evaluation.json: does not exist; expected a finished run"):
        sweep.read_evaluation(tmp_path)
    with pytest.raises(ValueError, match="found no metrics of tuning; expected a finished run"):
        sweep.read_metrics(tmp_path, "tuning")
    assert sweep.mean_and_range([0.5, 0.6, 0.1]) == "0.400 [0.100, 0.600]" and sweep.mean_and_range([]) == ""
    assert (
        sweep.format_table(["", "loss"], [["a", "1"], ["b", "2"]]) == "|  | loss |\n|---|---|\n| a | 1 |\n| b | 2 |\n"
    )
