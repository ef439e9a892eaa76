import dataclasses
import datetime

import numpy as np
import polars as pl
import pytest

from behrt_jax.data import dataset, histories, sexes
from behrt_jax.data.prepare import prepare
from tests.data.handmade import patients_of

DAY = 1440
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")
FORMS = ("GENDER//F", "Gender/FEMALE", "GENDER//8532", "SEX//female", "Sex:F", "DEMOGRAPHICS//GENDER//F", "SEX_FEMALE")


@pytest.mark.parametrize("code", FORMS)
def test_common_forms_are_read(code):
    male = code.replace("FEMALE", "MALE").replace("female", "male").replace("8532", "8507")
    male = male[:-1] + "M" if male.endswith("F") else male
    assert (sexes.sex_of(code), sexes.sex_of(male)) == ("F", "M")


@pytest.mark.parametrize("code", ["GENDER//U", "LAB//SEX HORMONE//F", "F", "CONDITION//8532", "GENDER", ""])
def test_other_codes_say_no_sex(code):
    assert sexes.sex_of(code) == ""


def test_static_and_timed_codes_are_read_and_the_last_counts():
    tokens = (*SPECIAL, "A", "SEX//M", "SEX//F")
    kinds = [{"static": [6]}, {"visits": [[(7, 0)], [(5, DAY)]]}, {"static": [6], "visits": [[(7, 0)]]}, {}]
    patients = patients_of(*({"id": place, "visits": [[(5, 0)]], **kind} for place, kind in enumerate(kinds)))
    assert sexes.sexes(patients, tokens).tolist() == ["M", "F", "F", ""]
    times = np.full(4, np.datetime64("2000-01-11", "us"))
    covariates = histories.covariates_at(patients, times, tokens)[:, len(histories.AGE_KNOTS) :]
    assert covariates.tolist() == [[0, 1], [1, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize("given", ["SEX//2=F", ("SEX//2",), ("SEX//2=W",), ("=F",)])
def test_codes_in_another_form_are_refused(given):
    with pytest.raises(ValueError, match=r"data.sex_codes: found .*; expected a tuple such as"):
        sexes.parse(given)


def test_what_a_vocabulary_knows_stays_as_it_is():
    codes = ["GENDER//8532", "SEX//1", "A"]
    assert sexes.canonical(codes, ("SEX//1=M",)) == {"GENDER//8532": "GENDER//F", "SEX//1": "GENDER//M"}
    assert sexes.canonical(codes, (), frozenset({"GENDER//8532"})) == {}


def test_prepared_data_has_one_token_for_each_sex(bundled_config, tmp_path):
    """Of patients whose sex is static, timed at birth, in a code of their own, or not there."""
    folder, rows = tmp_path / "meds" / "data", []
    folder.mkdir(parents=True)
    for subject in range(60):
        born, code = datetime.datetime(1980, 1, 1), ("Gender/FEMALE", "GENDER//8507", "X//2", None)[subject % 4]
        rows += [(subject, born, "MEDS_BIRTH"), (subject, datetime.datetime(2000, 1, 1), "A")]
        rows += [(subject, born if subject % 4 == 1 else None, code)] if code else []
    table = pl.DataFrame(rows, {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}, orient="row")
    table = table.sort("subject_id", "time", nulls_last=False).with_columns(numeric_value=pl.lit(None, pl.Float32))
    table.write_parquet(folder / "0.parquet")
    changes = {"path": str(tmp_path / "meds"), "prepared_dir": str(tmp_path), "min_patients": 1}
    for given, expected in (((), ["", "F", "M", ""]), (("X//2=F",), ["", "F", "M", "F"])):
        prepared = prepare(dataclasses.replace(bundled_config, sex_codes=given, **changes))
        patients = dataset.read(prepared.folder, "all")
        found = sexes.sexes(patients, prepared.vocabulary.tokens)
        for kind, sex in zip((3, 0, 1, 2), expected, strict=True):
            assert (found[patients.subject_ids % 4 == kind] == sex).all()
        assert prepared.report["patients_without_sex"] == (30 if not given else 15)
    assert {"GENDER//F", "GENDER//M"} < set(prepared.vocabulary.tokens)
