"""Masked codes, next visits and events trained together, as commands do it."""

import dataclasses
import json
import shutil
import signal

import jax
import numpy as np
import pytest

import behrt_jax
from behrt_jax.data.sexes import sexes
from behrt_jax.evaluation.comparison import Comparison
from behrt_jax.evaluation.loaded_run import load_run
from behrt_jax.evaluation.masked_codes import masked_batches
from behrt_jax.evaluation.next_visit import find_examples, predict, score_next_visits
from behrt_jax.evaluation.pretrained import evaluate_run
from behrt_jax.models.inputs import device_columns, model_arguments
from behrt_jax.plots.pretraining import draw_pretraining
from tests import tiny
from tests.experiments.conftest import JOINT, assert_same_end, evaluation_of, has_curve, metrics_of

pytestmark = pytest.mark.usefixtures("quick_compilation")
POINT = ("predicted", "value")
WEIGHTS = {"mlm/loss": 1.0, "next_visit/loss": 0.2, "next_visit/days_loss": 0.2 * 0.1, "time_to_event/loss": 1.0}


def changed_copy(folder, target, facts=None, **changes):
    """Copies a workdir and changes keys of its objective, or facts, as if it had been trained with them."""
    shutil.copytree(folder, target)
    with tiny.edited_config(target) as config:
        config["recipe"]["objective"].update(changes)
        config["facts"].update(facts or {})
    return target


def test_the_losses_of_all_objectives_are_written_and_their_sum_is_watched(joint):
    training, tuning = metrics_of(joint, "train"), metrics_of(joint, "tuning")
    assert [line["step"] for line in training] == list(range(1, 31))
    assert [line["step"] for line in tuning] == [10, 20, 30]
    for line in training + tuning:
        assert {*WEIGHTS, "mlm/accuracy"} <= set(line)
        assert all(np.isfinite(line[name]) for name in WEIGHTS)
    for line in tuning:
        assert line["loss"] == pytest.approx(sum(weight * line[name] for name, weight in WEIGHTS.items()), rel=1e-6)
    assert tuning[-1]["loss"] < tuning[0]["loss"]


@pytest.mark.slow
def test_stopped_and_run_again_it_ends_the_same(workplace, joint):
    arguments = workplace.arguments("joint_stopped", **JOINT)
    stopped = workplace.stop_at("joint_stopped", arguments, 12, signal.SIGTERM)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    edges = json.loads((workplace.folder / "joint_stopped" / "config.json").read_text())["facts"]["event_edges"]
    assert len(edges) == 7 and edges == sorted(set(edges)) and edges[0] > 0
    assert "resuming" in workplace.train(arguments)
    assert_same_end(workplace.folder / "joint_stopped", joint)


def test_the_evaluation_holds_every_metric_of_every_objective(joint):
    result = evaluation_of(joint)
    names = "average_precision micro_f1 macro_f1 recall@10 recall@30 precision@1 precision@10 calibration_error"
    names += " macro_auroc macro_average_precision loss log_days_error recall@10/new"
    expected = {f"next_visit/{name}" for name in names.split()}
    expected |= {f"next_visit/average_precision/{part}" for part in ("new", "repeat", "sex=F", "sex=M")}
    expected |= {f"next_visit/average_precision/type={kind}" for kind in ("CONDITION", "MEDICATION", "PROCEDURE")}
    expected |= {"time_to_event/loss", "mlm/loss", "mlm/accuracy", "mlm/top5_accuracy", "mlm/top20_accuracy"}
    found = result["metrics"]
    assert expected <= set(found), expected - set(found)
    assert any(name.startswith("next_visit/average_precision/age=") for name in found)
    for entry in found.values():
        assert set(entry) == {"value", "low", "high", "n", "patients"} and entry["n"] >= 1 <= entry["patients"]
        assert np.isfinite([entry["value"], entry["low"], entry["high"]]).all() and entry["low"] <= entry["high"]

    def cells(part):
        return found[f"next_visit/average_precision{part}"]["n"]

    assert cells("") == cells("/new") + cells("/repeat") == cells("/sex=F") + cells("/sex=M")
    assert cells("") == sum(cells(f"/type={kind}") for kind in ("CONDITION", "MEDICATION", "PROCEDURE"))
    assert set(result["baselines"]) == {"median days of train"} and "oracle" not in result


def test_what_was_trained_predicts_next_visits_from_the_past_alone(joint):
    config, vocabulary, model, params = behrt_jax.load(joint)
    assert tuple(model.objectives) == ("mlm", "next_visit", "time_to_event")
    assert len(config.objective.event_edges) == 7
    codes, visits = np.array([[1, 7, 2, 8, 9, 2]]), np.array([[0, 0, 0, 1, 1, 1]])
    ages, days = np.full(codes.shape, 40.0, np.float32), np.zeros(codes.shape, np.float32)

    @jax.jit
    def predict(codes):
        named = {"visit_ends": np.array([[2, 5]]), "time_deltas": days, "method": "predict_next_visits"}
        return model.apply(params, codes, ages, visits, np.ones_like(visits), **named)

    logits, log_days = predict(codes)
    assert logits.shape == (1, 2, len(vocabulary)) and log_days.shape == (1, 2)
    other, other_days = predict(np.where(codes == 9, 10, codes))
    assert np.array_equal(logits[:, 0], other[:, 0]) and np.array_equal(log_days[:, 0], other_days[:, 0])
    assert not np.array_equal(logits[:, 1], other[:, 1])


@pytest.mark.slow
def test_a_run_does_not_differ_from_itself(joint, tmp_path):
    copy = shutil.copytree(joint, tmp_path / "copy")
    result = evaluate_run(copy, "held_out", compare_to=[str(joint)], with_baselines=False)
    assert result.own == evaluation_of(joint)["metrics"]
    found = result.differences[str(joint)]
    compared = {"mlm/accuracy", "next_visit/average_precision", "next_visit/micro_f1", "time_to_event/loss"}
    assert compared <= set(found)
    assert {(entry["value"], entry["low"], entry["high"]) for entry in found.values()} == {(0.0, 0.0, 0.0)}
    assert result.baselines[str(joint)]["mlm/accuracy"] == result.own["mlm/accuracy"]
    assert evaluation_of(copy) == result.to_dict()


def test_only_runs_that_predict_the_same_are_compared(joint, whole, tmp_path):
    def compare(other):
        evaluate_run(joint, "held_out", compare_to=[str(other)], with_baselines=False)

    before = (joint / "evaluation.json").read_bytes()
    with pytest.raises(ValueError, match=r"--compare_to=.*/whole: has another vocabulary"):
        compare(whole[0])
    fewer = changed_copy(joint, tmp_path / "fewer", min_patients=12)
    with pytest.raises(ValueError, match=r"--compare_to=.*/fewer: has other objective\.targets"):
        compare(fewer)
    edges = json.loads((joint / "config.json").read_text())["facts"]["event_edges"]
    later = changed_copy(joint, tmp_path / "later", facts={"event_edges": [2 * edge for edge in edges]})
    with pytest.raises(ValueError, match=r"--compare_to=.*/later: has other objective\.event_edges"):
        compare(later)
    assert (joint / "evaluation.json").read_bytes() == before


@pytest.mark.slow
def test_runs_are_compared_on_what_both_were_trained_on(joint, cut, tmp_path):
    copy = shutil.copytree(joint, tmp_path / "copy")
    result = evaluate_run(copy, "held_out", compare_to=[str(cut)], with_baselines=False)
    assert {name.partition("/")[0] for name in result.differences[str(cut)]} == {"next_visit"}
    assert {"mlm/accuracy", "time_to_event/loss"} <= set(result.own)
    theirs = evaluation_of(cut)["metrics"]["next_visit/average_precision"]
    assert result.baselines[str(cut)]["next_visit/average_precision"] == theirs


def test_patients_of_one_visit_have_no_next_visit_to_score(joint, messages):
    run = load_run(joint, "held_out", None)
    patients = run.patients
    kept = patients.visits <= 0
    sizes = np.bincount(patients.owners[kept], minlength=len(patients))
    columns = {name: getattr(patients, name)[kept] for name in ("codes", "visits", "minutes", "microseconds")}
    first = dataclasses.replace(patients, offsets=np.concatenate([[0], np.cumsum(sizes)]), **columns)
    messages.clear()
    found = score_next_visits(run._replace(patients=first), {}, with_baselines=False)
    assert found == Comparison()
    assert messages == [f"next visits: not scored, as none of {len(first)} patients has a second visit with a target"]


@pytest.mark.slow
def test_curves_and_groups_are_those_of_the_predictions(joint):
    """Recomputed from logits and probabilities, in bins of equal mass; and of each sex, over its masked codes."""
    run, result = load_run(joint, "held_out", None), evaluation_of(joint)
    masked = list(masked_batches(run, run.patients, run.recipe.evaluation.num_mask_samples))
    apply, confidences, is_right = jax.jit(run.task.model.apply), [], []
    for each in masked:
        (_, *columns), named = model_arguments(device_columns(each.batch))
        logits = np.asarray(apply(run.params, each.masked.inputs, *columns, **named), np.float64)[each.targets]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        confidences.append(1 / powers.sum(axis=1))
        is_right.append(logits.argmax(axis=1) == each.labels)
    split = find_examples(run, run.patients)
    cells = predict(run, None, split)[0].scored, split.examples.targets.toarray()
    confidences, is_right = np.concatenate(confidences), np.concatenate(is_right)
    for name, scores, hits in (("mlm", confidences, is_right), ("next_visit", cells[0].ravel(), cells[1].ravel())):
        finest = {key: np.array([point[key] for point in result["reliability"][name][0]]) for key in ("n", *POINT)}
        assert finest["n"].sum() == len(scores)
        order, ends = np.argsort(scores, kind="stable"), np.cumsum(finest["n"])[:-1]
        for key, values in zip(POINT, (scores, hits), strict=True):
            expected = [part.mean() for part in np.split(values[order], ends)]
            np.testing.assert_allclose(finest[key], expected, rtol=1e-3, atol=3 / finest["n"].min())  # ties of rounding
    sex = sexes(run.patients, run.vocabulary.tokens)[np.concatenate([each.patients for each in masked])]
    for name in ("F", "M"):
        entry = result["metrics"][f"mlm/accuracy/sex={name}"]
        assert entry["value"] == pytest.approx(is_right[sex == name].mean(), abs=1e-6)
        assert entry["n"] == (sex == name).sum()


def test_figures_are_pictures_of_something(joint, tmp_path):
    copy = shutil.copytree(joint, tmp_path / "copy")
    files = draw_pretraining(copy, evaluation_of(copy))
    assert [file.name for file in files] == ["learning_curve.png", "reliability.png", "precision_recall.png"]
    for file in files:
        assert has_curve(file)


def test_curves_of_few_real_patients_are_not_drawn(joint, tmp_path):
    copy = shutil.copytree(joint, tmp_path / "copy")
    found = behrt_jax.evaluate(copy, baselines=False, figures=True)
    assert found.about["patients"] < 11 and set(found.reliability) == {"mlm", "next_visit"}
    assert [file.name for file in found.figures] == ["learning_curve.png"]


def test_histories_cut_at_random_train_and_are_evaluated(cut):
    found = evaluation_of(cut)["metrics"]
    assert {name.partition("/")[0] for name in found} == {"next_visit"}
    assert 0 < found["next_visit/average_precision"]["value"] < 1
    (tuning,) = metrics_of(cut, "tuning")
    expected = tuning["next_visit/loss"] + 0.1 * tuning["next_visit/days_loss"]
    assert tuning["loss"] == pytest.approx(expected, rel=1e-6)
