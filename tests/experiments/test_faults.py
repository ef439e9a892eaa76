"""Training, preparation and conversion that are stopped at random moments end as if they had never been stopped.

The thirty stops of docs/reliability.md: pytest -m slow tests/experiments/test_faults.py
"""

import random
import re
import signal
import time

import polars as pl
import pytest

from behrt_jax.data import locks
from behrt_jax.training import workdir
from tests.experiments.conftest import NUM_STEPS, assert_same_end, evaluation_of, metrics_of
from tests.sources.tiny import SYNTHEA, read_events, write_csv

pytestmark = pytest.mark.current_only
STOPS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
QUICK = {"behrt_jax.baselines.masked_codes.NETWORK_STEPS": 50}
MOST_RUNS = 20
LAST = re.compile("^(wrote|written to) ", re.MULTILINE)  # begins the last line of a run and of a conversion


def stop(command, seconds: float, number: int) -> float | None:
    """Sends a signal to a command a while after its first line; returns None if it stopped it, else how long it ran.

    Checks how the command ended. Before its first line it imports libraries, and Python's own handlers are at work.
    """
    command.wait_until(lambda: command.printed() or command.errors())
    begin = time.monotonic()
    command.wait_until(lambda: time.monotonic() > begin + seconds)
    ran = time.monotonic() - begin
    command.send_signal(number)
    printed, errors = command.communicate()
    assert "Traceback" not in errors and "warning" not in printed, errors
    if LAST.search(printed):  # a signal that finds Python itself ending gives any status
        return ran
    expected = -number if number == signal.SIGKILL else 128 + number
    assert command.returncode == expected, f"{command.returncode} after {seconds:.2f} s and {number!r}: {errors}"
    return None


def survive(workplace, whole, stops: int, seed: int) -> list[str]:
    """Stops runs at random moments, until so many stops were survived; returns the folders of the runs."""
    rng, survived, runs, longest = random.Random(seed), 0, [], 8.0
    while survived < stops:
        assert len(runs) < MOST_RUNS, f"only {survived} stops reached {MOST_RUNS} runs"
        name = f"faults_{seed}_{len(runs)}"
        arguments = workplace.arguments(name, data__prepared_dir=workplace.folder / f"prepared_{name}")
        while survived < stops:
            command = workplace.start(arguments, constants=QUICK)
            if ran := stop(command, rng.uniform(0, longest), rng.choice(STOPS)):
                longest = min(longest, ran)
                break
            survived += 1
        done = workplace.run(arguments, constants=QUICK)
        assert done.returncode == 0, done.stderr
        runs.append(name)
        assert_same_end(workplace.folder / name, whole[0])
        assert [line["step"] for line in metrics_of(workplace.folder / name, "train")] == [*range(1, NUM_STEPS + 1)]
        assert evaluation_of(workplace.folder / name)["metrics"] == evaluation_of(whole[0])["metrics"]
    return runs


def test_a_run_survives_three_stops_at_random_moments(workplace, whole):
    survive(workplace, whole, stops=3, seed=0)


@pytest.mark.slow
def test_runs_survive_thirty_stops_at_random_moments(workplace, whole):
    print(f"30 stops survived by {len(survive(workplace, whole, stops=30, seed=1))} runs")


@pytest.mark.skipif(locks.fcntl is None, reason="there are no locks here")
def test_a_second_run_of_a_workdir_is_refused(workplace, whole):
    folder = workplace.folder / "held"
    with workdir.hold(folder):
        done = workplace.run(workplace.arguments("held"))
    assert done.returncode == 2 and not done.stderr.count("\n") > 1
    assert f"{folder}: is trained by process " in done.stderr and "another --workdir" in done.stderr
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_conversions_survive_stops_at_random_moments(workplace, tmp_path):
    pytest.importorskip("MEDS_extract")
    source, rng = write_csv(tmp_path / "csv", SYNTHEA), random.Random(2)

    def command(output):
        given = ["--source=synthea", f"--input={source}", f"--output={output}"]
        return workplace.start(given, "experiments.convert")

    printed, errors = command(tmp_path / "whole").communicate()
    assert "wrote" in printed, errors
    survived, longest = 0, 8.0
    for number in range(MOST_RUNS):
        output = tmp_path / str(number)
        while survived < 10:
            if ran := stop(command(output), rng.uniform(0, longest), rng.choice(STOPS)):
                longest = min(longest, ran)
                break
            survived += 1
        if not (output / "data").exists():
            printed, errors = command(output).communicate()
            assert "wrote" in printed, errors
        key = ["subject_id", "time", "code"]
        found, expected = (read_events(each).sort(key) for each in (output, tmp_path / "whole"))
        assert pl.DataFrame.equals(found, expected)
        if survived == 10:
            return
    pytest.fail(f"only {survived} stops reached {MOST_RUNS} conversions")
