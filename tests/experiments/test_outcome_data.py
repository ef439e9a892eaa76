"""Labels beside their data: which are left out, out of time, and held-out ones that tell little or nothing."""

import datetime
import importlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from behrt_jax.data import events
from behrt_jax.data.hashing import hash_integers
from behrt_jax.evaluation import outcomes, small_cells
from behrt_jax.evaluation.small_cells import MIN_PATIENTS
from behrt_jax.finetuning import data as labeled_data
from behrt_jax.finetuning import predict, setup
from behrt_jax.finetuning.finetuned import FinetunedModel
from behrt_jax.labels import follow_up
from behrt_jax.metrics import bootstrap
from experiments.labels import label
from tests import tiny
from tests.experiments.conftest import ROOT, TINY, evaluation_of

YEARS = (2000, 2005, 2010, 2015, 2020)
MIMIC = Path(__file__).parents[3] / "shared" / "data" / "mimic-iv-demo-meds"


def january(year: int) -> datetime.datetime:
    return datetime.datetime(year, 1, 1)


@pytest.fixture(scope="module")
def table(workplace) -> pl.DataFrame:
    """Five prediction times of everyone, as times to an event: even subjects have it three years on."""
    subjects = pl.read_parquet(workplace.data / "metadata" / "subject_splits.parquet").sort("subject_id")
    times = pl.DataFrame({"prediction_time": [january(year) for year in YEARS]}).cast(pl.Datetime("us"))
    came = pl.col("subject_id") % 2 == 0
    return subjects.join(times, how="cross").with_columns(
        event_time=pl.when(came).then(pl.col("prediction_time").dt.offset_by("3y")).otherwise(january(2026)), event=came
    )


def configure(recipe: str, place, labels: pl.DataFrame, **overrides):
    """A tiny recipe whose labels are those of a table."""
    labels.drop("split", strict=False).write_parquet(file := place.folder / "labels.parquet")
    config = importlib.import_module(f"configs.{recipe}").get_config()
    keys = {key: value for key, value in TINY.items() if not key.startswith(("objective", "evaluation.num_mask"))}
    keys |= {"labels": str(file), "data.path": str(place.data), "data.prepared_dir": str(place.folder / "prepared")}
    config.update_from_flattened_dict({**keys, **{key.replace("__", "."): value for key, value in overrides.items()}})
    return config


def binary(table: pl.DataFrame) -> pl.DataFrame:
    return table.select("subject_id", "prediction_time", "split", boolean_value="event")


def read(config) -> tuple[dict, list[str]]:
    with tiny.collect_messages() as messages:
        return labeled_data.read_splits(setup.read(config.to_dict()), None)[1], messages


def test_out_of_time(workplace, table):
    """Train is before 2011 and knows nothing of 2011 on; the test is after, of the patients it always had."""
    whole, _ = read(configure("survival", workplace, table))
    splits, said = read(configure("survival", workplace, table, temporal_split__cutoff="2011-01-01"))
    cutoff = np.datetime64("2011-01-01", "us")
    for split, found in splits.items():
        labels, all_labels = found.labels, whole[split].labels
        side = all_labels.prediction_times < cutoff if split != "held_out" else all_labels.prediction_times >= cutoff
        np.testing.assert_array_equal(labels.subject_ids, all_labels.subject_ids[side])
        end = labels.prediction_times + (labels.days * 86_400e6).round().astype("timedelta64[us]")
        if split == "held_out":
            np.testing.assert_array_equal(labels.events, all_labels.events[side])
            continue
        assert (end <= cutoff).all() and len(labels) == len(found.histories)
        late = labels.prediction_times > cutoff - np.timedelta64(3 * 365, "D")  # those of 2010
        assert late.any() and not labels.events[late].any() and labels.events[~late].any()
    lines = {line.split(":")[0]: line for line in said if line.startswith("out of time")}
    assert "labels from 2011-01-01 on left out" in lines["out of time, train"]
    assert "labels before 2011-01-01 left out, 0 times to event censored" in lines["out of time, held_out"]
    number = int(lines["out of time, train"].split("left out, ")[1].split()[0].replace(",", ""))
    assert 0 < number < len(splits["train"].labels)


def test_training_may_have_the_labels_of_fewer_patients(workplace, table):
    whole, _ = read(configure("survival", workplace, table))
    splits, said = read(configure("survival", workplace, table, train__max_patients=7))
    number = len(np.unique(whole["train"].labels.subject_ids))
    assert f"train: 7 of {number} labelled patients are taken (train.max_patients)" in said
    mine = np.unique(splits["train"].labels.subject_ids)
    everyone = np.unique(whole["train"].labels.subject_ids)
    assert set(mine) == set(everyone[np.argsort(hash_integers(everyone))[:7]])
    for split, found in splits.items():
        kept = np.isin(whole[split].labels.subject_ids, mine) if split == "train" else np.array(True)
        np.testing.assert_array_equal(
            found.labels.prediction_times, whole[split].labels.prediction_times[kept].reshape(-1)
        )
    assert not any(line.startswith("train: 7 of") for line in read(configure("survival", workplace, table))[1])


def test_every_label_is_in_a_split_or_counted(workplace, table):
    config = configure("survival", workplace, table, temporal_split__cutoff="2011-01-01")
    splits, said = read(config)
    left_out = sum(int(word.replace(",", "")) for line in said for word in numbers_left_out(line))
    assert sum(len(found.labels) for found in splits.values()) + left_out == table.height


def numbers_left_out(line: str) -> list[str]:
    """The counts of labels left out in a line of the log."""
    if line.startswith("out of time"):
        return [line.split(": ")[1].split()[0]]
    if line.startswith("labels left out: "):
        return [part.split()[0] for part in line.removeprefix("labels left out: ").split(", ") if part[0].isdigit()]
    return []


def test_classes_out_of_time_end_a_window_before(workplace, table):
    keys = {"temporal_split__cutoff": "2011-01-01", "temporal_split__outcome_window_days": 730.0}
    splits, said = read(configure("classification", workplace, binary(table), **keys))
    latest = {split: found.labels.prediction_times.max() for split, found in splits.items()}
    assert latest["train"] == latest["tuning"] == np.datetime64("2005-01-01")  # 2010 is within two years
    assert splits["held_out"].labels.prediction_times.min() == np.datetime64("2015-01-01")
    assert any("labels from 730 days before 2011-01-01 on left out" in line for line in said)


@pytest.mark.parametrize(
    ("recipe", "cutoff", "gap", "message"),
    [
        ("survival", "2011", 0.0, "temporal_split.cutoff: found 2011; expected a date such as 2015-01-01"),
        ("survival", "2011-02-30", 0.0, "temporal_split.cutoff: found 2011-02-30"),
        ("survival", "2011-01-01", -1.0, "temporal_split.outcome_window_days: found -1; expected days above 0$"),
        (
            "classification",
            "2011-01-01",
            0.0,
            "temporal_split.outcome_window_days: found 0; expected days above 0, the outcome's",
        ),
        ("survival", "1999-01-01", 0.0, "temporal_split.cutoff=1999-01-01: no label is left in train, tuning"),
        ("survival", "2031-01-01", 0.0, "temporal_split.cutoff=2031-01-01: no label is left in held_out"),
    ],
)
def test_cutoffs_that_are_none(workplace, table, recipe, cutoff, gap, message):
    labels = table if recipe == "survival" else binary(table)
    config = configure(
        recipe, workplace, labels, temporal_split__cutoff=cutoff, temporal_split__outcome_window_days=gap
    )
    with pytest.raises(ValueError, match=message):
        read(config)


def test_labels_out_of_order_repeated_or_of_nobody_are_left_out_and_counted(workplace, table):
    """Before birth, after death, of unknown subjects: what is read is as if these rows were not there."""
    labels = binary(table)
    nobody = labels.head(3).with_columns(subject_id=pl.col("subject_id") + 10**9)
    early, late = (labels.unique("subject_id").with_columns(prediction_time=january(year)) for year in (1850, 2200))
    early, late = (part.with_columns(pl.col("prediction_time").cast(pl.Datetime("us"))) for part in (early, late))
    dead = follow_up.read_lives(str(workplace.data))["death"].count()
    worse = pl.concat([labels, labels.head(7), nobody, early, late]).sample(fraction=1.0, shuffle=True, seed=0)
    expected, _ = read(configure("classification", workplace, pl.concat([labels, late])))
    found, said = read(configure("classification", workplace, worse))
    for split in events.SPLITS:
        for column in ("subject_ids", "prediction_times", "values"):
            np.testing.assert_array_equal(getattr(found[split].labels, column), getattr(expected[split].labels, column))
    assert any("rows were out of order" in line for line in said)
    assert any(f"7 of {worse.height} rows repeat another; dropped" in line for line in said)
    (line,) = [line for line in said if "of unknown subjects" in line]
    assert "3 of unknown subjects, " in line and int(line.split("at or after death")[0].split()[-1]) >= dead
    unborn = int(line.split("before birth")[0].split()[-1].replace(",", ""))
    assert unborn >= early.height


def test_data_that_know_none_of_the_subjects(workplace, table):
    others = binary(table).with_columns(subject_id=pl.col("subject_id") + 10**9)
    with pytest.raises(ValueError, match=r"labels=.*labels.parquet: no label is left in train, tuning, held_out"):
        read(configure("classification", workplace, others))


@pytest.mark.parametrize(
    ("recipe", "split", "message"),
    [
        ("classification", "train", "'labels' is 0 in all .* rows in train"),
        ("classification", "tuning", "'labels' is 0 in all .* rows in tuning"),
        ("survival", "train", "none of the .* rows in train has the event 'event'"),
        ("survival", "tuning", "none of the .* rows in tuning has the event 'event'"),
    ],
)
def test_nothing_to_learn_ends_before_training(workplace, table, recipe, split, message):
    labels = table.with_columns(event=pl.col("event") & (pl.col("split") != split))
    config = configure(recipe, workplace, labels if recipe == "survival" else binary(labels))
    with pytest.raises(ValueError, match=message):
        setup.setup(config)


@pytest.fixture
def evaluate(workplace, tmp_path, monkeypatch, messages):
    """Evaluates what a model says at random of held-out labels; returns what is written and the warnings."""

    def score(recipe, model, params, found) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(len(found.labels), model.num_labels)).astype(np.float32)

    monkeypatch.setattr(predict, "score", score)
    monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 20)

    def run(recipe: str, labels: pl.DataFrame) -> tuple[dict, list[str]]:
        task = setup.setup(configure(recipe, workplace, labels))
        own = FinetunedModel(task.recipe, task.facts, task.prepared.vocabulary.tokens, task.model, None, task.splits)
        monkeypatch.setattr(outcomes, "load", lambda *given: own)
        messages.clear()
        result = outcomes.evaluate_run(tmp_path, with_baselines=False)
        assert evaluation_of(tmp_path) == json.loads(json.dumps(result.to_dict()))
        assert pl.read_parquet(tmp_path / "predictions.parquet").height == len(task.splits["held_out"].labels)
        return result.own, [line for line in messages if line.startswith("warning")]

    return run


@pytest.mark.parametrize("came", [False, True])
def test_held_out_labels_of_one_class(table, evaluate, tmp_path, came):
    event = pl.when(pl.col("split") == "held_out").then(came).otherwise("event")
    found, warnings = evaluate("classification", binary(table.with_columns(event=event)))
    assert {"classification/brier", "classification/loss"} < set(found)
    assert not any("auroc" in name or "slope" in name for name in found)
    assert f"'labels' is {int(came)} in all" in warnings[0] and "need both classes: left out" in warnings[0]
    assert not (tmp_path / "figures").exists()


def test_held_out_labels_without_an_event(table, evaluate, tmp_path):
    found, warnings = evaluate("survival", table.with_columns(event=pl.col("event") & (pl.col("split") != "held_out")))
    assert {"survival/integrated_brier", "survival/observed_expected"} < set(found)
    assert not any("c_index" in name or "auc" in name for name in found)
    (warning,) = warnings
    assert "rows in held_out has the event 'event'; C-index, AUC and calibration slope need events" in warning
    assert not (tmp_path / "figures").exists()


def test_held_out_labels_without_one_of_two_causes(table, evaluate, tmp_path, monkeypatch):
    """The other, second by name, is measured and drawn; few patients have it, which is said."""
    monkeypatch.setattr(small_cells, "MIN_PATIENTS", 1)  # of real patients, so few are not drawn
    drawn, original = [], outcomes.draw_survival
    monkeypatch.setattr(outcomes, "draw_survival", lambda *given: drawn.append(given[0]) or original(*given))
    falls = (pl.col("split") == "held_out") | (pl.col("prediction_time") == january(2010))
    cause = pl.when(pl.col("event") & falls).then(pl.lit("stroke")).when("event").then(pl.lit("death"))
    found, warnings = evaluate("survival", table.with_columns(event=cause))
    assert "survival/c_index/cause=stroke" in found and "survival/c_index/cause=death" not in found
    assert "has the event 'death'" in warnings[0]
    assert "patients of held_out with 'stroke': 2; no interval" in warnings[1]
    assert [folder.name for folder in (tmp_path / "figures").iterdir()] == ["stroke"]
    said = pl.read_parquet(tmp_path / "predictions.parquet")["risk/stroke@1825"].to_numpy()
    np.testing.assert_allclose(drawn[0]["BEHRT"], said, rtol=1e-6)


def test_figures_are_of_enough_patients_who_may_be_real(table, workplace, tmp_path, messages):
    config = configure("survival", workplace, table)
    task = setup.setup(config)
    labels, horizons = task.splits["held_out"].labels, task.recipe.evaluation.horizons
    arguments = (labels, task.facts.names, horizons, tmp_path / "figures", MIN_PATIENTS)
    messages.clear()
    assert outcomes.draw({}, *arguments) == []
    assert messages == ["figures are left out: the held-out labels are of fewer than 11 patients, who may be real"]


@pytest.mark.slow
@pytest.mark.skipif(not MIMIC.is_dir(), reason="the MIMIC-IV demo does not lie beside the repository")
def test_real_stays_from_labels_to_predictions(workplace):
    """Too few to conclude from: of fifteen held-out patients one dies in hospital."""
    data = {"data__path": MIMIC, "data__prepared_dir": workplace.folder / "prepared-mimic"}
    steps = {"train__num_steps": 12, "train__evaluate_every": 4}
    done = workplace.run([*workplace.arguments("mimic", **data, **steps), "--nobaselines"])
    assert done.returncode == 0, done.stderr
    for task, few in (("mimic_mortality", 1), ("mimic_readmission", 5)):
        file, folder = workplace.folder / f"{task}.parquet", workplace.folder / task
        label(str(ROOT / "configs" / "tasks" / f"{task}.yaml"), str(MIMIC), file)
        keys = {**data, **steps, "labels": file, "pretrained": workplace.folder / "mimic"}
        given = [f"--config.{key.replace('__', '.')}={value}" for key, value in keys.items()]
        recipe = f"--config={ROOT / 'configs' / 'classification.py'}"
        done = workplace.run([recipe, f"--workdir={folder}", *given], "experiments.finetune")
        assert done.returncode == 0, done.stderr
        found = evaluation_of(folder)
        entry = found["metrics"]["classification/auroc"]
        assert 0 <= entry["low"] <= entry["high"] <= 1 and len(found["baselines"]) == 4
        assert pl.read_parquet(folder / "predictions.parquet").height == entry["n"] > 40
        assert f"warning: patients of held_out with '{task}': {few}; no interval of so few" in done.stdout
