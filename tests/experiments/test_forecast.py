"""Heads that read the forecast of a pre-trained run: it is that run's own, and labels say how far it counts."""

import dataclasses

import jax
import numpy as np
import polars as pl
import pytest

import behrt_jax
from behrt_jax.finetuning import labeled_histories, probe_init, setup
from behrt_jax.models.classification import FORECAST_DAYS
from behrt_jax.models.inputs import model_arguments
from behrt_jax.probing import few_label_task
from tests.experiments.test_finetune import tiny_config

FORECAST = {"head.features": ("age_sex", "forecast")}
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def events(workplace):
    """A short run on first events at any time, as of configs/events.py."""
    keys = {
        "name": "time_to_event",
        "first_event_only": True,
        "query_times": "anytime",
        "min_patients": 3,
        "queries_per_row": 8,
    }
    keys = {f"objective__{key}": value for key, value in keys.items()}
    keys |= {"model__causal": True, "data__visits": "day", "train__num_steps": 4, "train__evaluate_every": 2}
    done = workplace.run([*workplace.arguments("events", **keys), "--nobaselines"])
    assert done.returncode == 0, done.stderr
    return workplace.folder / "events"


@pytest.fixture(scope="module")
def code(events):
    """A condition that the run knows."""
    return next(code for code in behrt_jax.load(events).vocabulary.codes if code.startswith("CONDITION//"))


@pytest.fixture(scope="module")
def task(workplace, deaths, events, code):
    config = tiny_config(
        "survival", workplace, deaths, pretrained=str(events), **FORECAST, **{"head.forecast_codes": (code,)}
    )
    return setup.setup(config)


@pytest.mark.slow
def test_what_is_foretold_is_the_forecast_of_the_pre_trained_run_at_the_prediction_time(task, events, code):
    built, recipe, facts = task, task.recipe, task.facts
    assert recipe.model.pooling == "mean" and facts.forecast_ids == (behrt_jax.load(events).vocabulary.ids[code],)
    variables, found = built.initialize(jax.random.key(0)), built.splits["held_out"]
    read = probe_init.read_patients(recipe, built.model, variables, found)
    width = recipe.model.hidden_dim
    assert read.shape == (len(found.labels), width + 1 + found.covariates.shape[1])
    np.testing.assert_array_equal(read[:, width + 1 :], found.covariates)
    _, _, model, params = behrt_jax.load(events)
    edges = np.array([0.0, *facts.forecast_edges, np.inf])
    spent = np.diff(np.minimum(edges, FORECAST_DAYS))

    def forecast(columns):
        inputs, named = model_arguments(columns)
        ids = np.asarray(columns["patient_ids"])
        numbers = range(1, 1 + columns["weights"].shape[1])
        ends = np.array([[np.flatnonzero(row == n)[-1] if (row == n).any() else 0 for n in numbers] for row in ids])
        log_rates = model.apply(params, *inputs, **named, visit_ends=ends, method="predict_events")
        rates = np.exp(np.asarray(log_rates)[..., facts.forecast_ids[0]])
        return np.log(rates @ spent)[..., None]

    np.testing.assert_allclose(
        read[:, width : width + 1], labeled_histories.read_each(recipe, found, 1, forecast), atol=1e-4
    )


def test_before_any_label_the_forecast_alone_is_read(task, events):
    built, recipe = task, task.recipe
    found, width = built.splits["held_out"], recipe.model.hidden_dim
    forecast = built.facts.forecast_ids, built.facts.forecast_edges
    begun = few_label_task.Task(recipe, built.prepared, built.splits, behrt_jax.load(events).params, forecast)
    read = probe_init.read_patients(recipe, built.model, built.initialize(jax.random.key(0)), found)[:, width]
    np.testing.assert_array_equal(few_label_task.forecast(begun), read)


@pytest.mark.slow
def test_the_head_begins_at_what_labels_say_of_the_forecast(task, monkeypatch):
    """Deaths that come as the forecast has it: the head begins at it, whatever age and sex say."""
    built, recipe = task, task.recipe
    variables, planted = built.initialize(jax.random.key(0)), {}
    width = recipe.model.hidden_dim
    for name, found in built.splits.items():
        forecasts = probe_init.read_patients(recipe, built.model, variables, found)[:, width]
        ranks = forecasts.argsort().argsort() / len(forecasts)
        labels = dataclasses.replace(found.labels, days=9000.0 - 8900 * ranks, events=np.ones(len(ranks), np.int32))
        planted[name] = found._replace(labels=labels)
    monkeypatch.setattr(probe_init, "SCALES", (0.0,))
    begun = probe_init.init_head(recipe, built.model, variables, planted)
    kernel = np.asarray(begun["params"]["head"]["output"]["kernel"])
    assert (kernel[width] > 0).all() and not kernel[:width].any()
    jax.tree.map(np.testing.assert_array_equal, begun["params"]["behrt"], variables["params"]["behrt"])


def test_from_scratch_the_head_for_events_is_another(task):
    built = task
    scratch = setup.build(built.recipe, built.facts, built.prepared, built.splits, None).initialize(jax.random.key(0))
    ours = built.initialize(jax.random.key(0))
    shapes = [jax.tree.map(np.shape, each) for each in (scratch, ours)]
    assert shapes[0] == shapes[1]
    pairs = zip(*(jax.tree.leaves(each["params"]["time_to_event"]) for each in (scratch, ours)), strict=True)
    assert any((a != b).any() for a, b in pairs)


@pytest.mark.parametrize("wrong", ["not causal", "unknown code", "from scratch", "several labels"])
def test_what_cannot_be_foretold_is_an_error(workplace, deaths, joint, events, code, wrong):
    run = {"not causal": str(joint), "from scratch": ""}.get(wrong, str(events))
    codes = ("CONDITION//NONE",) if wrong == "unknown code" else (code,)
    recipe, labels = "survival", deaths
    if wrong == "several labels":
        dates = pl.read_parquet(deaths).select("subject_id", "prediction_time")
        files = [workplace.folder / f"{name}.parquet" for name in ("odd", "late")]
        dates.with_columns(boolean_value=pl.col("subject_id") % 2 == 1).write_parquet(files[0])
        dates.with_columns(boolean_value=pl.col("subject_id") % 3 == 1).write_parquet(files[1])
        recipe, labels = "classification", ",".join(map(str, files))
    config = tiny_config(recipe, workplace, labels, pretrained=run, **FORECAST, **{"head.forecast_codes": codes})
    messages = {
        "not causal": "head.forecast_codes: pretrained=.* is trained on joint; expected a run of configs/events.py",
        "unknown code": "does not know CONDITION//NONE; expected codes that it knows",
        "from scratch": "forecast_codes: found CONDITION.* without pretrained; expected a run of configs/events.py",
        "several labels": "forecast_codes: found multilabel labels; expected one binary label, or times to an event",
    }
    with pytest.raises(ValueError, match=messages[wrong]):
        setup.setup(config)
