"""Fine-tuning on data with codes that the pre-trained vocabulary does not know."""

import dataclasses
import json

import jax
import numpy as np
import polars as pl
import pytest
from flax.traverse_util import flatten_dict

import behrt_jax
from behrt_jax.data import prepare
from behrt_jax.data.vocabulary import UNK
from behrt_jax.finetuning import finetuned, labeled_histories, setup
from behrt_jax.models.embeddings import CODE_TABLE
from behrt_jax.training import loop
from behrt_jax.training.optimizer import make_optimizer
from behrt_jax.training.state import create_state
from tests.experiments.test_finetune import arguments, tiny_config

PREFIXES = ("CHILD//", "NEW//")


@pytest.fixture(scope="session")
def renamed(workplace):
    """The patients of the run, with new names for their conditions; the first half of these names has parents."""
    folder = workplace.folder / "renamed"
    found = pl.read_parquet(workplace.data / "data" / "0.parquet")
    conditions = found["code"].unique().sort().to_list()
    conditions = [code for code in conditions if code.startswith("CONDITION//")]
    names = {code: PREFIXES[i >= len(conditions) / 2] + code for i, code in enumerate(conditions)}
    for part in ("data", "metadata"):
        (folder / part).mkdir(parents=True)
    found.with_columns(pl.col("code").replace(names)).write_parquet(folder / "data" / "0.parquet")
    parents = pl.DataFrame({"code": list(names.values()), "parent_codes": [[code] for code in names]})
    parents.filter(pl.col("code").str.starts_with("CHILD")).write_parquet(folder / "metadata" / "codes.parquet")
    pl.read_parquet(workplace.data / "metadata" / "subject_splits.parquet").write_parquet(
        folder / "metadata" / "subject_splits.parquet"
    )
    return folder


@pytest.fixture(scope="session")
def conditions_labels(workplace):
    """Binary labels of every patient, by the parity of the id, at a date when most have a history."""
    subjects = pl.read_parquet(workplace.data / "metadata" / "subject_splits.parquet").select("subject_id")
    file = workplace.folder / "parity.parquet"
    time = pl.lit("2018-01-01").str.to_datetime(time_unit="us")
    subjects.with_columns(prediction_time=time, boolean_value=pl.col("subject_id") % 2 == 0).write_parquet(file)
    return file


def config_of(workplace, labels, joint, data, **overrides):
    keys = {"pretrained": str(joint), "data.path": str(data), "layer_decay": 0.5, **overrides}
    return tiny_config("classification", workplace, labels, **keys)


def table_of(params) -> np.ndarray:
    (table,) = [leaf for path, leaf in flatten_dict(params, sep="/").items() if path.endswith(CODE_TABLE)]
    return np.asarray(table)


def test_added_rows_begin_as_what_was_read_before_and_learn_alone(
    workplace, joint, renamed, conditions_labels, quick_compilation, messages
):
    keys = {"add_codes": True, "lora.rank": 2, "lora.alpha": 2.0}
    config = config_of(workplace, conditions_labels, joint, renamed, **keys)
    task = setup.setup(config)
    _, known, _, params = behrt_jax.load(joint)
    old, codes = len(known), task.prepared.vocabulary.codes
    added = codes[len(known.codes) :]
    assert codes[: len(known.codes)] == known.codes and {name.split("//")[0] for name in added} == {"CHILD", "NEW"}
    assert task.recipe.model.vocab_size == old + len(added)
    (coverage,) = [line for line in messages if line.startswith("coverage of train: ")]
    assert f"; {len(added)} codes were added to it" in coverage

    optimizer = make_optimizer(dataclasses.replace(task.recipe.optimizer, weight_decay=0.5), 4, scales=task.scales)
    state = create_state(task.initialize, optimizer, 0)
    before, begun = table_of(params), table_of(state.params["base"])
    np.testing.assert_array_equal(begun[:old], before)
    for name, row in zip(added, begun[old:], strict=True):
        parent = name.removeprefix("CHILD//")
        np.testing.assert_array_equal(row, before[known.ids.get(parent, UNK)], name)
    assert sum(name.startswith("CHILD") and name.removeprefix("CHILD//") in known.ids for name in added) > 3

    begin = jax.tree.map(np.array, state.params["base"])
    step = loop.make_train_step(task.objective, optimizer, 0)
    seen = set()
    for _, columns in zip(
        range(4), labeled_histories.training_columns(task.recipe, task.splits["train"], 0), strict=False
    ):
        state, _ = step(state, columns)
        seen |= set(np.unique(columns["codes"]).tolist())
    after = flatten_dict(state.params["base"], sep="/")
    for path, leaf in flatten_dict(begin, sep="/").items():
        same = (np.asarray(after[path]) == leaf).all()
        assert same != ("/head/" in path or path.endswith(CODE_TABLE[1:])), path
    moved = (table_of(state.params["base"]) != begun).any(axis=1)
    assert not moved[:old].any()
    rows = [row for row in seen if row >= old]
    assert len(rows) > 5 and moved[rows].all()


def test_what_is_not_added_backs_off_or_is_unknown(workplace, joint, renamed, conditions_labels, messages):
    def coverage(data, **overrides):
        messages.clear()
        task = setup.setup(config_of(workplace, conditions_labels, joint, data, **overrides))
        (line,) = [line for line in messages if "coverage of train: " in line]
        report = task.prepared.report
        shares = [report[f"{kind}/train"] / report["tokens/train"] for kind in ("backed_off", "unknown")]
        assert f"{shares[0]:.2%} by a parent code; {shares[1]:.2%} are [UNK]" in line
        return len(task.prepared.vocabulary), shares

    vocabulary = len(behrt_jax.load(joint).vocabulary)
    size, (backed_off, unknown) = coverage(renamed)
    own_size, (none, own_unknown) = coverage(workplace.data, add_codes=True)
    assert size == own_size == vocabulary
    assert backed_off > 0.01 and none == 0 and unknown > own_unknown + 0.01


def test_coverage_counts_events_and_patients_and_warns(messages):
    counts = {"tokens": (60, 30, 10), "backed_off": (12, 3, 0), "unknown": (15, 24, 9)}
    counts |= {"patients": (8, 2, 2), "patients_known": (6, 0, 0)}
    report = {
        f"{kind}/{split}": number
        for kind, numbers in counts.items()
        for split, number in zip(("train", "tuning", "held_out"), numbers, strict=True)
    }
    prepare.log_coverage(report, "train")
    prepare.log_coverage({**report, "codes_added": 0}, "tuning")
    prepare.log_coverage(report, "all")
    assert messages[:2] == [
        "coverage of train: the vocabulary knows 55.00% of events by their own code and 20.00% by a parent code; "
        "25.00% are [UNK]; it knows every event of 75.0% of patients",
        "warning: coverage of tuning: the vocabulary knows 10.00% of events by their own code and 10.00% by a parent "
        "code; 80.00% are [UNK]; it knows every event of 0.0% of patients; 0 codes were added to it",
    ]
    assert "knows 37.00% of events" in messages[2]


@pytest.mark.slow
def test_a_run_with_added_codes_is_evaluated_and_predicts_and_goes_on(workplace, joint, renamed, conditions_labels):
    chosen = {"pretrained": joint, "data.path": renamed, "add_codes": True, "freeze": "encoder"}
    given = [*arguments(workplace, "classification", conditions_labels, "added", **chosen), "--nobaselines"]
    done = workplace.run(given, "experiments.finetune")
    assert done.returncode == 0, done.stderr
    folder = workplace.folder / "added"
    config, vocabulary, _, params = behrt_jax.load(folder)
    before = behrt_jax.load(joint)
    old = len(before.vocabulary)
    assert config.model.vocab_size == len(vocabulary) > old and vocabulary.codes[: old - 5] == before.vocabulary.codes
    np.testing.assert_array_equal(table_of(params)[:old], table_of(before.params))
    again = workplace.run(given, "experiments.finetune")
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stderr
    assert len(finetuned.load(folder, None).tokens) == len(vocabulary)
    output = workplace.folder / "added.parquet"
    wanted = [f"--workdir={folder}", f"--data={renamed}", f"--labels={conditions_labels}", f"--output={output}"]
    done = workplace.run(wanted, "experiments.predict")
    assert done.returncode == 0 and "coverage of all: " in done.stdout, done.stderr
    both = pl.read_parquet(output).join(
        pl.read_parquet(folder / "predictions.parquet"), on=["subject_id", "prediction_time"], suffix="_then"
    )
    assert both.height == json.loads((folder / "evaluation.json").read_text())["patients"]
    name = "predicted_boolean_probability"
    np.testing.assert_allclose(both[name], both[f"{name}_then"], rtol=1e-4)
