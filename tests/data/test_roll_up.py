"""Codes of too few patients that become broader ones."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from behrt_jax.data import dataset, events, roll_up
from behrt_jax.data.prepare import prepare
from tests.data.handmade import SPLITS, SUBJECTS, MedsFolder, assert_clear
from tests.data.test_back_off import MIMIC, tokens_of, write_codes

TRAIN = [subject for subject in SUBJECTS if SPLITS[subject] == "train"]


@pytest.mark.parametrize(
    ("code", "category"),
    [
        ("DIAGNOSIS//ICD//10//E1140", "DIAGNOSIS//ICD//10//E11"),
        ("DIAGNOSIS//ICD//9//25000", "DIAGNOSIS//ICD//9//250"),
        ("DIAGNOSIS//ICD//9//E8788", "DIAGNOSIS//ICD//9//E878"),
        ("DIAGNOSIS//ICD//9//V1582", "DIAGNOSIS//ICD//9//V15"),
        ("PROCEDURE//ICD//9//8864", "PROCEDURE//ICD//9//88"),
        ("PROCEDURE//ICD//10//0DJ08ZZ", "PROCEDURE//ICD//10//0DJ"),
        ("ICD10CM/E11.40", "ICD10CM/E11"),
        ("ICD9Proc/88.64", "ICD9Proc/88"),
        ("ICD9CM//401.9", "ICD9CM//401"),
        ("DIAGNOSIS//ICD//10//I10", None),
        ("CONDITION//SNOMED//44054006", None),
        ("LAB//50910//IU/L", None),
        ("ICD", None),
    ],
)
def test_categories_of_icd_codes(code, category):
    assert roll_up.icd_category(code) == category


def counted(patients: dict[str, set[int]], min_patients: int) -> list[pl.DataFrame]:
    """The tokens of two shards, with even and odd subjects."""
    shards = [
        [(token, subject) for token, subjects in patients.items() for subject in subjects if subject % 2 == half]
        for half in (0, 1)
    ]
    schema = {"token": pl.String, "subject_id": pl.Int64}
    return [roll_up.count_patients(pl.DataFrame(rows, schema=schema, orient="row"), min_patients) for rows in shards]


def choose(root: Path, rules: tuple[str, ...], counts: list[pl.DataFrame], min_patients: int) -> dict[str, str]:
    return roll_up.choose_ancestors(rules, roll_up.read_links(root, rules), counts, min_patients)


def test_the_nearest_ancestor_with_enough_patients_is_chosen(tmp_path):
    patients = {
        "E//10//A1": {1, 2},  # with A2 enough for E//10//A
        "E//10//A2": {2, 3},
        "E//10//B1": {4},  # too few for E//10//B: E//10 has enough with C1
        "E//10//C1": {5, 6},
        "E//10//D": {1, 2, 3, 4},  # has enough itself
        "E//10//D1": {1},
        "F//1//X1": {7},  # nothing above it has enough
        "F//1//X2": {8},
        "G": {9},
    }
    letters = {"E//10//A1", "E//10//A2", "E//10//B1", "E//10//C1", "E//10//D1", "F//1//X1", "F//1//X2"}
    write_codes(tmp_path, {code: [code[:-1]] for code in letters})
    found = choose(tmp_path, ("parents", "prefix"), counted(patients, 3), 3)
    expected = {"E//10//A1": "E//10//A", "E//10//A2": "E//10//A", "E//10//D1": "E//10//D"}
    assert found == {**expected, "E//10//B1": "E//10", "E//10//C1": "E//10"}
    # A rule comes into use for what those before it leave: by `prefix` alone the codes' letters are of no use.
    only = choose(tmp_path, ("prefix",), counted(patients, 3), 3)
    assert only == dict.fromkeys(("E//10//A1", "E//10//A2", "E//10//B1", "E//10//C1", "E//10//D1"), "E//10")


def test_a_rare_ancestor_that_is_a_code_itself_counts_and_stays(tmp_path):
    write_codes(tmp_path, {"child": ["above"], "above": ["top"]})
    found = choose(tmp_path, ("parents",), counted({"child": {1, 2}, "above": {3}}, 3), 3)
    assert found == {"child": "above"}


@pytest.mark.parametrize("seed", range(8))
def test_in_random_hierarchies_each_ancestor_has_enough_patients_and_none_nearer_could_take_its_codes(tmp_path, seed):
    rng, fewest = np.random.default_rng(seed), 4
    parents = {f"c{number}": [f"c{above}" for above in rng.integers(number + 1, 61, 2)] for number in range(60)}
    patients = {code: set(rng.integers(0, 40, rng.integers(1, 6)).tolist()) for code in list(parents)[:45]}
    write_codes(tmp_path, parents)
    found = choose(tmp_path, ("parents",), counted(patients, fewest), fewest)
    rare = {code for code, subjects in patients.items() if len(subjects) < fewest}
    assert found and found.keys() <= rare
    members: dict[str, set[int]] = {}
    for code, subjects in patients.items():
        members.setdefault(found.get(code, code), set()).update(subjects)
    known = {code for code, subjects in members.items() if len(subjects) >= fewest}
    assert set(found.values()) <= known
    for code in rare:
        level, seen = {code}, {code}
        while level and not level & known:
            level = {parent for each in level for parent in parents.get(each, [])} - seen
            seen |= level
        # Nothing known is nearer than what was chosen; what stays rare has nothing known above it.
        assert found.get(code, code) in level & known if level else code not in found


@pytest.fixture
def rare_codes(meds) -> MedsFolder:
    """Rare codes of ICD, a rare drug, rare bins of values, and codes that only patients outside train have."""
    rows = []
    for index, subject in enumerate(SUBJECTS):
        rows += [(subject, None, "GENDER//F"), (subject, 1, f"DX//ICD//10//E11{index}")]
        rows += [(subject, 1, f"DRUG//{index}//START")] * (index in (0, 1)) + [(subject, 2, f"DRUG//{index}//STOP")]
        rows += [(subject, 3, "LAB//1", float(index))]
    meds.shard("0", rows)
    meds.splits(SPLITS)
    return meds


def test_all_splits_are_rolled_up_as_train_is(rare_codes):
    config = rare_codes.config(value_bins=6, min_patients=3, roll_up=("icd", "prefix"))
    found = prepare(config)
    assert set(found.vocabulary.codes) == {"GENDER//F", "DX//ICD//10//E11", "DRUG", "LAB//1"}
    for split in events.SPLITS:
        subject = next(subject for subject, name in SPLITS.items() if name == split)
        drugs = ["DRUG"] * (1 + (subject in SUBJECTS[:2]))
        assert tokens_of(found, subject, split) == ["GENDER//F", "DX//ICD//10//E11", *drugs, "LAB//1"]
        assert found.report[f"unknown/{split}"] == 0 and found.report[f"patients_known/{split}"] > 0
    assert found.report["backed_off/train"] == 6 + 2 + 6 + 6  # diagnoses, drug starts, drug stops, value bins
    assert min(found.vocabulary.patients) >= 3
    again = prepare(dataclasses.replace(config), found.vocabulary)  # the vocabulary of a trained model
    assert [tokens_of(again, subject) for subject in TRAIN] == [tokens_of(found, subject) for subject in TRAIN]


def test_without_rules_codes_are_unknown_and_prepared_data_of_before_stay_valid(rare_codes):
    config = rare_codes.config(value_bins=6, min_patients=3)
    found = prepare(config)
    assert set(found.vocabulary.codes) == {"GENDER//F"} and found.report["unknown/train"] == 20
    assert prepare(dataclasses.replace(config, roll_up=())).folder == found.folder


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_ones_own(rare_codes, suffix):
    file = rare_codes.root.parent / f"groups.{suffix}"
    table = pl.DataFrame({"code": [f"DRUG//{index}//STOP" for index in range(10)], "parent": ["ANTIBIOTIC"] * 10})
    table.write_csv(file) if suffix == "csv" else table.write_parquet(file)
    config = rare_codes.config(min_patients=3, value_bins=0, roll_up=(str(file),))
    found = prepare(config)
    assert tokens_of(found, SUBJECTS[9], "held_out") == ["GENDER//F", "[UNK]", "ANTIBIOTIC", "LAB//1"]
    other = table.with_columns(parent=pl.lit("DRUG"))
    other.write_csv(file) if suffix == "csv" else other.write_parquet(file)
    assert "DRUG" in prepare(config).vocabulary.codes  # a changed table is not answered from the cache


def test_rules_that_do_not_fit_are_named(rare_codes, tmp_path):
    for given, message in (("icd", "found one string, 'icd'"), (("icd10",), "found 'icd10'")):
        with pytest.raises(ValueError) as error:
            rare_codes.config(roll_up=given)
        assert_clear(error, "data.roll_up", message, "parents, icd, prefix")
    config = rare_codes.config(roll_up=(str(tmp_path / "none.csv"),))
    with pytest.raises(ValueError) as error:
        prepare(config)
    assert_clear(error, "data.roll_up", tmp_path / "none.csv", "correct the path")
    file = tmp_path / "wrong.csv"
    file.write_text("code,group\nA,B\n")
    with pytest.raises(ValueError) as error:
        prepare(rare_codes.config(roll_up=(str(file),)))
    assert_clear(error, file, "expected also parent")


@pytest.mark.skipif(not MIMIC.is_dir(), reason="the MIMIC-IV demo does not lie beside the repository")
def test_real_codes_are_rolled_up(tmp_path, bundled_config):
    config = dataclasses.replace(
        bundled_config, path=str(MIMIC), codes_exclude=("MEDS_BIRTH", "LAB//*", "SUBJECT_*"), prepared_dir=str(tmp_path)
    )
    shares = []
    for rules in ((), ("parents", "icd"), ("parents", "icd", "prefix")):
        found = prepare(dataclasses.replace(config, roll_up=rules))
        report = found.report
        tokens, unknown = (sum(report[f"{kind}/{split}"] for split in events.SPLITS) for kind in ("tokens", "unknown"))
        shares.append(unknown / tokens)
        train = dataset.read(found.folder, "train")
        pairs = np.unique(np.stack([train.owners, train.codes]), axis=1)
        assert np.bincount(pairs[1], minlength=len(found.vocabulary))[5:].min() >= config.min_patients
    assert shares[0] > 0.15 > 0.10 > shares[2] and shares[0] > shares[1] > shares[2]
