"""Data that lack what an objective is about: one line before any training, never a loss that is no number."""

import dataclasses
import datetime

import jax
import numpy as np
import polars as pl
import pytest

from behrt_jax.data import dataset, next_visit_targets
from behrt_jax.evaluation.pretrained import evaluate_run
from behrt_jax.training import examples, pretraining
from configs import default
from tests.experiments.conftest import TINY

CODES = ("CONDITION//A", "CONDITION//B", "CONDITION//C")
PATIENTS = {"train": 12, "tuning": 6, "held_out": 6}


def write(folder, visits: dict[str, int], codes=CODES):
    """Writes patients with so many visits by split, all with two codes of three."""
    rows, splits, subject = [], [], 0
    for split, number in PATIENTS.items():
        for _ in range(number):
            subject += 1
            splits.append((subject, split))
            for visit in range(visits[split]):
                time = datetime.datetime(2020, 1, 1) + datetime.timedelta(days=30 * visit + subject)
                rows += [(subject, time, codes[(subject + visit + each) % len(codes)]) for each in range(2)]
    (folder / "data").mkdir(parents=True)
    (folder / "metadata").mkdir()
    columns = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}
    pl.DataFrame(rows, columns, orient="row").write_parquet(folder / "data" / "0.parquet")
    names = {"subject_id": pl.Int64, "split": pl.String}
    pl.DataFrame(splits, names, orient="row").write_parquet(folder / "metadata" / "subject_splits.parquet")
    return folder


def config_of(folder, objective: str, visits: dict[str, int], codes=CODES, **overrides):
    config = default.get_config()
    keys = {key: value for key, value in TINY.items() if key in config.get_ref("data").get().keys() or "." in key}
    data = {"data.path": str(write(folder / "meds", visits, codes)), "data.prepared_dir": str(folder / "prepared")}
    keys = {**keys, **data, "objective.name": objective, "objective.min_patients": 1, "data.row_length": 16}
    config.update_from_flattened_dict({**keys, **overrides})
    return config


def begin(config):
    """What pre-training does before it trains."""
    prepared, train, trained = pretraining.setup(config)
    tuning = dataset.read(prepared.folder, "tuning")
    return train, trained, pretraining.tuning_scorer(trained, tuning)


@pytest.mark.parametrize("split", ["train", "tuning"])
@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("next_visit", r"objective\.name=next_visit: no next visits to predict in {split} of .*meds; expected"),
        ("time_to_event", r"objective\.name=time_to_event: no visits to predict events from in {split} of .*meds; exp"),
        ("joint", r"objective\.next_visit_weight: no next visits .* in {split} of .*; set it to 0, or use more"),
    ],
)
def test_no_second_visit_is_one_line_before_training(tmp_path, objective, message, split):
    config = config_of(tmp_path, objective, {**dict.fromkeys(PATIENTS, 3), split: 1})
    with pytest.raises(ValueError, match=message.format(split=split)) as caught:
        begin(config)
    assert "\n" not in str(caught.value) and "learning_rate" not in str(caught.value)


@pytest.mark.parametrize("first", [True, False])
def test_events_that_all_came_before_are_none_ahead(tmp_path, first):
    config = config_of(tmp_path, "time_to_event", dict.fromkeys(PATIENTS, 4), codes=("CONDITION//A",) * 2)
    config.objective.first_event_only = first
    if not first:
        begin(config)
        return
    with pytest.raises(ValueError, match="no visits to predict events from in train"):
        begin(config)


def test_rows_too_short_for_two_visits_are_told_as_such(tmp_path):
    many = tuple(f"CONDITION//{number}" for number in range(3))
    config = config_of(tmp_path, "next_visit", dict.fromkeys(PATIENTS, 3), many, **{"data.row_length": 8})
    config.data.use_sep = True
    _, trained, _ = begin(config)  # three tokens a visit, with [CLS]: two fit in a row of eight
    empty = [{"codes": np.zeros((2, 8), np.int32)}]

    class Nothing:
        prepare = staticmethod(lambda columns, key: columns)
        count = staticmethod(lambda columns: {"next_visit/loss": columns["codes"].sum() * 1.0})

    with pytest.raises(ValueError, match=r"in rows of 8 tokens \(data\.row_length\) of tuning"):
        examples.check_batches(trained.recipe, Nothing, empty, "tuning")  # pyright: ignore[reportArgumentType]
    assert trained.model.objectives == ("next_visit",)


def test_counts_are_those_of_the_data(tmp_path, messages):
    config = config_of(tmp_path, "joint", {"train": 3, "tuning": 2, "held_out": 1}, **{"data.min_patients": 1})
    config.objective.time_to_event_weight = 1.0
    train, trained, score = begin(config)
    found = examples.count(trained, train)
    # Two codes a visit; each visit after the first is to be predicted.
    assert found == {"mlm": 12 * 3 * 2, "next_visit": 12 * 2, "time_to_event": 12 * 3}
    index = pretraining.index(trained.recipe.data, train)
    assert found["next_visit"] == len(next_visit_targets.find_next_visits(train, index, trained.is_target))
    assert (
        "examples of train: 72 codes to mask, 24 next visits to predict, 36 visits to predict events from" in messages
    )
    assert any(line.startswith("examples of tuning: 24 codes to mask, 6 next visits") for line in messages)
    variables = pretraining.initialize(trained, train)(jax.random.key(0))
    assert all(np.isfinite(value) for value in score(variables).values())


def test_codes_that_all_carry_a_value_are_none_to_mask_where_values_are_not_masked(tmp_path):
    config = config_of(tmp_path, "mlm", dict.fromkeys(PATIENTS, 2))
    train, trained, _ = begin(config)
    edges = dict.fromkeys(trained.vocabulary.codes, (1.0,))
    valued = dataclasses.replace(
        trained.vocabulary, codes=tuple(f"{code}//Q1" for code in trained.vocabulary.codes), value_edges=edges
    )
    objective = dataclasses.replace(trained.recipe.objective, mask_values=False)
    recipe = dataclasses.replace(trained.recipe, objective=objective)
    task = trained._replace(recipe=recipe, vocabulary=valued)
    assert examples.count(task, train) == {"mlm": 12 * 2 * 2} and examples.count(task, train, True) == {"mlm": 0}
    with pytest.raises(ValueError, match=r"objective\.name=mlm: no codes to mask in train of .*; expected a code in"):
        examples.check(recipe, {"mlm": 0}, "train")


@pytest.mark.slow
def test_held_out_without_a_second_visit_is_left_out_of_the_evaluation_and_the_rest_is_written(workplace, tmp_path):
    keys = {"data__path": write(tmp_path / "meds", {"train": 4, "tuning": 4, "held_out": 1})}
    keys |= {"objective__name": "joint", "objective__time_to_event_weight": 1.0, "objective__min_patients": 1}
    keys |= {"train__num_steps": 2, "train__evaluate_every": 2}
    done = workplace.run([*workplace.arguments("alone", **keys), "--nobaselines"])
    assert done.returncode == 0, done.stderr
    assert "warning: held_out has no next visits to predict; the evaluation will leave them out" in done.stdout
    assert "next visits: not scored, as 6 patients have no next visits to predict" in done.stdout
    result = evaluate_run(workplace.folder / "alone", "held_out", with_baselines=False)
    assert {name.partition("/")[0] for name in result.own} == {"mlm"}
