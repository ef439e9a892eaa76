"""Groups of diseases: patterns, times, the simulator's truth, and the files as they are."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from behrt_jax.data import events
from behrt_jax.exploration import disease_groups as groups

ROOT = Path(__file__).parents[2]
DEFINITIONS = ROOT / "configs" / "diseases.yaml"
BUNDLED = ROOT / "data" / "synthea-1151"
MIMIC = ROOT.parent / "shared" / "data" / "mimic-iv-demo-meds"
FILE = """
among: [D//*]
groups:
  flu: {codes: [D//1*], descriptions: [influenza]}
  gout: {codes: [D//2]}
  scurvy: {codes: [D//9]}
"""


@pytest.fixture
def made(tmp_path):
    """Three patients; an allergy to influenza vaccine is no disease, and a static code has no time."""
    rows = [
        (1, None, "D//2"),
        (1, "2000-01-01", "D//11"),
        (1, "2010-01-01", "D//2"),
        (2, "2005-01-01", "D//7"),
        (2, "2006-01-01", "A//1"),
        (3, "2005-01-01", "A//1"),
    ]
    table = pl.DataFrame(rows, ["subject_id", "time", "code"], orient="row")
    table = table.with_columns(pl.col("time").str.to_datetime(time_unit="us"), numeric_value=pl.lit(None, pl.Float32))
    for part in ("data", "metadata"):
        (tmp_path / part).mkdir()
    table.filter(pl.col("subject_id") == 1).write_parquet(tmp_path / "data" / "0.parquet")
    table.filter(pl.col("subject_id") > 1).write_parquet(tmp_path / "data" / "1.parquet")
    codes = {"code": ["D//7", "A//1"], "description": ["Influenza B", "Allergy to influenza vaccine"]}
    pl.DataFrame(codes).write_parquet(tmp_path / "metadata" / "codes.parquet")
    (tmp_path / "groups.yaml").write_text(FILE)
    return tmp_path


def test_groups_by_codes_and_descriptions_before_and_after_a_time(made, messages):
    subjects = np.array([3, 1, 2])  # in any order
    found = groups.read_groups(made, made / "groups.yaml", subjects)
    assert found.names == ("flu", "gout") and not found.later.any()
    assert found.has.tolist() == [[False, False], [True, True], [True, False]]
    assert messages == [f"{made / 'groups.yaml'}: no code of {made} is in scurvy; left out"]
    times = np.array(["2005-01-01", "2010-01-01", "2005-01-01"], "datetime64[us]")  # strictly before counts
    found = groups.read_groups(made, made / "groups.yaml", subjects, times)
    assert found.has.tolist() == [[False, False], [True, False], [False, False]]
    assert found.later.tolist() == [[False, False], [False, True], [True, False]]
    assert groups.read_groups(made, made / "groups.yaml", subjects[:1]).has.shape == (1, 2)


def test_true_stages_are_those_of_the_last_visit_before(made):
    truth = {
        "subject_id": [1, 1, 1, 2],
        "time": ["2000-01-01", "2001-01-01", "2002-01-01", "2000-01-01"],
        "stage_a": [2, 0, 1, 0],
        "stage_b": [0, 1, 1, 2],
    }
    table = pl.DataFrame(truth).with_columns(pl.col("time").str.to_datetime(time_unit="us"))
    table.write_parquet(made / groups.TRUTH_FILE)
    found = groups.read_groups(made, "none", np.array([2, 1]))
    assert found.names == ("a", "b")
    assert found.has.tolist() == [[False, True], [True, True]]
    times = np.full(2, np.datetime64("2002-01-01", "us"))
    found = groups.read_groups(made, "none", np.array([2, 1]), times)
    assert found.has.tolist() == [[False, True], [False, True]]
    assert found.later.tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("groups: [", "not a YAML file"),
        ("a: 1", "no such key: a; expected among, groups"),
        ("among: [D//*]", "holds no groups"),
        ("groups: {flu: {code: [D//1]}}", r"groups.flu: no such key: code; expected codes, descriptions"),
        ("groups: {flu: {codes: D//1}}", r"groups.flu.codes: found 'D//1'; expected a list of patterns"),
        ("groups: {flu: {descriptions: ['(']}}", r"groups.flu.descriptions: not a regular expression"),
        ("groups: {scurvy: {codes: [D//9]}}", "is in any group; name its codes in a copy"),
    ],
)
def test_errors_name_the_file_and_the_key(made, text, message):
    file = made / "own.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        groups.read_groups(made, file, np.array([1]))
    assert str(caught.value).startswith(str(file))


def test_every_group_has_patients_in_the_bundled_data(messages):
    subjects = events.read_splits(BUNDLED)["subject_id"].to_numpy()
    found = groups.read_groups(BUNDLED, DEFINITIONS, subjects)
    counts = dict(zip(found.names, found.has.sum(axis=0).tolist(), strict=True))
    assert not messages and min(counts.values()) >= 20
    # As the simulator's diagnosis itself has it, counted by its code.
    rows = pl.scan_parquet(sorted((BUNDLED / "data").rglob("*.parquet")))
    for name, code in {"hypertension": "59621000", "prediabetes": "714628002"}.items():
        own = rows.filter(pl.col("code") == f"CONDITION//SNOMED//{code}")
        assert counts[name] == own.select(pl.col("subject_id").n_unique()).collect().item()


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("diabetes", ["10//E119", "10//E1065", "9//25000"], ["10//E039", "9//2449", "10//O24419"]),
        ("hypertension", ["10//I10", "9//4019"], ["10//I2510", "9//4139", "10//I270"]),
        ("cancer", ["10//C3490", "9//1629", "9//20280", "9//1749"], ["10//D126", "9//2113", "10//Z8546", "9//2099"]),
        ("stroke", ["10//I639", "9//43491", "9//431"], ["10//I672", "9//4359", "9//4332"]),
        ("chronic_kidney_disease", ["10//N186", "9//5859"], ["10//N179", "9//5849"]),
    ],
)
def test_icd_codes_are_in_their_groups_alone(name, inside, outside):
    codes = [f"DIAGNOSIS//ICD//{each}" for each in (*inside, *outside)]
    assert groups.match_codes(DEFINITIONS, codes)[name] == codes[: len(inside)]


@pytest.mark.skipif(not MIMIC.is_dir(), reason="needs the MIMIC-IV demo as MEDS beside the repository")
def test_groups_are_found_in_hospital_data():
    subjects = events.read_splits(MIMIC)["subject_id"].to_numpy()
    found = groups.read_groups(MIMIC, DEFINITIONS, subjects)
    shares = dict(zip(found.names, found.has.mean(axis=0), strict=True))
    assert 0.4 < shares["hypertension"] < 0.9 and 0.1 < shares["heart_failure"] < 0.5
