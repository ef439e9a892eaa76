"""Continuous values as commands use them: pre-trained, evaluated, published, embedded, fine-tuned, explained."""

import datetime
import json
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest

import behrt_jax
from behrt_jax.baselines import values
from behrt_jax.evaluation import tables
from behrt_jax.evaluation.small_cells import drop_small
from behrt_jax.publishing import model_card, publish
from behrt_jax.report import scores, source
from tests.experiments.conftest import evaluation_of
from tests.experiments.test_finetune import arguments

KEYS = {"data__codes_exclude": ("MEDS_BIRTH",), "data__value_encoding": "continuous", "data__row_length": 128}


@pytest.fixture(scope="module")
def valued(workplace) -> Path:
    """The workdir of a run that reads and predicts values, evaluated beside baselines."""
    steps = {"train__num_steps": 10, "train__evaluate_every": 10, "objective__value_weight": 0.5}
    given = workplace.arguments("valued", **KEYS, **steps, model__value_encoding="film")
    networks = {"behrt_jax.baselines.masked_codes.RECIPES": {}, "behrt_jax.baselines.masked_codes.NETWORK_STEPS": 1}
    done = workplace.run(given, constants=networks)
    assert done.returncode == 0, done.stderr
    assert "values of masked codes (" in done.stdout and "values of codes to mask" in done.stdout
    return workplace.folder / "valued"


def test_values_are_evaluated_beside_baselines(valued):
    result = evaluation_of(valued)
    models = {"run": result["metrics"], **result["baselines"]}
    found = {name: each for name, each in models.items() if "value/quantile_loss" in each}
    assert found.keys() == {"run", values.CODE_QUANTILES, values.NEAREST}
    reference = found[values.CODE_QUANTILES]["value/quantile_loss"]["value"]
    for each in found.values():
        assert {name for name in each if name.startswith("value/")} == {
            f"value/{name}" for name in ("quantile_loss", "skill", "coverage")
        }
        loss, skill, coverage = (each[f"value/{name}"] for name in ("quantile_loss", "skill", "coverage"))
        assert skill["value"] == pytest.approx(1 - loss["value"] / reference) and skill["low"] <= skill["high"]
        assert 0 < coverage["value"] <= 1 and loss["low"] < loss["value"] < loss["high"]
        assert loss["n"] == coverage["n"] < result["metrics"]["mlm/loss"]["n"] and 3 < loss["patients"] <= 10
    assert len({each["value/quantile_loss"]["n"] for each in found.values()}) == 1
    assert not any(name.endswith("perplexity") and name.startswith("value") for name in result["metrics"])
    difference = result["versus"][values.NEAREST]["value/quantile_loss"]["value"]
    losses = [found[name]["value/quantile_loss"]["value"] for name in ("run", values.NEAREST)]
    assert difference == pytest.approx(losses[0] - losses[1])


def test_the_table_and_the_page_show_values_unless_they_are_of_too_few(valued):
    result = evaluation_of(valued)
    assert "quantile loss" in tables.format_result(result) and "coverage, 80% interval" in tables.format_result(result)
    titles = [getattr(part, "caption", "") for part in scores.held_out(source.load(valued, None, True)).parts]
    assert any(title.startswith("Values of masked codes: ") for title in titles)
    assert any(title == "Values of masked codes: paired differences" for title in titles)
    shown, _ = drop_small(result, 11)
    assert not [name for each in (shown["metrics"], *shown["baselines"].values()) for name in each]


def test_a_published_encoder_with_values_is_loaded_as_it_was(valued, workplace):
    output = workplace.folder / "valued_published"
    lines = publish.publish(valued, output, model_card.Origin("simulated", "Apache-2.0", "Made by Synthea."), 1)
    mine, theirs = behrt_jax.load(output), behrt_jax.load(valued)
    jax.tree.map(np.testing.assert_array_equal, mine.params, theirs.params)
    assert mine.vocabulary == theirs.vocabulary and mine.vocabulary.value_scales
    assert mine.model == theirs.model and mine.model.predicts_values and mine.model.config.value_encoding == "film"
    assert f"and scales of those of {len(mine.vocabulary.value_scales):,}" in lines[-1]
    assert "values of masked codes (" in (output / "README.md").read_text()


def test_embeddings_follow_values(valued, workplace):
    """The same patients with other numbers have other embeddings."""
    other = workplace.folder / "other_values"
    for part in ("data", "metadata"):
        (other / part).mkdir(parents=True)
    events = pl.read_parquet(workplace.data / "data" / "0.parquet")
    events.with_columns(pl.col("numeric_value") * 1.2).write_parquet(other / "data" / "0.parquet")
    splits = pl.read_parquet(workplace.data / "metadata" / "subject_splits.parquet")
    splits.write_parquet(other / "metadata" / "subject_splits.parquet")
    found = []
    for number, data in enumerate((workplace.data, other)):
        file = workplace.folder / f"valued-{number}.parquet"
        done = workplace.run([f"--workdir={valued}", f"--data={data}", f"--output={file}"], "experiments.embed")
        assert done.returncode == 0, done.stderr
        found.append(pl.read_parquet(file).sort("subject_id"))
    assert found[0]["subject_id"].equals(found[1]["subject_id"]) and len(found[0]) == 60
    first, second = (each["embedding"].to_numpy() for each in found)
    assert np.isfinite(first).all() and (abs(first - second).max(axis=1) > 1e-4).sum() > 50  # some have no number


@pytest.fixture(scope="module")
def adapted(valued, workplace) -> tuple[Path, Path]:
    """The workdir of a fine-tuned run on an encoder with values, and its labels."""
    splits = pl.read_parquet(workplace.data / "metadata" / "subject_splits.parquet").sort("subject_id")
    labels, time = workplace.folder / "every_other.parquet", datetime.datetime(2020, 1, 1)
    splits.select(
        "subject_id", prediction_time=pl.lit(time), boolean_value=pl.int_range(pl.len()) % 2 == 0
    ).write_parquet(labels)
    steps = {"train__num_steps": 4, "train__evaluate_every": 4}
    given = arguments(workplace, "classification", labels, "valued_adapted", pretrained=valued, **steps)
    done = workplace.run([*given, "--nobaselines"], "experiments.finetune")
    assert done.returncode == 0, done.stderr
    return workplace.folder / "valued_adapted", labels


@pytest.mark.slow
def test_a_fine_tuned_run_takes_values_from_its_encoder_and_predicts(adapted, workplace):
    folder, labels = adapted
    recipe = json.loads((folder / "config.json").read_text())["recipe"]
    assert recipe["data"]["value_encoding"] == "continuous" and recipe["model"]["value_encoding"] == "film"
    output = workplace.folder / "valued_predicted.parquet"
    given = [f"--workdir={folder}", f"--data={workplace.data}", f"--labels={labels}", f"--output={output}"]
    done = workplace.run(given, "experiments.predict")
    assert done.returncode == 0, done.stderr
    keys = ["subject_id", "prediction_time"]
    both = pl.read_parquet(output).join(pl.read_parquet(folder / "predictions.parquet"), on=keys, suffix="_then")
    assert both.height > 5
    name = "predicted_boolean_probability"
    np.testing.assert_allclose(both[name], both[f"{name}_then"], atol=1e-5)


@pytest.mark.slow
def test_predictions_of_models_with_values_are_explained(valued, adapted, workplace):
    for folder in (valued, adapted[0]):
        given = [f"--workdir={folder}", "--patients=1", "--num_patients=4", "--show_patients"]
        done = workplace.run(given, "experiments.explain")
        assert done.returncode == 0, done.stderr
        assert len(json.loads((folder / "attributions.json").read_text())["patients"]) == 1
