"""Evaluation on simulated patients, whose world knows better than any model or baseline."""

import dataclasses
import json
import re
import shutil

import numpy as np
import polars as pl
import pytest

from behrt_jax.baselines import masked_codes, next_visit
from behrt_jax.baselines.mlp import MLPConfig
from behrt_jax.data import dataset, windows
from behrt_jax.data.prepare import prepare
from behrt_jax.evaluation import masked_codes as masked_code_evaluation
from behrt_jax.evaluation import next_visit as next_visit_evaluation
from behrt_jax.evaluation.loaded_run import load_run, read_simulation
from behrt_jax.evaluation.pretrained import evaluate_run
from behrt_jax.simulation.ceilings import write_patients

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]
KEYS = {
    "objective__name": "joint",
    "objective__min_patients": 3,
    "data__events_without_visit": "leave_out",
    "data__codes_exclude": "('MEDS_BIRTH','MEDS_DEATH')",
    "train__num_steps": 10,
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "data"
    write_patients(folder, 120, seed=0)
    return folder


@pytest.fixture(scope="module")
def trained(workplace, simulated):
    """A run whose evaluation with baselines is left out."""
    workplace.train(workplace.arguments("simulated", data__path=simulated, **KEYS))
    return workplace.folder / "simulated"


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained, "held_out", None)


def test_the_oracle_is_above_the_model_and_every_baseline(trained, monkeypatch, messages):
    for module, name, value in (
        (masked_codes, "NETWORK_STEPS", 100),
        (next_visit, "MAX_STEPS", 60),
        (next_visit, "RECIPES", {"MLP": MLPConfig(0.002, hidden=32)}),
    ):
        monkeypatch.setattr(module, name, value)
    result = evaluate_run(trained, "held_out")
    assert messages.count("asking the oracle") == 2
    oracle, others = result.oracle, {"model": result.own, **result.baselines}
    for metric, sign in (
        ("mlm/accuracy", 1),
        ("mlm/loss", -1),
        ("next_visit/average_precision", 1),
        ("next_visit/loss", -1),
    ):
        known = {name: found[metric] for name, found in others.items() if metric in found}
        assert len(known) >= 5
        assert {found["n"] for found in known.values()} == {oracle[metric]["n"]}
        worse = {name: sign * (oracle[metric]["value"] - found["value"]) for name, found in known.items()}
        assert min(worse.values()) > 0, (metric, worse)
    first, five, twenty = (oracle[f"mlm/{name}accuracy"]["value"] for name in ("", "top5_", "top20_"))
    assert first < five <= twenty


def test_the_oracle_is_left_out_for_data_with_a_visit_that_the_world_lacks(trained, simulated, tmp_path, messages):
    copy, other = shutil.copytree(trained, tmp_path / "trained"), shutil.copytree(simulated, tmp_path / "other")
    (file,) = (other / "data" / "held_out").glob("*.parquet")
    found = pl.read_parquet(file)
    last = found.drop_nulls("visit_id").group_by("subject_id", maintain_order=True).last().head(1)
    more = last.with_columns(pl.col("time").dt.offset_by("60d"), pl.col("visit_id") + 10**6, code=pl.lit("ALIEN//1"))
    pl.concat([found, more.select(found.columns)]).sort("subject_id", "time", nulls_last=False).write_parquet(file)
    (copy / "evaluation.json").unlink(missing_ok=True)
    result = evaluate_run(copy, "held_out", str(other), with_baselines=False)
    left_out = [line for line in messages if line.startswith("warning: the oracle is left out: ")]
    expected = r".*/other: holds [\d,]+ visits of these patients, the prepared data [\d,]+, or other ones; train with"
    assert len(left_out) == 2 and all(re.search(expected, line) for line in left_out)
    assert not result.oracle and {"mlm/loss", "next_visit/loss"} <= set(result.own)
    assert json.loads((copy / "evaluation.json").read_text()) == result.to_dict()


def test_a_recipe_for_other_data_is_evaluated_without_the_oracle_and_says_so_before_training(workplace, simulated):
    """Deaths are visits of their own then, which the simulation does not have."""
    keys = {"data__path": simulated, "train__num_steps": 2, "train__evaluate_every": 2}
    done = workplace.run([*workplace.arguments("plain", **keys), "--nobaselines"])
    assert done.returncode == 0, done.stderr
    before, _, after = done.stdout.partition("step 2: tuning")
    assert "warning: the evaluation will leave out the oracle: " in before and "leave_out to compare with" in before
    assert "warning: the oracle is left out: " in after
    result = json.loads((workplace.folder / "plain" / "evaluation.json").read_text())
    assert "oracle" not in result and "mlm/accuracy" in result["metrics"]
    again = workplace.run([*workplace.arguments("plain", **keys), "--nobaselines"])
    assert again.returncode == 0 and "nothing to do" in again.stdout


@pytest.mark.parametrize(
    ("excluded", "encoding", "number", "known"),
    [("LAB//*", "bins", 0, 0), ("LAB//*a1c*", "bins", 2, 2), ("NONE", "none", 3, 0), ("NONE", "continuous", 3, 3)],
)
def test_the_oracle_reads_the_measurements_that_a_run_reads(run, tmp_path, excluded, encoding, number, known):
    write_patients(tmp_path / "measured", 60, seed=0, measurements=3)
    exclude = ("MEDS_BIRTH", "MEDS_DEATH", excluded)
    config = dataclasses.replace(
        run.recipe.data, path=str(tmp_path / "measured"), prepared_dir=str(tmp_path / "prepared")
    )
    config = dataclasses.replace(config, codes_exclude=exclude, value_encoding=encoding, min_patients=1)
    prepared = prepare(config)
    patients = dataset.read(prepared.folder, "train")
    index = windows.index_visits(patients, config.row_length, config.use_sep)
    world, histories = read_simulation(tmp_path / "measured", prepared.vocabulary, patients, index)
    assert len(world.codes[world.measured]) == number == histories.values.shape[1]
    assert (~np.isnan(histories.values)).any(axis=0).sum() == known
    assert histories.codes.shape[1] == len(world.codes)


def test_codes_that_the_simulation_does_not_have_are_no_codes_to_ask_it_about(run):
    codes = run.patients.codes.copy()
    codes[np.flatnonzero(run.patients.visits >= 0)[3]] = len(run.vocabulary) - 1
    vocabulary = dataclasses.replace(run.vocabulary, codes=(*run.vocabulary.codes[:-1], "MEDS_DEATH"))
    patients = dataclasses.replace(run.patients, codes=codes)
    with pytest.raises(
        ValueError, match=r"1 codes that the model reads, such as MEDS_DEATH, are not of the simulation"
    ):
        read_simulation(run.source, vocabulary, patients, run.index(patients))


def test_as_many_visits_of_other_patients_are_refused_too(run, simulated, tmp_path):
    """Both objectives check it: one visit goes from a patient to another."""
    other = shutil.copytree(simulated, tmp_path / "moved")
    (file,) = (other / "data" / "held_out").glob("*.parquet")
    found = pl.read_parquet(file).with_row_index("row")
    visits = found.drop_nulls("visit_id").group_by("subject_id", maintain_order=True).agg(pl.col("visit_id").max())
    counts = found.drop_nulls("visit_id").group_by("subject_id").agg(pl.col("visit_id").n_unique().alias("count"))
    (giver, taken, _) = visits.join(counts, on="subject_id").filter(pl.col("count") > 2).sort("subject_id").row(0)
    taker = visits.filter(pl.col("subject_id") != giver).sort("subject_id").row(0)[0]
    moved = pl.col("visit_id").eq(taken).fill_null(False)
    changed = found.with_columns(
        subject_id=pl.when(moved).then(taker).otherwise("subject_id"),
        time=pl.when(moved).then(pl.col("time").dt.offset_by("37y")).otherwise("time"),
    )
    changed.sort("subject_id", "time", "row", nulls_last=False).drop("row").write_parquet(file)
    moved_run = run._replace(source=other)
    for ask in (
        lambda: next_visit_evaluation.ask_oracle(moved_run, next_visit_evaluation.find_examples(run, run.patients)),
        lambda: masked_code_evaluation.ask_oracle(moved_run, []),
    ):
        with pytest.raises(ValueError, match=r"moved: holds .* or other ones; train with data\.events_without_visit"):
            ask()


def test_codes_that_the_world_does_not_have_cannot_come(run):
    every = np.ones(len(run.vocabulary), bool)
    every[:5] = False
    wider = run._replace(task=run.task._replace(is_target=every))
    split = next_visit_evaluation.find_examples(wider, wider.patients)
    found = next_visit_evaluation.ask_oracle(wider, split).scored
    tokens = np.asarray(run.vocabulary.tokens)[split.examples.codes]
    statics = np.char.startswith(tokens.astype(str), "GENDER//")
    assert found.shape == split.examples.targets.shape and found.dtype == np.float32
    assert statics.any() and not found[:, statics].any() and (found[:, ~statics].max(axis=0) > 0).all()
