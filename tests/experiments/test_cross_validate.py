"""Cross-validation: each patient is held out once, folds are averaged with their resamples, and a fold's runs end."""

import shutil

import numpy as np
import polars as pl
import pytest

from behrt_jax.baselines import outcomes
from behrt_jax.data import events, folds
from behrt_jax.metrics import bootstrap
from behrt_jax.metrics.bootstrap import Estimate
from experiments.studies import cross_validate
from tests.experiments.conftest import TINY, cut_data_set


def test_each_patient_is_held_out_once_and_views_hold_the_same_events(tmp_path):
    data = cut_data_set(tmp_path / "meds", skip=0)
    pl.DataFrame({"code": ["A"], "parent_codes": [["B"]]}).write_parquet(data / events.CODES_FILE)
    views = [folds.write_view(data, tmp_path / str(fold), fold, 3) for fold in range(3)]
    splits = [pl.read_parquet(view / events.SPLITS_FILE) for view in views]
    held_out = [part.filter(split="held_out")["subject_id"].to_list() for part in splits]
    everybody = splits[0]["subject_id"].to_list()
    assert sorted(sum(held_out, [])) == sorted(everybody) and all(held_out)
    assert all(set(part["split"]) == set(events.SPLITS) for part in splits)
    originals = [shard.read_bytes() for shard in events.find_shards(data)]
    assert [shard.read_bytes() for shard in events.find_shards(views[1])] == originals
    assert all((view / events.CODES_FILE).exists() for view in views)
    again = folds.write_view(data, tmp_path / "1", 1, 3)
    assert pl.read_parquet(again / events.SPLITS_FILE).equals(splits[1])


def test_folds_are_averaged_with_their_resamples():
    rng = np.random.default_rng(0)
    each = [rng.normal(0.8, 0.03, bootstrap.NUM_RESAMPLES) for _ in range(4)]
    name = "survival/c_index"
    each_fold = [
        {"BEHRT": {name: Estimate(0.8, values, 10)}, "LSTM": {name: Estimate(0.7, values - 0.1, 10)}} for values in each
    ]
    each_fold[0]["one fold's"] = {name: Estimate(0.9, each[0], 10)}
    each_fold[1]["BEHRT"] = {**each_fold[1]["BEHRT"], "survival/uno_c": Estimate(0.5, each[0], 10)}
    found = bootstrap.average_folds(each_fold)
    assert set(found) == {"BEHRT", "LSTM"} and set(found["BEHRT"]) == {name}
    own = found["BEHRT"][name]
    assert own.value == pytest.approx(0.8) and own.n == 40
    assert own.replicates.std() == pytest.approx(0.015, rel=0.1)  # a mean of four
    gap = bootstrap.difference(own, found["LSTM"][name])
    assert gap["low"] == pytest.approx(0.1) == gap["high"]
    table = cross_validate.format_markdown(found).splitlines()
    assert [line.split("|")[1].strip() for line in table] == ["", "---", "BEHRT", "LSTM"]
    assert table[0].split("|")[2].strip() == "C-index" and "+0.100 [+0.100, +0.100]" in table[3]
    baselines = {"LSTM": found["LSTM"]}
    lower = {"LSTM": {name: Estimate(0.65, found["LSTM"][name].replicates - 0.05, 40)}}
    head, _, row = cross_validate.format_markdown(baselines, lower).splitlines()
    assert head.endswith("| C-index: difference |") and row.endswith("| +0.050 [+0.050, +0.050] |")


@pytest.mark.slow
def test_two_folds_from_labels_to_a_table(workplace, deaths):
    few = {key: value for key, value in TINY.items() if key.startswith("model.")}
    more = [f"--set={key}={value}" for key, value in {**few, "train.num_steps": 4}.items()]
    folder = workplace.folder / "cross-validation"
    given = [f"--labels={deaths}", f"--data={workplace.data}", f"--workdir={folder}", "--folds=2", "--jobs=2", *more]
    done = workplace.run([*given, "--only=1"], "experiments.studies.cross_validate")
    assert done.returncode == 0 and "without --only and --views checks all folds" in done.stdout, done.stderr
    done = workplace.run(given, "experiments.studies.cross_validate")
    assert done.returncode == 0, done.stderr
    table = (folder / "cross_validation.md").read_text()
    for name in ("BEHRT", "BEHRT from scratch", "LSTM", "Cox on age and sex", outcomes.BOOSTED):
        assert f"| {name} |" in table


def test_data_that_has_nothing_but_events_is_viewed_too(tmp_path):
    data = cut_data_set(tmp_path / "meds", skip=0)
    shutil.rmtree(data / "metadata")
    view = folds.write_view(data, tmp_path / "0", 0, 3)
    assert events.find_shards(view) and events.read_splits(view) is not None


@pytest.mark.slow
def test_baselines_alone_are_compared_with_those_of_another_run(workplace, deaths):
    few = {key: value for key, value in TINY.items() if key.startswith("model.")}
    more = [f"--set={key}={value}" for key, value in few.items()]
    folder = workplace.folder / "baselines-alone"
    given = [
        f"--labels={deaths}",
        f"--data={workplace.data}",
        f"--workdir={folder}",
        "--folds=2",
        "--baselines_only",
        "--jobs=2",
    ]
    done = workplace.run([*given, *more, f"--compare_to={folder}"], "experiments.studies.cross_validate")
    assert done.returncode == 0, done.stderr
    head, _, *rows = (folder / "baselines.md").read_text().splitlines()
    names = {row.split("|")[1].strip() for row in rows}
    assert {"Cox on age and sex", "gradient boosting"} <= names and "BEHRT" not in names
    assert head.endswith("difference |") and all(row.endswith("| +0.000 [+0.000, +0.000] |") for row in rows)
