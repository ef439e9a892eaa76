"""A whole run, and runs that are stopped in every way end where one that was never stopped does."""

import json
import math
import random
import re
import shlex
import shutil
import signal

import jax
import numpy as np
import pytest

import behrt_jax
from behrt_jax.baselines import masked_codes
from tests.experiments.conftest import EVALUATE_EVERY, NUM_STEPS, TINY, assert_same_end, metrics_of, newest_state


def files_of(folder):
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.rglob("*") if file.is_file()}


def test_a_run_writes_all_that_it_promises(workplace, whole):
    folder, done = whole
    written = {"config.json", "vocabulary.json", "metrics.jsonl", "evaluation.json", "machine.json"}
    written |= {"checkpoints", "digests.json", "tensorboard"}
    assert {file.name for file in folder.iterdir()} == written
    assert list((folder / "tensorboard").glob("events.*"))
    assert "found 60 patients (40 train, 10 tuning, 10 held_out), 105,562 events" in done.stdout
    assert f"a page on this data: python -m experiments.describe --data={workplace.data}\n" in done.stdout
    count = behrt_jax.count_parameters(behrt_jax.load(folder).params)
    assert f"the model has {count:,} parameters" in done.stdout and str(folder) in done.stdout
    assert json.loads((folder / "config.json").read_text())["recipe"]["train"]["num_steps"] == NUM_STEPS


def test_metrics_of_every_step_and_every_evaluation_are_finite(whole):
    folder, _ = whole
    training, tuning = metrics_of(folder, "train"), metrics_of(folder, "tuning")
    assert [line["step"] for line in training] == list(range(1, NUM_STEPS + 1))
    assert [line["step"] for line in tuning] == list(range(EVALUATE_EVERY, NUM_STEPS + 1, EVALUATE_EVERY))
    for line in training + tuning:
        assert {"mlm/loss", "mlm/accuracy", "mlm/top5_accuracy"} <= set(line)
        assert all(math.isfinite(value) for key, value in line.items() if key != "split")
    assert all(line["tokens_per_second"] > 0 for line in training)
    assert tuning[-1]["mlm/loss"] < training[0]["mlm/loss"]


def test_the_evaluation_has_the_promised_form(whole):
    folder, done = whole
    result = json.loads((folder / "evaluation.json").read_text())
    assert (result["split"], result["patients"]) == ("held_out", 10)
    names = {f"mlm/{name}" for name in ("loss", "perplexity", "accuracy", "top5_accuracy", "top20_accuracy")}
    counting = {"most frequent code", "patient's own most frequent code", "neighbouring codes (bigram)"}
    assert set(result["baselines"]) == set(result["versus"]) == {*counting, *masked_codes.RECIPES}
    assert len(masked_codes.RECIPES) == 1
    for found in (result["metrics"], *result["baselines"].values()):
        assert {name for name in found if "=" not in name} == names
        groups = {kind: [each for each in found if each.startswith(f"mlm/accuracy/{kind}=")] for kind in ("age", "sex")}
        assert set(found) == names.union(*groups.values())
        number = found["mlm/loss"]["n"]
        for name, entry in found.items():
            assert set(entry) == {"value", "low", "high", "n", "patients"} and entry["patients"] <= 10
            assert entry["low"] <= entry["value"] <= entry["high"]
            assert entry["n"] < number if "=" in name else entry["n"] == result["metrics"]["mlm/loss"]["n"]
        assert all(sum(found[name]["n"] for name in each) == number for each in groups.values())
    for name, found in result["baselines"].items():
        (row,) = (line for line in done.stdout.splitlines() if line.startswith(name))
        assert f"{found['mlm/accuracy']['value']:.3f}" in row


def test_what_was_trained_is_loaded_in_one_call(whole):
    config, vocabulary, model, params = behrt_jax.load(whole[0])
    assert config.model.vocab_size == len(vocabulary) and config.data.row_length == TINY["data.row_length"]
    codes = np.array([[1, 7, 2]])
    ages, days = np.full((1, 3), 40.0, np.float32), np.zeros((1, 3), np.float32)
    logits = jax.jit(model.apply)(params, codes, ages, np.zeros_like(codes), np.ones_like(codes), time_deltas=days)
    assert logits.shape == (1, 3, len(vocabulary)) and np.isfinite(logits).all()


@pytest.mark.current_only
def test_a_finished_run_says_so_and_changes_no_file(workplace, whole):
    folder, _ = whole
    before = files_of(folder)
    again = workplace.run(workplace.arguments("whole"))
    assert again.returncode == 0
    assert f"{folder} is finished after {NUM_STEPS} steps; nothing to do" in again.stdout
    assert files_of(folder) == before


@pytest.mark.current_only
def test_killed_at_a_random_step_and_run_again(workplace, whole):
    step = random.randint(1, NUM_STEPS - 4)
    arguments = workplace.arguments("killed")
    killed = workplace.stop_at("killed", arguments, step, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, f"at step {step}: {killed.stderr}"
    printed = workplace.train(arguments)
    saved = re.search(r"resuming .*/killed after step (\d+) of 40", printed)
    assert saved is not None or step < 2 * EVALUATE_EVERY
    assert_same_end(workplace.folder / "killed", whole[0])


@pytest.mark.slow
def test_sigterm_and_ctrl_c_save_and_say_how_to_go_on(workplace, whole):
    folder, arguments = workplace.folder / "stopped", workplace.arguments("stopped")
    for number, step in ((signal.SIGTERM, 4), (signal.SIGINT, 23)):
        stopped = workplace.stop_at("stopped", arguments, step, number)
        assert stopped.returncode == 128 + number, stopped.stderr
        assert "Traceback" not in stopped.stderr
        (line,) = (line for line in stopped.stdout.splitlines() if line.startswith("stopped and saved"))
        _, command = line.split("the same command goes on from here: ")
        python, *rest = shlex.split(command)
        assert (python, rest[:2]) == ("python", ["-m", "experiments.pretrain"])
        assert sorted(rest[2:]) == sorted(arguments)
        reached = metrics_of(folder, "train")[-1]["step"]
        assert step <= reached < NUM_STEPS and (folder / "checkpoints" / str(reached)).is_dir()
    printed = workplace.train(arguments)
    assert f"resuming {folder} after step {reached} of {NUM_STEPS}" in printed
    assert_same_end(folder, whole[0])


@pytest.mark.current_only
def test_a_damaged_checkpoint_is_said_and_the_run_goes_on_from_the_one_before(workplace, whole):
    folder = workplace.folder / "damaged"
    shutil.copytree(whole[0], folder)
    (folder / "evaluation.json").unlink()
    newest = folder / "checkpoints" / str(NUM_STEPS)
    largest = max((file for file in newest.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    printed = workplace.train(workplace.arguments("damaged"))
    assert f"warning: checkpoint {NUM_STEPS} in {folder / 'checkpoints'} cannot be read" in printed
    assert f"resuming {folder} after step {NUM_STEPS - EVALUATE_EVERY} of {NUM_STEPS}" in printed
    assert_same_end(folder, whole[0])


@pytest.mark.slow
def test_another_seed_gives_another_end(workplace, whole):
    workplace.train([*workplace.arguments("seeded"), "--config.seed=1"])
    assert newest_state(workplace.folder / "seeded") != newest_state(whole[0])


@pytest.mark.slow
def test_two_runs_with_one_seed_are_bit_identical(workplace, whole):
    workplace.train(workplace.arguments("again"))
    assert_same_end(workplace.folder / "again", whole[0])
