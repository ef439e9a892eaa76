"""MIMIC-IV by its published spec, on hand-made tables with the columns that the spec reads."""

import csv
from pathlib import Path

import polars as pl
import pytest

from behrt_jax.data import events as data_events
from behrt_jax.sources import engine
from tests.sources.tiny import convert_to, find_skipped

pytest.importorskip("MEDS_extract")
pytest.importorskip("MIMIC_IV_MEDS")
pytestmark = pytest.mark.current_only
ROWS = {
    "hosp/patients": [
        {"subject_id": 1, "gender": "F", "anchor_year": 2150, "anchor_age": 60, "dod": "2151-03-04"},
        {"subject_id": 2, "gender": "M", "anchor_year": 2140, "anchor_age": 30},
        {"subject_id": 3, "gender": "M", "anchor_year": 2140, "anchor_age": 40},
    ],
    "hosp/admissions": [
        {
            **{"subject_id": 1, "hadm_id": 7, "admittime": "2150-01-02 03:04:05", "dischtime": "2150-01-05 06:00:00"},
            **{"admission_type": "URGENT", "race": "WHITE"},
        }
    ],
    "hosp/diagnoses_icd": [
        {"subject_id": 1, "hadm_id": 7, "icd_code": "E1140", "icd_version": 10},
        {"subject_id": 1, "hadm_id": 8, "icd_code": "I10", "icd_version": 10},
    ],
    "hosp/d_icd_diagnoses": [{"icd_code": "E1140", "icd_version": 10, "long_title": "Diabetes with neuropathy"}],
    "hosp/labevents": [
        {
            **{"subject_id": 1, "hadm_id": 7, "itemid": 50983, "valueuom": "mEq/L", "value": "140", "valuenum": 140},
            **{"charttime": "2150-01-02 04:00:00", "storetime": "2150-01-02 05:00:00", "priority": "STAT"},
        }
    ],
}


def fill(column: str) -> str:
    """Returns a value for a column of a table without rows of its own: patient 3, admission 7."""
    numbers = {"subject_id": "3", "hadm_id": "7"}
    if column.endswith("id") or column in ("valuenum", "rate", "amount", "patientweight", "icd_version", "drg_code"):
        return numbers.get(column, "1")
    times = {"chartdate": "2150-01-02", "value": "1"}
    return times.get(column, "2150-01-02 04:00:00" if column.endswith("time") else "x")


def write_tables(folder: Path) -> Path:
    """Writes every table that the spec reads, with one made-up row where `ROWS` has none."""
    from MEDS_extract.config import compile_metadata_block

    spec = engine.load_spec(engine.find_mimic_spec())
    columns = {name: set(needed) for name, needed in spec.needed_source_columns().items()}
    for kind in (kind for table in spec.event_tables for kind in table.events):
        for name, block in kind.metadata.items():
            if name != "_self":
                compiled = compile_metadata_block(block, kind.code_source_columns, code_template_str=kind.raw_code)
                columns.setdefault(name, set()).update(compiled.referenced_columns)
    for name, needed in columns.items():
        file = folder / f"{name}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, sorted(needed))
            writer.writeheader()
            rows = ROWS.get(name, [{column: fill(column) for column in needed}])
            writer.writerows({column: row.get(column, "") for column in needed} for row in rows)
    return folder


def test_tables_are_converted_by_the_published_spec(tmp_path):
    conversion, events = convert_to(tmp_path / "meds", write_tables(tmp_path / "csv"), "mimic_iv")
    assert {count.table for count in conversion.counts if count.events} == {count.table for count in conversion.counts}
    rows = events.filter(pl.col("time").is_not_null(), pl.col("subject_id") < 3).select(
        "subject_id", "time", "code", "numeric_value", "hadm_id"
    )
    rows = rows.with_columns(pl.col("time").dt.to_string("%F %T"))
    assert sorted(rows.rows()) == [
        (1, "2090-01-01 00:00:00", "MEDS_BIRTH", None, None),
        (1, "2150-01-02 03:04:05", "HOSPITAL_ADMISSION//URGENT//UNK", None, 7),
        (1, "2150-01-02 03:04:05", "RACE//WHITE", None, 7),
        (1, "2150-01-02 04:00:00", "LAB//SPECIMEN_COLLECTED//50983//STAT", None, 7),
        (1, "2150-01-02 05:00:00", "LAB//RESULT//50983//mEq/L", 140.0, 7),
        (1, "2150-01-05 06:00:00", "DIAGNOSIS//ICD//10//E1140", None, 7),
        (1, "2150-01-05 06:00:00", "HOSPITAL_DISCHARGE//UNK", None, 7),
        (1, "2151-03-04 00:00:00", "MEDS_DEATH", None, None),
        (2, "2110-01-01 00:00:00", "MEDS_BIRTH", None, None),
    ]
    skipped = find_skipped(conversion)
    assert skipped["hosp/diagnoses_icd/diagnosis"] == {"no time": 1}  # its admission is not in the table
    assert skipped["hosp/patients/death"] == {"no time": 2}
    parents = dict(data_events.read_codes(tmp_path / "meds", "parent_codes").iter_rows())
    assert parents["DIAGNOSIS//ICD//10//E1140"] == ["ICD10CM/E11.40"]
