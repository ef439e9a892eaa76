"""Fine-tuning as a user runs it: labels of sixty bundled patients, a tiny model, predictions for new times."""

import dataclasses
import json
import re

import jax
import meds_evaluation.schema
import numpy as np
import polars as pl
import pytest

import behrt_jax
from behrt_jax.data import dataset
from behrt_jax.data.events import SPLITS_FILE
from behrt_jax.data.prepare import prepare
from behrt_jax.finetuning import head_features, labeled_histories, predict, setup
from behrt_jax.labels import labels as label_data
from behrt_jax.training import workdir
from tests.experiments.conftest import FINE_TUNING, TINY, Workplace, assert_same_end, evaluation_of, metrics_of
from tests.experiments.conftest import finetuning_arguments as arguments

MODEL = [key for key in TINY if key.startswith("model.")]


@pytest.fixture(scope="session")
def within_five_years(workplace, deaths):
    """Binary labels: dead within five years of the date."""
    rows = pl.read_parquet(deaths)
    early = pl.col("event") & (pl.col("event_time") - pl.col("prediction_time") < pl.duration(days=1826))
    file = workplace.folder / "five_years.parquet"
    rows.select("subject_id", "prediction_time", boolean_value=early).write_parquet(file)
    return file


def test_a_run_says_what_it_found_and_what_it_reached(survival_run, deaths):
    folder, done = survival_run
    rows = pl.read_parquet(deaths)
    splits = [line for line in done.stdout.splitlines() if " labels of " in line]
    assert [line.split(":")[0] for line in splits] == ["train", "tuning", "held_out"]
    assert sum(int(line.split()[1].replace(",", "")) for line in splits) <= rows.height
    known = float(done.stdout.split("coverage of train: the vocabulary knows ")[1].split("%")[0])
    assert 50 < known < 100  # rare codes are [UNK]
    found = evaluation_of(folder)
    assert 0 <= found["metrics"]["survival/c_index"]["value"] <= 1 and set(found["baselines"]) == {
        "the regression on codes alone"
    }
    assert {file.name for file in (folder / "figures").iterdir()} >= {"kaplan_meier.png"}
    said = pl.read_parquet(folder / "predictions.parquet")
    risks = said.select(pl.selectors.starts_with("risk/")).to_numpy()
    assert (np.diff(risks, axis=1) >= 0).all() and (risks > 0).all() and (risks < 1).all()
    # What training begins with is scored too, as it may be the best.
    assert [line["step"] for line in metrics_of(folder, "tuning")][:2] == [0, 4]
    assert "regression on codes 1 of 1: " in done.stdout


@pytest.mark.parametrize("given", [{"data": "other"}, {"split": "tuning"}])
def test_an_evaluation_of_other_patients_is_refused(survival_run, given):
    ((name, value),) = given.items()
    with pytest.raises(ValueError, match=f"--{name}={value}: .*survival is fine-tuned.* use experiments.predict"):
        behrt_jax.evaluate(survival_run[0], **given)


def test_the_encoder_begins_where_pre_training_stopped(workplace, deaths, joint):
    config = tiny_config("survival", workplace, deaths, pretrained=str(joint))
    task = setup.setup(config)
    begun = task.initialize(jax.random.key(1))["params"]
    trained = behrt_jax.load(joint).params["params"]
    for leaf, other in zip(*(jax.tree.leaves(part["behrt"]) for part in (begun, trained)), strict=True):
        np.testing.assert_array_equal(leaf, other)
    recipe = task.recipe
    assert recipe.model.rotary == "ages" and recipe.outcome.num_causes == 1 and len(recipe.outcome.edges) > 1  # pyright: ignore
    assert task.facts.survival_edges == recipe.outcome.edges and not config.survival.edges  # pyright: ignore


def tiny_config(recipe: str, place: Workplace, labels, **overrides):
    module = __import__(f"configs.{recipe}", fromlist=["get_config"])
    config = module.get_config()
    keys = {**{key: TINY[key] for key in MODEL}, **FINE_TUNING, "data.row_length": 64, "data.min_patients": 3}
    keys |= {"labels": str(labels), "data.path": str(place.data), "data.prepared_dir": str(place.folder / "prepared")}
    config.update_from_flattened_dict({**keys, **overrides})
    return config


def test_predictions_for_the_same_times_are_those_of_the_evaluation(workplace, survival_run, deaths):
    folder, _ = survival_run
    times, output = workplace.folder / "times.parquet", workplace.folder / "predicted.parquet"
    pl.read_parquet(deaths).select("subject_id", "prediction_time").write_parquet(times)
    given = [f"--workdir={folder}", f"--data={workplace.data}", f"--labels={times}", f"--output={output}"]
    done = workplace.run(given, "experiments.predict")
    assert done.returncode == 0, done.stderr
    both = pl.read_parquet(output).join(
        pl.read_parquet(folder / "predictions.parquet"), on=["subject_id", "prediction_time"], suffix="_then"
    )
    assert both.height == pl.read_parquet(folder / "predictions.parquet").height > 10
    for name in ("score/event", "risk/event@365"):
        np.testing.assert_allclose(both[name], both[f"{name}_then"], rtol=1e-4, atol=1e-6)


def test_a_fine_tuned_run_is_loaded_in_one_call(survival_run):
    config, vocabulary, model, params = behrt_jax.load(survival_run[0])
    ones = np.ones((2, 5), np.int32)
    covariates = np.zeros((2, model.num_covariates), np.float32)
    logits = model.apply(params, 6 * ones, 50.0 * ones, 0 * ones, ones, covariates=covariates)
    with pytest.raises(ValueError, match="covariates: found none; expected \\(2, 1\\)"):
        model.apply(params, 6 * ones, 50.0 * ones, 0 * ones, ones)
    assert logits.shape == (2, model.num_labels) == (2, len(config.survival.edges))
    assert len(vocabulary) == config.model.vocab_size


def test_nothing_after_the_prediction_time_moves_a_prediction(workplace, survival_run, deaths):
    recipe, _, vocabulary, model, params = workdir.load_finetuning(survival_run[0], "run")
    labels = label_data.read_labels([deaths])
    prepared = prepare(recipe.data)
    regression = head_features.load(survival_run[0], recipe.head)
    patients = dataset.read(prepared.folder, "train")

    def said(patients):
        arguments = (patients, labels, vocabulary.tokens, "train")
        found = labeled_histories.find_histories(recipe.history, recipe.data.row_length, *arguments)
        (found,) = head_features.select(recipe.head, {"train": found}, vocabulary.tokens, regression).values()
        return found.labels, predict.score(recipe, model, params, found)

    mine, before = said(patients)
    # Codes at or after each patient's last prediction time are others now.
    last = np.full(len(patients), np.iinfo(np.int64).min)
    rows = np.searchsorted(patients.subject_ids, mine.subject_ids)
    minutes = (mine.prediction_times - np.datetime64("2000-01-01")) // np.timedelta64(1, "m") - patients.origins[rows]
    np.maximum.at(last, rows, minutes)
    later = (patients.minutes >= last[patients.owners]) & (patients.visits >= 0)
    earlier = (patients.minutes < last[patients.owners]) & (patients.visits >= 0)
    codes = patients.codes.copy()
    codes[later] = 5 + codes[later] % 7
    assert later.any()
    np.testing.assert_array_equal(said(dataclasses.replace(patients, codes=codes))[1], before)
    codes[earlier] = 5 + codes[earlier] % 7
    assert (said(dataclasses.replace(patients, codes=codes))[1] != before).any()


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_end(workplace, deaths):
    chosen = {**{key.replace(".", "__"): TINY[key] for key in MODEL}, "data__row_length": 64, "survival__loss": "cox"}
    whole = arguments(workplace, "survival", deaths, "cox-whole", **chosen)
    halves = arguments(workplace, "survival", deaths, "cox-halves", **chosen)
    done = workplace.run([*whole, "--nobaselines"], "experiments.finetune")
    assert done.returncode == 0, done.stderr
    process = workplace.start([*halves, "--nobaselines"], "experiments.finetune")
    file = workplace.folder / "cox-halves" / "metrics.jsonl"
    while process.poll() is None and not (file.exists() and '"step": 4, "split": "tuning"' in file.read_text()):
        pass
    process.terminate()
    printed, errors = process.communicate(timeout=120)
    assert process.returncode in (0, 143), errors
    done = workplace.run([*halves, "--nobaselines"], "experiments.finetune")
    assert done.returncode == 0, done.stderr
    assert_same_end(workplace.folder / "cox-halves", workplace.folder / "cox-whole")
    assert evaluation_of(workplace.folder / "cox-halves") == evaluation_of(workplace.folder / "cox-whole")


@pytest.mark.slow
def test_classes_beside_baselines_with_lora(workplace, within_five_years, joint):
    chosen = {"pretrained": joint, "lora__rank": 2, "lora__alpha": 2.0, "optimizer__learning_rate": 0.01}
    given = arguments(workplace, "classification", within_five_years, "classes", **chosen)
    done = workplace.run(given, "experiments.finetune")
    assert done.returncode == 0, done.stderr
    folder = workplace.folder / "classes"
    (sizes,) = re.findall(r"parameters: ([\d,]+), of which ([\d,]+)", done.stdout)
    total, trained = (int(size.replace(",", "")) for size in sizes)
    assert trained < total / 2
    found = evaluation_of(folder)
    assert "classification/auroc" in found["metrics"] and len(found["baselines"]) == 4
    assert all("classification/auroc" in pairs for pairs in found["versus"].values())
    table = pl.read_parquet(folder / "predictions.parquet").to_arrow()
    meds_evaluation.schema.PredictionSchema.validate(meds_evaluation.schema.PredictionSchema.align(table))
    # LoRA's changes are merged on loading; the pre-trained kernels under them are as they were.
    loaded, before = behrt_jax.load(folder).params["params"], behrt_jax.load(joint).params["params"]
    jax.tree.map(np.testing.assert_array_equal, loaded["behrt"]["embedding"], before["behrt"]["embedding"])
    assert json.loads((folder / "fitted.json").read_text())["calibration"]["method"] == "temperature"


@pytest.mark.parametrize(
    ("recipe", "labels", "message"),
    [("classification", "deaths", "use --config=configs/survival.py"), ("survival", "missing", "no such file")],
)
def test_labels_that_do_not_fit_end_with_one_line(workplace, deaths, recipe, labels, message):
    file = deaths if labels == "deaths" else workplace.folder / "missing.parquet"
    done = workplace.run(arguments(workplace, recipe, file, "wrong"), "experiments.finetune")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_codes_are_added_to_a_pre_trained_vocabulary_alone(workplace, deaths):
    config = tiny_config("survival", workplace, deaths, add_codes=True)
    with pytest.raises(ValueError, match="add_codes: found True without pretrained"):
        setup.setup(config)


@pytest.mark.slow
def test_without_birth_and_sex_everything_runs_to_its_end(workplace, deaths, tmp_path):
    """What reads age and sex alone is left out, with a line; the rest is there."""
    events = pl.read_parquet(workplace.data / "data" / "0.parquet")
    for part in ("data", "metadata"):
        (tmp_path / "meds" / part).mkdir(parents=True)
    kept = ~pl.col("code").str.starts_with("GENDER//") & (pl.col("code") != "MEDS_BIRTH")
    events.filter(kept).write_parquet(tmp_path / "meds" / "data" / "0.parquet")
    splits = pl.read_parquet(workplace.data / SPLITS_FILE)
    splits.write_parquet(tmp_path / "meds" / SPLITS_FILE)
    chosen = {key.replace(".", "__"): TINY[key] for key in MODEL} | {"data__row_length": 64, "survival__num_bins": 3}
    given = arguments(workplace, "survival", deaths, "unborn", **chosen, data__path=tmp_path / "meds")
    fewer = {"behrt_jax.baselines.outcomes.TREES": 20}
    done = workplace.run(given, "experiments.finetune", constants=fewer)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\nage: unknown of (\d+) of \1 labelled patients", done.stdout)
    assert re.search(r"\nsex: unknown of (\d+) of \1 labelled patients", done.stdout)
    assert "Cox on age and sex: left out, as train has nothing for it to read" in done.stdout
    found = json.loads((workplace.folder / "unborn" / "evaluation.json").read_text())
    assert {"Cox on codes", "gradient boosting"} == set(found["baselines"])
    assert not any("sex=" in name or "age=" in name for name in found["metrics"])
