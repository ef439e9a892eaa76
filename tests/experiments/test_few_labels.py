"""Few labels: who is drawn, what training may see, and the command, which goes on and tabulates what it keeps."""

import dataclasses
import datetime
import json

import jax
import numpy as np
import polars as pl
import pytest

from behrt_jax.data.labels import Labels
from experiments import draws, few_labels, few_labels_run, few_labels_scores, probe_first
from tests.experiments.conftest import Workplace

TRAINING = {"train.batch_size": 4, "train.num_steps": 4, "train.evaluate_every": 2, "evaluation.batch_size": 4}


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def files(workplace) -> dict[str, str]:
    """Labels of two tasks: an outcome of every other patient, and times to an event of the same."""
    splits = pl.read_parquet(workplace.data / "metadata" / "subject_splits.parquet").sort("subject_id")
    times = pl.DataFrame({"prediction_time": [datetime.datetime(year, 1, 1) for year in (2018, 2019, 2020)]})
    rows = splits.with_row_index().select("subject_id", ill=pl.col("index") % 2 == 0).join(times, how="cross")
    made = {
        "ill": rows.rename({"ill": "boolean_value"}),
        "event": rows.with_columns(event_time=pl.col("prediction_time") + pl.duration(days=9 + pl.int_range(pl.len()))),
    }
    for name, table in made.items():
        table.rename({"ill": "event"}, strict=False).write_parquet(workplace.folder / f"few-{name}.parquet")
    return {name: str(workplace.folder / f"few-{name}.parquet") for name in made}


@pytest.fixture(scope="module", params=["ill", pytest.param("event", marks=pytest.mark.slow)])
def task(request, workplace, joint, files, tmp_path_factory) -> few_labels_run.Task:
    config = few_labels.recipe()
    config.pretrained = str(joint)
    places = {"data.path": str(workplace.data), "data.prepared_dir": str(workplace.folder / "prepared")}
    config.update_from_flattened_dict({**TRAINING, **places, "survival.num_bins": 2})
    folder = tmp_path_factory.mktemp("few") / request.param
    return few_labels_run.read_task(config, files[request.param], 2, True, folder, lambda line: None)


def made(outcome: list[int], subjects: list[int]) -> Labels:
    number = len(subjects)
    times = np.datetime64("2010-01-01", "us") + np.arange(number) * np.timedelta64(1, "D")
    values = np.array(outcome, np.float32)[:, None]
    return Labels("binary", ("ill",), np.array(subjects), times, values, np.full(number, np.nan), np.zeros(number, int))


def test_of_each_patient_at_most_so_many_labels_of_each_outcome_are_taken():
    labels = made([0, 0, 0, 1, 0, 1, 1, 1], [1, 1, 1, 1, 2, 2, 2, 2])
    rows = draws.cap(labels, 2)
    found = list(zip(labels.subject_ids[rows], labels.values[rows, 0], strict=True))
    assert sorted(found) == [(1, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 1)] and list(rows) == sorted(rows)
    np.testing.assert_array_equal(rows, draws.cap(labels, 2))
    assert len(draws.cap(labels, 9)) == len(labels)


@pytest.mark.parametrize("size", [4, 5])
def test_training_and_tuning_have_so_many_patients_of_both_outcomes_and_none_that_is_held_out(task, size):
    drawn = draws.draw_splits(task.splits, size, 0, 1)
    held_out = task.splits["held_out"].labels.subject_ids
    for name, found in drawn.items():
        patients = np.unique(found.labels.subject_ids)
        assert len(patients) == size and set(patients) < set(task.splits[name].labels.subject_ids)
        assert not set(patients) & set(held_out)
        assert 1 < found.labels.outcomes().sum() < len(found.labels) - 1
        np.testing.assert_array_equal(found.rows.subject_ids, found.labels.subject_ids)
        assert found.traits.shape[0] == len(found.histories) == len(found.labels)
        again, other = (draws.draw_splits(task.splits, size, 0, draw)[name].labels.subject_ids for draw in (1, 2))
        np.testing.assert_array_equal(again, found.labels.subject_ids)
        assert not np.array_equal(other, again)


def spoil(task: few_labels_run.Task, name: str, rows: np.ndarray) -> few_labels_run.Task:
    """Turns the outcomes of some rows of a split over."""
    found = task.splits[name]
    values, events = found.labels.values.copy(), found.labels.events.copy()
    values[rows], events[rows] = 1 - values[rows], 1 - events[rows]
    labels = dataclasses.replace(found.labels, values=values, events=events)
    return task._replace(splits={**task.splits, name: found._replace(labels=labels)})


def test_only_the_labels_of_drawn_patients_are_learned_and_only_those_of_held_out_are_scored(task):
    compiled, drawn = {}, draws.draw_splits(task.splits, 5, 0, 0)
    before = few_labels_run.run(task, 5, 0, True, compiled).value
    others = task
    for name, found in drawn.items():
        is_drawn = np.isin(task.splits[name].labels.subject_ids, found.labels.subject_ids)
        assert 0 < is_drawn.sum() < len(is_drawn)
        others = spoil(others, name, ~is_drawn)
    assert few_labels_run.run(others, 5, 0, True, compiled).value == before
    own = np.isin(task.splits["train"].labels.subject_ids, drawn["train"].labels.subject_ids)
    assert few_labels_run.run(spoil(task, "train", own), 5, 0, True, compiled).value != before
    after = few_labels_run.run(spoil(task, "held_out", task.splits["held_out"].labels.days != 0), 5, 0, True, compiled)
    if task.splits["train"].labels.kind == "binary":
        assert after.value == pytest.approx(1 - before) and len(compiled) == 1
    else:
        assert after.value != before


def begin(task: few_labels_run.Task, pretrained: bool, monkeypatch) -> tuple[dict, float]:
    """The parameters with which training begins, and what they score."""
    begun = []

    def note(config, steps, params, splits):
        begun.append(params)
        return params

    monkeypatch.setattr(few_labels_run, "fine_tune", note)
    score = few_labels_run.run(task, 5, 0, pretrained, {}).value
    return begun[0]["params"], score


def test_arms_differ_in_the_weights_of_the_encoder_alone(task, monkeypatch):
    config = task.config.copy_and_resolve_references()
    config.probe_first = False
    arms = [begin(task._replace(config=config), pretrained, monkeypatch) for pretrained in (False, True)]
    (scratch, its_score), (ours, our_score) = arms
    jax.tree.map(np.testing.assert_array_equal, scratch["head"], ours["head"])
    jax.tree.map(np.testing.assert_array_equal, ours["behrt"], dict(task.begun["params"]["behrt"]))
    same = [np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (scratch, ours)), strict=True)]
    assert not all(same)
    assert its_score == our_score  # a head that begins at age and sex reads nothing else


def test_a_probe_reads_what_embeddings_say_of_an_outcome_and_is_what_the_model_then_says(task, monkeypatch):
    drawn = draws.draw_splits(task.splits, 20, 0, 0)
    config = task.config.copy_and_resolve_references()
    its = few_labels_run.outcomes.build(config, task.prepared, drawn, task.begun)
    variables = its.initialize(jax.random.key(0))
    pooled = {name: probe_first.read_patients(config, its.model, variables, found) for name, found in drawn.items()}
    planted = {}
    for name, found in drawn.items():  # whoever is high in the first column is ill, soon
        high = pooled[name][:, 0] > np.median(pooled["train"][:, 0])
        days = np.where(high, 50.0, 900.0) if found.labels.kind == "survival" else found.labels.days
        values = high[:, None].astype(np.float32)[:, : found.labels.values.shape[1]]
        labels = dataclasses.replace(found.labels, values=values, days=days, events=high.astype(np.int32))
        planted[name] = found._replace(labels=labels)
    monkeypatch.setattr(probe_first, "SCALES", (0.3,))
    its = few_labels_run.outcomes.build(config, task.prepared, planted, task.begun)
    probed = probe_first.begin(config, its.model, variables, planted)
    reached = few_labels_scores.measure(config, its.model, probed, planted["tuning"]).value
    plain = few_labels_scores.measure(config, its.model, its.initialize(jax.random.key(0)), planted["tuning"]).value
    assert reached > plain + 0.05
    jax.tree.map(np.testing.assert_array_equal, probed["params"]["behrt"], variables["params"]["behrt"])
    monkeypatch.setattr(probe_first, "SCALES", (0.0,))
    monkeypatch.setattr(probe_first, "TRAITS", (1.0,))
    plainly = probe_first.begin(config, its.model, variables, planted)["params"]["head"]["output"]
    expected = its.initialize(jax.random.key(0))["params"]["head"]["output"]
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(plainly[name], expected[name], rtol=2e-2, atol=2e-3)


def test_results_of_another_recipe_are_not_mixed_in_and_labels_of_other_kinds_are_refused(workplace, task, tmp_path):
    config = task.config.copy_and_resolve_references()
    with config.unlocked():
        config.classification = config.survival = {}
    few_labels_run.workdir.open_workdir(tmp_path, task.config, task.prepared.vocabulary)
    with pytest.raises(ValueError, match="most_labels: 2 there, 3 now"):
        few_labels_run.read_task(config, task.config.labels, 3, True, tmp_path, lambda line: None)
    classes = pl.DataFrame({"subject_id": [1, 2, 3], "prediction_time": [datetime.datetime(2020, 1, 1)] * 3})
    classes.with_columns(categorical_value=pl.Series(["a", "b", "c"])).write_parquet(tmp_path / "classes.parquet")
    with pytest.raises(ValueError, match="found multiclass labels; expected one binary label, or times to an event"):
        few_labels_run.read_task(config, str(tmp_path / "classes.parquet"), 3, True, tmp_path, lambda line: None)


def arguments(place: Workplace, joint, files: dict[str, str], draws: int) -> list[str]:
    keys = {**TRAINING, "data.path": place.data, "data.prepared_dir": place.folder / "prepared"}
    given = [f"--config.{key}={value}" for key, value in keys.items()]
    labels = ",".join(f"{name}={file}" for name, file in files.items())
    own = [f"--pretrained={joint}", f"--labels={labels}", "--sizes=5", f"--draws={draws}", "--most_labels=1"]
    return [*own, f"--workdir={place.folder / 'few'}", *given]


@pytest.mark.slow
def test_the_command_goes_on_and_its_table_says_what_its_file_holds(workplace, joint, files):
    files = {"ill": files["ill"]}
    done = workplace.run(arguments(workplace, joint, files, draws=1), "experiments.few_labels")
    assert done.returncode == 0, done.stderr
    results = workplace.folder / "few" / "ill" / "results.jsonl"
    first = results.read_text()
    assert first.count("\n") == 2
    results.write_text(first + first[:100])  # as if it were killed while it wrote
    done = workplace.run(arguments(workplace, joint, files, draws=2), "experiments.few_labels")
    assert done.returncode == 0, done.stderr
    assert results.read_text().startswith(first) and results.read_text().count("\n") == 4
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    means = {arm: np.mean([line["value"] for line in lines if line["arm"] == arm]) for arm in few_labels.ARMS}
    pairs = [np.array([line["replicates"] for line in lines if line["arm"] == arm]) for arm in few_labels.ARMS]
    low, high = np.nanquantile(pairs[1].mean(axis=0) - pairs[0].mean(axis=0), [0.025, 0.975])
    change = means["pretrained"] - means["scratch"]
    table = (workplace.folder / "few" / "few_labels.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| ill |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == ["", *(f"{v:.3f}" for v in means.values()), f"{change:+.3f} [{low:+.3f}, {high:+.3f}]"]
    assert f"5 patients: above in {int(change > 0)} of 1 tasks" in table and table in done.stdout
