"""Training on several devices gives what one device gives: in a process of its own with eight CPU devices."""

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from behrt_jax.models import devices
from behrt_jax.models.pretraining import BEHRTForMLM
from behrt_jax.objectives import mlm, scoring
from behrt_jax.training import loop
from behrt_jax.training.checkpoints import Checkpoints
from behrt_jax.training.optimizer import make_optimizer
from tests import tiny

ROOT = Path(__file__).parents[2]
STEPS, RESUMED_AT, PARTS = 4, 2, 2
SAVED = "4 whole"  # also trained to `RESUMED_AT` and saved, for cases that resume
TOLERANCE = 1e-5
ROWS = [[9, 7], [12, 4], [16], [5, 5, 6], [8, 8], [10, 3], [15], [4, 4]]


class Run:
    """A model of masked codes, trained on the first devices of the process."""

    def __init__(self, count: int, parts: int):
        devices.at_hand = lambda: tuple(jax.devices()[:count])
        self.model = BEHRTForMLM(tiny.config(dropout=0.1))
        self.objective = mlm.make_objective(self.model, tiny.objective_config())
        self.optimizer = make_optimizer(tiny.optimizer_config(), STEPS)
        self.step = loop.make_train_step(self.objective, self.optimizer, 0, parts)

    def start(self):
        return tiny.initial_state(self.model, self.optimizer)

    def train(self, state, stop: int = STEPS):
        """Trains to a step; returns the state and the metrics logged."""
        logged = []
        first = int(state.step)
        batches = (tiny.packed_batch(ROWS, 16, seed=step) for step in range(first, stop))
        batches = ({key: value for key, value in batch.items() if key != "patient_index"} for batch in batches)
        settings = loop.TrainConfig(stop, len(ROWS), 1, stop, 1, 0, 0)
        options = {"watch": "loss", "save": lambda state, metrics: None, "log": lambda *line: logged.append(line)}
        result = loop.train(state, self.step, batches, settings, evaluate=self.evaluate, **options)
        return result.state, [found for _, _, found in logged]

    def evaluate(self, params) -> dict[str, float]:
        step = scoring.make_tuning_step(self.objective)
        rows = ROWS[:4]  # which eight devices cannot share
        return scoring.score_objective(step, self.objective, params, [tiny.packed_batch(rows, 16, seed=99)])


def describe(run: Run, state, logged: list[dict]) -> dict:
    """Returns losses, parameters as one list, and on how many devices the parameters and the step were."""
    leaves = jax.tree.leaves(state.params)
    losses = [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in logged]
    return {
        "losses": losses,
        "params": np.concatenate([np.ravel(leaf) for leaf in leaves]).tolist(),
        "devices": sorted({len(leaf.sharding.device_set) for leaf in leaves}),
        "whole": all(leaf.is_fully_replicated for leaf in leaves),
        "compiled": run.step._cache_size(),
    }


def main(folder: Path, cases: str) -> None:
    """What the process with eight devices does; each case is a number of devices and how to train on them."""
    # Devices of one processor share its threads: two programs that both wait for all devices could wait for ever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_disable_most_optimizations", True)  # the model takes longer to compile than to run
    found = {}
    for case in cases.split(","):
        count, how = case.split()
        run = Run(int(count), PARTS if how == "parts" else 1)
        state = Checkpoints(folder, "loss").restore_newest(run.start()) if how == "resumed" else run.start()
        found[case] = describe(run, *run.train(state))
        if case == SAVED:
            state, _ = run.train(run.start(), RESUMED_AT)
            Checkpoints(folder, "loss").save(state, {"loss": 1.0})
    print(json.dumps(found))


@functools.cache
def run_cases(*cases: str) -> dict:
    """Runs cases in a process with eight devices; returns what `describe` found, by case."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.training.test_devices", folder, ",".join(cases)]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def assert_equal(one: dict, other: dict) -> None:
    np.testing.assert_allclose(one["params"], other["params"], rtol=0, atol=TOLERANCE)
    for mine, theirs in zip(one["losses"], other["losses"], strict=True):
        assert mine.keys() == theirs.keys()
        np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=TOLERANCE, atol=TOLERANCE)


def test_losses_and_parameters_do_not_depend_on_the_number_of_devices():
    found = run_cases("1 whole", SAVED, "2 resumed")
    for count, case in ((1, "1 whole"), (4, SAVED), (2, "2 resumed")):
        own = found[case]
        assert own["devices"] == [count] and own["whole"] and own["compiled"] == 1
    assert len(found["1 whole"]["losses"]) == STEPS + 1
    assert_equal(found[SAVED], found["1 whole"])
    np.testing.assert_allclose(found["2 resumed"]["params"], found["1 whole"]["params"], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_nor_for_more_devices_and_parts_of_batches():
    found = run_cases("1 whole", "2 whole", "8 whole", SAVED, "1 resumed", "8 resumed", "1 parts", "4 parts")
    for case, own in found.items():
        assert own["devices"] == [int(case.split()[0])] and own["whole"] and own["compiled"] == 1
        like = found["1 parts" if case == "4 parts" else "1 whole"]
        if case != "1 parts":
            np.testing.assert_allclose(own["params"], like["params"], rtol=0, atol=TOLERANCE)
        if case in ("2 whole", "8 whole", "4 parts"):
            assert_equal(own, like)


def test_one_device_keeps_arrays_as_they_are(monkeypatch):
    monkeypatch.setattr(devices, "at_hand", lambda: tuple(jax.devices()[:1]))
    columns = {"codes": np.zeros((8, 4), np.int32)}
    assert devices.split_rows(columns) is columns and devices.replicate(columns) is columns
    devices.check_batch_size(7, 1)


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "at_hand", lambda: tuple(jax.devices()) * 4)
    devices.check_batch_size(8, 2)
    message = "train.batch_size: found 6; expected a multiple of 4, as 4 devices share the rows of a batch"
    with pytest.raises(ValueError, match=re.escape(message)):
        devices.check_batch_size(6, 1)
    with pytest.raises(ValueError, match=r"found 8 in 4 parts \(train.accumulate_steps\); expected a multiple of 16"):
        devices.check_batch_size(8, 4)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
