"""Few labels: who is drawn, what training may see, and the command, which goes on and tabulates what it keeps."""

import dataclasses
import datetime
import json

import jax
import numpy as np
import polars as pl
import pytest

from behrt_jax.data import dataset
from behrt_jax.finetuning import predict, sampling
from behrt_jax.labels.labels import Labels
from behrt_jax.probing import arms as probing_arms
from behrt_jax.probing import features, few_label_task
from behrt_jax.probing.arms import FITTED
from behrt_jax.probing.features import DEMOGRAPHICS, Reader, at_random_times
from behrt_jax.probing.table import AGE, BOOSTING, COUNTS, OURS, RANDOM, SCRATCH, TUNED
from behrt_jax.training import workdir
from experiments.studies import few_labels
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


@pytest.fixture
def config(workplace, joint):
    return config_of(workplace, joint)


def config_of(workplace, joint):
    config = few_labels.recipe()
    config.pretrained = str(joint)
    places = {"data.path": str(workplace.data), "data.prepared_dir": str(workplace.folder / "prepared")}
    config.update_from_flattened_dict({**TRAINING, **places, "survival.num_bins": 2})
    return config


@pytest.fixture(scope="module", params=["ill", pytest.param("event", marks=pytest.mark.slow)])
def task(request, workplace, joint, files, tmp_path_factory) -> few_label_task.Task:
    config = config_of(workplace, joint)
    folder = tmp_path_factory.mktemp("few") / request.param
    return few_label_task.read_task(config.to_dict(), files[request.param], 2, folder)


@pytest.fixture(scope="module")
def reader(task, joint, tmp_path_factory) -> Reader:
    patients = dataset.read(task.prepared.folder, "train")
    return Reader(workdir.load_pretraining(joint, "run"), patients, tmp_path_factory.mktemp("features"))


def blocks_of(reader: Reader, found) -> dict[str, np.ndarray]:
    return reader.blocks(found.histories, found.labels.prediction_times)


def made(outcome: list[int], subjects: list[int]) -> Labels:
    number = len(subjects)
    times = np.datetime64("2010-01-01", "us") + np.arange(number) * np.timedelta64(1, "D")
    values = np.array(outcome, np.float32)[:, None]
    return Labels("binary", ("ill",), np.array(subjects), times, values, np.full(number, np.nan), np.zeros(number, int))


def test_of_each_patient_at_most_so_many_labels_of_each_outcome_are_taken():
    labels = made([0, 0, 0, 1, 0, 1, 1, 1], [1, 1, 1, 1, 2, 2, 2, 2])
    rows = sampling.cap(labels, 2)
    found = list(zip(labels.subject_ids[rows], labels.values[rows, 0], strict=True))
    assert sorted(found) == [(1, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 1)] and list(rows) == sorted(rows)
    np.testing.assert_array_equal(rows, sampling.cap(labels, 2))
    assert len(sampling.cap(labels, 9)) == len(labels)


@pytest.mark.parametrize("size", [4, 5])
def test_so_many_patients_in_all_are_drawn_of_both_outcomes(task, size):
    found = task.splits["train"].labels
    drawn, again, other = (found.take(sampling.draw_rows(found, size, 0, draw)) for draw in (1, 1, 2))
    patients = np.unique(drawn.subject_ids)
    assert len(patients) == size and 1 < drawn.outcomes().sum() < len(drawn) - 1
    np.testing.assert_array_equal(again.subject_ids, drawn.subject_ids)
    assert not np.array_equal(other.subject_ids, drawn.subject_ids)


def spoil(labels: Labels, rows: np.ndarray) -> Labels:
    """Turns the outcomes of some labels over."""
    values, events = labels.values.copy(), labels.events.copy()
    values[rows], events[rows] = 1 - values[rows], 1 - events[rows]
    return dataclasses.replace(labels, values=values, events=events)


@pytest.mark.slow
@pytest.mark.parametrize("arm", [*FITTED, SCRATCH, TUNED])
def test_only_the_labels_of_drawn_patients_are_learned(task, reader, arm):
    """Neither tuning nor the rest of train chooses anything: k is all the patients whose labels count."""
    train, compiled = task.splits["train"], {}
    known, wanted = (blocks_of(reader, task.splits[name]) for name in ("train", "held_out"))
    size = 20 if arm == BOOSTING else 5
    rows = sampling.draw_rows(train.labels, size, 0, 0)

    def scores(own: bool, others: bool):
        labels = spoil(train.labels, rows) if own else train.labels
        labels = spoil(labels, np.setdiff1d(np.arange(len(labels)), rows)) if others else labels
        if arm in FITTED:
            return probing_arms.fit_and_score(arm, known, wanted, labels, rows)
        tuning = task.splits["tuning"]
        tuning = tuning._replace(
            labels=spoil(tuning.labels, np.arange(len(tuning.labels))) if others else tuning.labels
        )
        splits = {**task.splits, "train": train._replace(labels=labels), "tuning": tuning}
        return few_label_task.train_and_score(task._replace(splits=splits), rows, 0, arm == TUNED, compiled)

    before = scores(own=False, others=False)
    assert before.shape == (len(task.splits["held_out"].labels),) and np.isfinite(before).all()
    np.testing.assert_array_equal(scores(own=False, others=True), before)
    assert np.abs(scores(own=True, others=False) - before).max() > 1e-6


def test_features_are_scaled_by_all_of_train_whoever_is_labelled(task, reader):
    """Dividing by the deviation of k rows would make the rarest code of a patient the largest number."""
    train = task.splits["train"]
    whole = blocks_of(reader, train)
    few = sampling.take(train, sampling.draw_rows(train.labels, 4, 0, 0))
    kept = np.isin(train.labels.subject_ids, few.labels.subject_ids)
    everyone = reader.scaling(reader._read(*at_random_times(reader.unlabeled)))
    for name, values in blocks_of(reader, few).items():
        np.testing.assert_allclose(values, whole[name][kept], atol=1e-5)
        spread = everyone[name] if name != DEMOGRAPHICS else everyone[name][:, :1]  # age
        assert spread.var(axis=0).sum() == pytest.approx(1, abs=0.05) and np.abs(spread.mean(axis=0)).max() < 1e-3


@pytest.mark.slow
def test_from_scratch_the_encoder_is_random_at_first_and_then_trained(task, monkeypatch):
    """What is scored are the parameters after the last step, and they are not those of the beginning."""
    rows, ends = sampling.draw_rows(task.splits["train"].labels, 5, 0, 0), {}
    score = predict.score

    def note(recipe, model, params, found):
        ends[recipe.train.num_steps] = params["params"]
        return score(recipe, model, params, found)

    monkeypatch.setattr(predict, "score", note)
    for steps in (1, 12):
        train = dataclasses.replace(task.recipe.train, num_steps=steps)
        recipe = dataclasses.replace(task.recipe, train=train)
        few_label_task.train_and_score(task._replace(recipe=recipe), rows, 0, False, {})
    moved = [
        np.abs(a - b).max() for a, b in zip(*(jax.tree.leaves(ends[steps]["behrt"]) for steps in (1, 12)), strict=True)
    ]
    assert np.median(moved) > 1e-4
    theirs = zip(
        jax.tree.leaves(ends[1]["behrt"]), jax.tree.leaves(dict(task.pretrained_params["params"]["behrt"])), strict=True
    )
    assert np.median([np.abs(a - b).max() for a, b in theirs]) > 0.01


def test_embeddings_are_kept_and_those_of_others_are_not_taken_for_them(task, reader, monkeypatch):
    found, train = task.splits["held_out"], task.splits["train"]
    first = blocks_of(reader, found)
    monkeypatch.setattr(features, "embed_histories", None)  # fails where it is called
    for name, values in blocks_of(reader, found).items():
        np.testing.assert_array_equal(values, first[name])
    with pytest.raises(TypeError):
        blocks_of(reader, sampling.take(train, np.arange(3)))


def test_results_of_other_labels_are_not_mixed_in(config, task, tmp_path):
    other = pl.read_parquet(task.recipe.labels)
    kinds = {"boolean_value": ~pl.col("boolean_value")} if "boolean_value" in other else {"event": ~pl.col("event")}
    file = str(tmp_path / "same.parquet")
    other.write_parquet(file)
    few_label_task.read_task(config.to_dict(), file, 2, tmp_path / "run")
    few_label_task.read_task(config.to_dict(), file, 2, tmp_path / "run")
    other.with_columns(**kinds).write_parquet(file)
    with pytest.raises(ValueError, match="labels"):
        few_label_task.read_task(config.to_dict(), file, 2, tmp_path / "run")


def test_results_of_another_recipe_are_not_mixed_in_and_labels_of_other_kinds_are_refused(config, task, tmp_path):
    few_label_task.read_task(config.to_dict(), task.recipe.labels, 2, tmp_path)
    with pytest.raises(ValueError, match="began with other contents of labels"):
        few_label_task.read_task(config.to_dict(), task.recipe.labels, 3, tmp_path)
    config.layer_decay = 0.5
    with pytest.raises(ValueError, match="layer_decay: 0.8 there, 0.5 now"):
        few_label_task.read_task(config.to_dict(), task.recipe.labels, 2, tmp_path)
    classes = pl.DataFrame({"subject_id": [1, 2, 3], "prediction_time": [datetime.datetime(2020, 1, 1)] * 3})
    classes.with_columns(categorical_value=pl.Series(["a", "b", "c"])).write_parquet(tmp_path / "classes.parquet")
    with pytest.raises(ValueError, match="found multiclass labels; expected one binary label, or times to an event"):
        few_label_task.read_task(config.to_dict(), str(tmp_path / "classes.parquet"), 3, tmp_path)


def arguments(place: Workplace, joint, files: dict[str, str], draws: int) -> list[str]:
    keys = {**TRAINING, "data.path": place.data, "data.prepared_dir": place.folder / "prepared"}
    given = [f"--config.{key}={value}" for key, value in keys.items()]
    labels = ",".join(f"{name}={file}" for name, file in files.items())
    own = [f"--pretrained={joint}", f"--labels={labels}", "--sizes=5", f"--draws={draws}", "--max_labels_per_patient=1"]
    return [*own, "--trained_draws=1", f"--workdir={place.folder / 'few'}", *given]


@pytest.mark.slow
def test_the_command_goes_on_and_its_table_says_what_its_file_holds(workplace, joint, files):
    files = {"ill": files["ill"]}
    done = workplace.run(arguments(workplace, joint, files, draws=1), "experiments.studies.few_labels")
    assert done.returncode == 0, done.stderr
    results = workplace.folder / "few" / "ill" / "results.jsonl"
    first = results.read_text()
    assert first.count("\n") == 5  # age, counts, random encoder, pre-trained, scratch
    results.write_text(first + first[:100])  # as if it were killed while it wrote
    done = workplace.run(arguments(workplace, joint, files, draws=2), "experiments.studies.few_labels")
    assert done.returncode == 0, done.stderr
    assert results.read_text().startswith(first) and results.read_text().count("\n") == 8
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    arms = (AGE, COUNTS, RANDOM, SCRATCH, OURS)
    means = {arm: np.mean([line["value"] for line in lines if line["arm"] == arm]) for arm in arms}
    table = (workplace.folder / "few" / "few_labels.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| ill, AUROC"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:7] == ["5", *(f"{mean:.3f}" for mean in means.values())]
    assert cells[7].startswith(f"{means[OURS] - means[COUNTS]:+.3f} [")
    assert "Pre-trained against age alone, no label, 1 cells:" in table and table in done.stdout
