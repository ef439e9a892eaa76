"""What a run has learned of codes, as a user asks for it."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from behrt_jax.data import metadata
from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary
from behrt_jax.embeddings import codes as code_embeddings
from behrt_jax.exploration import code_groups, codes
from behrt_jax.training import pretraining, state, workdir
from behrt_jax.training.checkpoints import Checkpoints
from behrt_jax.training.optimizer import make_optimizer
from configs import small
from tests import tiny
from tests.experiments.conftest import BUNDLED, TINY, cut_data_set

DISEASES = "configs/diseases.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a model that was saved before its first step; its data set has descriptions."""
    folder = tmp_path_factory.mktemp("codes")
    data = cut_data_set(folder / "meds", skip=0)
    shutil.copy(BUNDLED / "metadata" / "codes.parquet", data / "metadata")
    config = small.get_config()
    paths = {"data.path": str(data), "data.prepared_dir": str(folder / "prepared")}
    config.update_from_flattened_dict({**TINY, **paths})
    prepared, patients, trained = pretraining.setup(config)
    optimizer = make_optimizer(trained.recipe.optimizer, 10)
    workdir.open_workdir(folder / "run", trained.recipe, trained.facts, prepared.vocabulary)
    checkpoints = Checkpoints(folder / "run" / workdir.CHECKPOINTS, workdir.TUNING_LOSS)
    begun = state.create_state(pretraining.initialize(trained, patients), optimizer, seed=7)
    checkpoints.save(begun, {workdir.TUNING_LOSS: 1.0})
    checkpoints.close()
    return folder / "run"


@pytest.fixture(scope="module")
def written(run):
    """What the command prints and writes."""
    loaded = workdir.load(run)
    data = loaded.recipe.data.path
    descriptions = metadata.read_descriptions(data, loaded.vocabulary)
    with tiny.collect_messages() as lines:
        codes.write_report(run, loaded, data, descriptions, 4, DISEASES)
    return loaded, descriptions, json.loads((run / "code_embeddings.json").read_text()), "\n".join(lines)


def test_the_file_has_the_promised_form(written):
    loaded, descriptions, content, _ = written
    vocabulary = loaded.vocabulary
    assert content["neighbours"] == 4 and set(content["codes"]) == set(vocabulary.codes)
    kinds = {"kind of code", "first word of description", "disease"}
    assert kinds <= set(content["agreement"])
    table = code_embeddings.code_table(loaded.params)
    units = table / np.linalg.norm(table, axis=1, keepdims=True)
    for code, found in content["codes"].items():
        assert len(found["neighbours"]) == 4 and found["description"] == descriptions[vocabulary.ids[code]]
        assert found["description"] or "SNOMED" not in code
        assert found["patients"] >= loaded.recipe.data.min_patients
        near = [vocabulary.ids[entry["code"]] for entry in found["neighbours"]]
        cosines = units[near] @ units[vocabulary.ids[code]]
        np.testing.assert_allclose([entry["cosine"] for entry in found["neighbours"]], cosines, atol=1e-4)
        assert (np.diff(cosines) <= 1e-6).all() and set(found["groups"]) <= set(content["agreement"])


def test_agreement_is_beside_chance_and_baselines_with_intervals(written):
    _, _, content, printed = written
    rows = printed.partition("difference")[0].splitlines()
    for kind, found in content["agreement"].items():
        others = {"chance", "untrained", "PPMI-SVD"}
        assert set(found["baselines"]) == set(found["versus"]) == others and found["groups"] > 1
        for entry in (found["metrics"], *found["baselines"].values(), *found["versus"].values()):
            value = entry["codes/precision"]
            assert value["low"] <= value["value"] <= value["high"]
        own = found["metrics"]["codes/precision"]
        assert own["n"] == found["codes"] and 0 <= own["value"] <= 1
        assert sum(line.startswith(kind) and f"{own['value']:.3f}" in line for line in rows) == 1
    fitted, untrained = (
        np.mean([found["baselines"][name]["codes/precision"]["value"] for found in content["agreement"].values()])
        for name in ("PPMI-SVD", "untrained")
    )
    assert fitted > untrained + 0.05


@pytest.mark.slow
def test_a_query_prints_a_table_of_neighbours(workplace, run):
    arguments = [f"--workdir={run}", "--neighbours=3"]
    done = workplace.run([*arguments, "--query=hypertension essential"], "experiments.codes")
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.strip().splitlines()
    assert head.startswith("CONDITION//SNOMED//59621000 Essential hypertension (disorder) (") and len(rows) == 3
    assert rows == sorted(rows, reverse=True) and all("//" in row for row in rows)
    missing = workplace.run([*arguments, "--query=no such words"], "experiments.codes")
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
    assert "error: query 'no such words': no code of the vocabulary has these words" in missing.stderr


def test_a_run_whose_data_is_elsewhere_still_has_neighbours(run, tmp_path, capsys):
    loaded = workdir.load(run)
    tables = codes.make_tables(loaded, str(tmp_path / "gone"))
    assert set(tables) == {codes.OWN, "untrained"} and "not here" in capsys.readouterr().out
    own, untrained = tables.values()
    assert own.shape == untrained.shape and not np.array_equal(own, untrained)


def test_many_matches_show_the_most_frequent(run):
    loaded = workdir.load(run)
    shown = codes.show_neighbours(loaded, [""] * len(loaded.vocabulary), "SNOMED", 2)
    named = [code for code in loaded.vocabulary.codes if "SNOMED" in code]
    assert f"{len(named)} codes match; the 5 most frequent:" in shown
    assert [line.split()[0] for line in shown.splitlines() if "train patients" in line] == named[:5]


@pytest.mark.parametrize(
    ("code", "category", "chapter"),
    [
        ("DIAGNOSIS//ICD//9//4280", "DIAGNOSIS 9 428", 7),
        ("DIAGNOSIS//ICD//10//I5020", "DIAGNOSIS 10 I50", 7),
        ("DIAGNOSIS//ICD10CM//D64.9", "DIAGNOSIS 10 D64", 4),
        ("DIAGNOSIS//ICD//10//D46", "DIAGNOSIS 10 D46", 2),
        ("DIAGNOSIS//ICD//10//E875", "DIAGNOSIS 10 E87", 3),
        ("CONDITION//ICD9CM//250.00", "CONDITION 9 250", 3),
        ("DIAGNOSIS//ICD//10//F329", "DIAGNOSIS 10 F32", 5),
        ("DIAGNOSIS//ICD//10//H409", "DIAGNOSIS 10 H40", 6),
        ("DIAGNOSIS//ICD//9//36511", "DIAGNOSIS 9 365", 6),
        ("DIAGNOSIS//ICD//10//N179", "DIAGNOSIS 10 N17", 10),
        ("DIAGNOSIS//ICD//9//5849", "DIAGNOSIS 9 584", 10),
        ("DIAGNOSIS//ICD//10//O9A", "DIAGNOSIS 10 O9A", 11),
        ("DIAGNOSIS//ICD//9//V1582", "DIAGNOSIS 9 V15", 19),
        ("DIAGNOSIS//ICD//10//Z87891", "DIAGNOSIS 10 Z87", 19),
        ("DIAGNOSIS//ICD//9//E8788", "DIAGNOSIS 9 E87", 18),
        ("DIAGNOSIS//ICD//10//W19XXXA", "DIAGNOSIS 10 W19", 18),
        ("DIAGNOSIS//ICD//9//78605", "DIAGNOSIS 9 786", 16),
        ("DIAGNOSIS//ICD//9//99592", "DIAGNOSIS 9 995", 17),
        ("PROCEDURE//ICD//9//3893", "PROCEDURE 9 389", None),
        ("MEDICATION//START//Furosemide", None, None),
        ("LAB//51087//Q7", None, None),
        ("HOSPITAL_ADMISSION//PANICD//9", None, None),
    ],
)
def test_icd_is_told_by_category_and_chapter(code, category, chapter):
    assert (code_groups.icd_category(code), code_groups.icd_chapter(code)) == (category, chapter)


def test_groups_are_of_two_or_more_codes(tmp_path):
    names = ("LAB//1", "LAB//2", "LAB//3", "DRUG//4", "DRUG//5", "DEATH", "CONDITION//SIM//asthma-01")
    vocabulary = Vocabulary(names, (9,) * 7, (5,) * 7, {})
    parents = [["P", "Q"], ["P"], ["Q", "R"], ["Q"], ["S"], None, None]
    (tmp_path / "metadata").mkdir()
    table = pl.DataFrame(
        {"code": names, "parent_codes": parents}, schema_overrides={"parent_codes": pl.List(pl.String)}
    )
    table.write_parquet(tmp_path / "metadata" / "codes.parquet")
    said = [""] * NUM_SPECIAL + ["Sodium in blood", "The sodium", "Potassium", "Sodium", "potassium", "", ""]
    found = code_groups.find_groups(vocabulary, said, tmp_path, DISEASES)
    assert set(found) == {"parent code", "kind of code"}
    parent, kind = (found[name][NUM_SPECIAL:].tolist() for name in ("parent code", "kind of code"))
    assert (
        parent[0] == parent[1] >= 0
        and parent[2] == parent[3] >= 0
        and parent[0] != parent[2]
        and parent[4:] == [-1] * 3
    )
    assert kind[0] == kind[1] == kind[2] and kind[3] == kind[4] and kind[5] == -1
    assert all((groups[:NUM_SPECIAL] == -1).all() for groups in found.values())
