"""The study of values: its variants read the same events, and its table has means and ranges over seeds."""

import datetime
import importlib

import polars as pl
import pytest

from behrt_jax.training.recipe import read_recipe
from experiments.studies import values
from tests.experiments.conftest import TINY


def recipe_of(run):
    """The recipe of a run of pre-training, key by key."""
    (file,) = (word.removeprefix("--config=") for word in run.arguments if word.startswith("--config="))
    config = importlib.import_module(file.removesuffix(".py").replace("/", ".")).get_config()
    for key, _, value in (word.removeprefix("--config.").partition("=") for word in run.arguments if "config." in word):
        section, _, last = key.rpartition(".")
        kind = type(config[section][last] if section else config[last])
        config.update_from_flattened_dict({key: value == "True" if kind is bool else kind(value)})
    config.model.vocab_size = 1000
    return read_recipe(config.to_dict())


def test_variants_differ_in_values_alone(tmp_path):
    runs = {
        (name, seed): values.make_runs(tmp_path, name, seed, "labels.parquet", (7, 3), [])
        for name in values.VARIANTS
        for seed in (0, 1)
    }
    assert len({run.workdir for both in runs.values() for run in both}) == 2 * len(runs)
    found = {name: recipe_of(runs[name, 1][0]) for name in values.VARIANTS}
    encodings = [(each.data.value_encoding, each.model.value_encoding) for each in found.values()]
    assert encodings == [("none", "none"), ("bins", "none"), ("continuous", "film"), ("continuous", "film")]
    assert [each.objective.value_weight > 0 for each in found.values()] == [False, False, False, True]
    assert len({each.data.codes_exclude for each in found.values()}) == 1
    for each in found.values():
        assert (each.seed, each.train.num_steps, each.data.unique_codes_in_visit) == (1, 7, False)
    for pretrained, finetuned in runs.values():
        assert f"--config.pretrained={pretrained.workdir}" in finetuned.arguments


def test_the_table_has_means_and_ranges_over_seeds():
    found = [{"loss": each, "accuracy": 0.5, "classification/auroc": each / 2, "other": 9.0} for each in (1.0, 1.5)]
    lines = values.format_markdown({"no values": found}).splitlines()
    assert lines[0] == "2 seeds: mean [lowest, highest]"
    assert lines[2] == "|  | masked-code loss, nats | masked-code accuracy | AUROC | AUPRC |"
    assert lines[4] == "| no values | 1.250 [1.000, 1.500] | 0.500 [0.500, 0.500] | 0.625 [0.500, 0.750] |  |"


def test_each_patient_keeps_one_label_of_each_outcome(tmp_path):
    days = [datetime.datetime(2020, 1, day) for day in range(1, 9)]
    rows = {"subject_id": [1] * 6 + [2] * 2, "prediction_time": days, "boolean_value": [True] * 2 + [False] * 6}
    pl.DataFrame(rows).write_parquet(tmp_path / "all.parquet")
    values.cap_labels(str(tmp_path / "all.parquet"), tmp_path / "capped" / "labels.parquet", 1)
    found = pl.read_parquet(tmp_path / "capped" / "labels.parquet")
    assert found["subject_id"].to_list() == [1, 1, 2]
    assert sorted(found["boolean_value"][:2]) == [False, True] and not found["boolean_value"][2]
    known = set(zip(*rows.values(), strict=True))
    assert known >= set(found.select(*rows).iter_rows())


@pytest.mark.slow
def test_variants_are_trained_fine_tuned_and_tabulated(workplace):
    splits = pl.read_parquet(workplace.data / "metadata" / "subject_splits.parquet").sort("subject_id")
    labels, time = workplace.folder / "study_labels.parquet", datetime.datetime(2020, 1, 1)
    is_odd = pl.int_range(pl.len()) % 2 == 1
    splits.select("subject_id", prediction_time=pl.lit(time), boolean_value=is_odd).write_parquet(labels)
    shared = {key: value for key, value in TINY.items() if key.startswith(("model.", "data.min"))}
    shared |= {"data.path": workplace.data, "data.prepared_dir": workplace.folder / "prepared"}
    shared |= {"data.row_length": 128, "train.batch_size": 2, "evaluation.batch_size": 4}
    given = [f"--set={key}={value}" for key, value in shared.items()]
    folder = workplace.folder / "values_study"
    steps = ["--seeds=1", "--num_steps=2", "--finetuning_steps=2", f"--workdir={folder}", f"--labels={labels}"]
    done = workplace.run([*given, *steps], "experiments.studies.values")
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in (folder / "values.md").read_text().splitlines()[4:]]
    assert [row[0].strip() for row in rows] == [*values.VARIANTS] and all(cell.strip() for row in rows for cell in row)
