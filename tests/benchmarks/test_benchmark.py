"""A tiny benchmark of several contestants ends in figures that agree with each other, or in one clear line."""

import dataclasses
import json
import sys

import numpy as np
import polars as pl
import pytest

from behrt_jax.benchmarks import contestants, host, preparation, report, rounds, workload
from behrt_jax.benchmarks.benchmark import benchmark
from behrt_jax.benchmarks.contestants import ROOT, Contestant
from behrt_jax.benchmarks.rounds import Result
from behrt_jax.benchmarks.workload import Workload
from behrt_jax.data import dataset, windows
from tests import tiny
from tests.experiments.conftest import cut_data_set

PEERS = ROOT / "experiments" / "studies" / "peers"
TINY = Workload(rows=2, row_length=64, num_batches=2, threads=1)

SLEEPER = """
import time

def start(settings, batches):
    codes = [batch["codes"][batch["patient_ids"] != 0] for batch in batches]
    masked = [settings["mask_rate"] * batch["maskable"].sum() for batch in batches]

    def step(number):
        time.sleep(0.2)
        return 1.0, round(masked[number])

    return {{"step": step, "read": lambda number: codes[number]{read}, "measure": lambda: {{"parameters": 0}}}}
"""


def sleeper(folder, name="sleeper", read="") -> Contestant:
    """A contestant that does nothing, slowly."""
    file = folder / f"{name}.py"
    file.write_text(SLEEPER.format(read=read))
    return Contestant(name, file, ROOT, sys.executable)


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("prepared"))


def run(tmp_path, prepared_dir, others, own=True, **options):
    chosen = [*contestants.choose(PEERS, []), *others] if own else others
    settings = {"num_rounds": 2, "steps": 2, "data": str(ROOT / "data" / "synthea-1151"), **options}
    with tiny.collect_messages() as messages:
        content = benchmark(TINY, chosen, tmp_path / "out", prepared_dir=prepared_dir, **settings)
    return content, "\n".join(messages)


@pytest.mark.slow
def test_two_contestants_end_in_a_table_with_ratios(tmp_path, prepared_dir):
    content, said = run(tmp_path, prepared_dir, [sleeper(tmp_path)])
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text()) == content
    assert (tmp_path / "out" / "benchmark.md").read_text() in said
    own, other = content["contestants"]
    assert (own["name"], other["name"]) == ("this checkout", "sleeper")
    assert own["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    tokens = 2 * 64
    assert 0 < other["tokens_per_second"]["high"] <= tokens / 0.2 < own["tokens_per_second"]["median"]
    assert other["ratio"]["median"] > 1 and other["ratio"]["low"] <= other["ratio"]["median"] <= other["ratio"]["high"]
    assert own["parameters"] == 503_424 + 9_384  # encoder and head
    assert own["flops"] > 6 * 300_000 * tokens / 2 and own["state_bytes"] > 3 * 4 * own["parameters"]
    assert 0 < own["share_of_peak"]["low"] < 1.5 and other["share_of_peak"] is None
    assert own["peak_bytes"] > own["start_bytes"] > 0 and own["temporary_bytes"] > 0
    assert content["product_flops_per_second"]["median"] > 1e9
    assert content["workload"]["rows"] == 2 and "Python" in content["machine"]


@pytest.mark.slow
def test_embedding_reads_every_train_patient(tmp_path, prepared_dir):
    chosen, work = contestants.choose(PEERS, [], what="embed"), dataclasses.replace(TINY, what="embed")
    settings = {"num_rounds": 1, "steps": 1, "prepared_dir": prepared_dir, "data": str(ROOT / "data" / "synthea-1151")}
    (own,) = benchmark(work, chosen, tmp_path, **settings)["contestants"]
    assert own["name"] == "this checkout" and own["parameters"] == 503_424 + 9_384
    assert np.isfinite(own["first_loss"]) and own["tokens_per_second"]["low"] > 0
    with pytest.raises(ValueError, match="--peers: found strong; peers do not read data sets, as --what=embed does"):
        contestants.choose(PEERS, ["strong"], what="embed")


@pytest.fixture(scope="module")
def sixty(tmp_path_factory):
    return cut_data_set(tmp_path_factory.mktemp("data") / "meds", skip=0)


@pytest.mark.slow
def test_packing_is_counted_in_tokens_of_train(tmp_path, sixty):
    chosen, work = contestants.choose(PEERS, [], what="host"), dataclasses.replace(TINY, what="host")
    settings = {"prepared_dir": str(tmp_path / "prepared"), "data": str(sixty)}
    with tiny.collect_messages() as messages:
        (own,) = benchmark(work, chosen, tmp_path / "out", num_rounds=1, steps=1, **settings)["contestants"]
    assert own["tokens_per_second"]["low"] > 0 and "| contestant | a second |" in "\n".join(messages)
    written = workload.write(work, tmp_path, **settings)
    packed = host.start({**written, "folder": str(tmp_path)}, [])["read"](0)
    (folder,) = (tmp_path / "prepared").glob("*/report.json")
    train = dataset.read(folder.parent, "train")
    whole = windows.index_visits(train, TINY.row_length)
    assert len(packed) == windows.newest_windows(whole).lengths.sum()


def test_preparation_is_counted_in_events(tmp_path, sixty):
    settings = {"tier": "small", "data": str(sixty), "folder": str(tmp_path)}
    contestant = preparation.start(settings, [])
    assert len(contestant["read"](0)) == len(pl.read_parquet(sixty / "data" / "0.parquet"))
    with tiny.collect_messages() as messages:
        contestant["step"](0)
        contestant["step"](0)
    assert len([line for line in messages if line.startswith("reading")]) == 2, messages
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_contestants_that_read_other_tokens_are_refused(tmp_path, prepared_dir):
    message = "other reads other tokens than sleeper: .*their rates would not compare"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, prepared_dir, [sleeper(tmp_path), sleeper(tmp_path, "other", "[1:]")], own=False)


def test_a_missing_package_is_one_clear_line(tmp_path, prepared_dir):
    file = tmp_path / "lacking.py"
    file.write_text("import torch_that_is_not_there\n")
    lacking = Contestant("lacking", file, ROOT, sys.executable)
    with pytest.raises(
        ValueError, match="lacking: .* has no package torch_that_is_not_there; install requirements-ben"
    ):
        run(tmp_path, prepared_dir, [lacking], own=False)


def test_a_contestant_that_fails_is_named(tmp_path, prepared_dir, capfd):
    file = tmp_path / "failing.py"
    file.write_text("raise RuntimeError('out of luck')\n")
    with pytest.raises(ValueError, match="failing: its process stopped with status 1"):
        run(tmp_path, prepared_dir, [Contestant("failing", file, ROOT, sys.executable)], own=False)
    assert "out of luck" in capfd.readouterr().err


def test_what_cannot_be_run_is_refused_before_any_work(tmp_path, prepared_dir):
    with pytest.raises(ValueError, match="--peers: found 'weak'; expected some of hf, reference, strong"):
        contestants.choose(PEERS, ["strong", "weak"])
    with pytest.raises(ValueError, match="--against=.*: expected a checkout"):
        contestants.choose(PEERS, [], str(tmp_path))
    with pytest.raises(ValueError, match="--tier: found 'huge'"):
        Workload(tier="huge")
    with pytest.raises(ValueError, match="--threads: found 1000"):
        Workload(threads=1000)
    with pytest.raises(ValueError, match="--rounds: found 0"):
        run(tmp_path, prepared_dir, [], num_rounds=0)


def test_a_vocabulary_smaller_than_that_of_the_data_is_refused(tmp_path, prepared_dir):
    with pytest.raises(ValueError, match="--vocabulary: found 100; expected .* or more"):
        workload.write(Workload(vocabulary=100), tmp_path, prepared_dir, str(ROOT / "data" / "synthea-1151"))


@pytest.mark.slow
def test_a_contestant_that_is_not_slower_as_asked_is_an_error(tmp_path, prepared_dir):
    message = r"--least_ratio=1e\+06: sleeper is .* times as fast as other; find what became slow"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, prepared_dir, [sleeper(tmp_path), sleeper(tmp_path, "other")], own=False, least_ratio=1e6)


def test_ratios_are_paired_by_round():
    """A machine that is twice as slow in one round slows both; the ratio does not see it."""
    slow = np.array([[1.0, 1.0], [2.0, 2.0], [1.0, 1.0]])
    results = [Result(name, s, 100 / s, 0.0, 0.0, 0.0, {"flops": 6.0}) for name, s in (("a", slow), ("b", 3 * slow))]
    first, second = report.compare(results, 12 / slow[:, 0])
    assert second["ratio"] == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert first["tokens_per_second"] == {"median": 100.0, "low": 50.0, "high": 100.0}
    assert first["share_of_peak"]["low"] == first["share_of_peak"]["high"] == 0.5
    assert second["share_of_peak"]["median"] == pytest.approx(1 / 6)


def test_the_first_start_counts_apart():
    (row,) = report.compare_starts(["a"], [[(3.0, 6.0), (2.0, 1.0), (4.0, 1.0)]])
    assert row["cold_seconds"] == 9.0 and row["total_seconds"] == {"median": 4.0, "low": 3.0, "high": 5.0}


def test_masks_may_differ_by_chance_alone():
    rounds.check_masks(["a", "b"], [100, 95])
    with pytest.raises(ValueError, match="b masks 50 codes, a 100; their rates would not compare"):
        rounds.check_masks(["a", "b"], [100, 50])


def test_an_accuracy_is_reached_at_the_first_evaluation_that_has_it():
    lines = [(10.0 * step, value) for step, value in enumerate((0.3, 0.56, 0.54, 0.58))]
    assert report.find_time(lines, 0.55) == 10.0 and report.find_time(lines, 0.6) is None


def test_main_jobs_are_tabulated_and_an_accuracy_must_be_reached_in_each_round():
    jobs = [
        {
            "lines": [(90.0 + number, 0.56), (250.0, last)],
            "total_seconds": 300.0,
            "final_bytes": 2**30,
        }
        for number, last in enumerate((0.61, 0.59, 0.61))
    ]
    rows = report.compare_jobs(["this checkout"], [jobs])
    assert rows[0]["reached_seconds"] == {"0.55": {"median": 91.0, "low": 90.0, "high": 92.0}, "0.60": None}
    table = report.format_jobs(rows).splitlines()
    reached = [f"{each} reached, s of training" for each in ("0.55", "0.60")]
    heads = ["contestant", *reached, "accuracy", "whole job, s", "peak memory"]
    assert [cell.strip() for cell in table[0].split("|")[1:-1]] == heads
    assert table[2].startswith(
        "| this checkout | 91 [90, 92] | not | 0.610 [0.590, 0.610] | 300 [300, 300] | 1,024 MiB"
    )


@pytest.mark.slow
def test_a_short_main_job_is_timed(tmp_path, sixty):
    work = dataclasses.replace(TINY, what="main_job", updates=2)
    chosen = contestants.choose(PEERS, [], what="main_job")
    folder = str(tmp_path / "prepared")
    content = benchmark(work, chosen, tmp_path / "out", num_rounds=1, prepared_dir=folder, data=str(sixty))
    (row,) = content["contestants"]
    assert row["reached_seconds"] == {"0.55": None, "0.60": None} and 0 <= row["accuracy"]["median"] < 0.55
    assert row["total_seconds"]["median"] > 0
    assert row["peak_bytes"] > 2**28  # of training, beside which what is imported before it is small
    assert "| this checkout | not | not |" in (tmp_path / "out" / report.TABLE_FILE).read_text()
