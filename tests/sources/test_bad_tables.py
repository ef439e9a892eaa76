"""Damaged and odd tables of OMOP and eICU: each ends in one line that names the file, or in counted rows."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

from behrt_jax.sources import eicu, omop
from tests.sources.test_bad_sources import parquet
from tests.sources.tiny import write_csv

SECRET = "Confidential"


class Kind(NamedTuple):
    """A source: its tables of patients and of one kind of events."""

    prepare: Callable
    people: str
    patients: str
    table: str
    header: str
    row: str
    required: str


KINDS = {
    "omop": Kind(
        omop.prepare,
        "person",
        "person_id,year_of_birth,gender_concept_id\n1,1990,8507\n2,1950,8532\n",
        "measurement",
        "person_id,measurement_concept_id,measurement_date,visit_occurrence_id,value_as_number,unit_source_value\n",
        f"1,3000,2010-05-06,7,5.5,{SECRET}\n",
        "measurement_concept_id",
    ),
    "eicu": Kind(
        eicu.prepare,
        "patient",
        "patientunitstayid,patienthealthsystemstayid,uniquepid,age,hospitaladmittime24,hospitaladmitoffset,"
        "hospitaldischargeyear,hospitaldischargeoffset,unitdischargeoffset\n"
        "1,20,p,50,06:00:00,-60,2014,4260,1000\n2,30,q,> 89,07:00:00,-10,2015,900,800\n",
        "diagnosis",
        "patientunitstayid,diagnosisoffset,diagnosisstring,icd9code\n",
        f"1,10,cardiovascular|shock,{SECRET}\n",
        "diagnosisstring",
    ),
}


def damaged(kind: Kind) -> dict[str, tuple[str, bytes, str]]:
    """Files that cannot be used: name, content, and what the error says."""
    table, missing = kind.header + kind.row, f"column '{kind.required}' is missing"
    first = kind.header.split(",")[0]
    columns = {name: ["1"] for name in kind.header.strip().split(",") if name != kind.required}
    csv = f"{kind.table}.csv"
    return {
        "empty": (csv, b"", "the file is empty"),
        "no header": (csv, kind.row.encode(), f"column '{first}' is missing"),
        "semicolons": (csv, table.replace(",", ";").encode(), f"column '{first}' is missing"),
        "a column renamed": (csv, table.replace(kind.required, "other").encode(), missing),
        "a web page": (csv, b"<!DOCTYPE html>\n<html>Sign in</html>\n", f"column '{first}' is missing"),
        "Latin-1": (csv, (table + kind.row.replace(SECRET, "é")).encode("latin-1"), "not UTF-8"),
        "an open quote": (csv, (table + kind.row.replace(SECRET, f'"{SECRET}')).encode(), "a quote is not closed"),
        "too many fields": (csv, (table + kind.row.rstrip() + ",1,2,3\n").encode(), "more fields than the header"),
        "a gzip that ends early": (f"{csv}.gz", gzip.compress(table.encode() * 500)[:-30], "ends early"),
        "text named .gz": (f"{csv}.gz", b"no gzip at all" * 9, "measurement.csv.gz: |diagnosis.csv.gz: "),
        "text named .parquet": (f"{kind.table}.parquet", table.encode(), "not a readable Parquet file"),
        "Parquet without a column": (f"{kind.table}.parquet", parquet(**columns), missing),
        "patients: empty": (f"{kind.people}.csv", b"", "the file is empty"),
        "patients: one column": (f"{kind.people}.csv", b"x\n1\n", "is missing"),
    }


CASES = [(name, case) for name, kind in KINDS.items() for case in damaged(kind)]
# What becomes of a row in place of the usual one: the reason why it is skipped; None for an event.
ROWS = {
    "omop": {
        "year 1800": ("1,3000,1800-05-06,7,5.5,mg", "before birth"),
        "year 2300": ("1,3000,2300-05-06,7,5.5,mg", None),
        "30 February": ("1,3000,2010-02-30,7,5.5,mg", "unreadable time"),
        "no time": ("1,3000,,7,5.5,mg", "no time"),
        "no person": (",3000,2010-05-06,7,5.5,mg", "no patient id"),
        "text for a person": ("x,3000,2010-05-06,7,5.5,mg", "no patient id"),
        "a stranger": ("9,3000,2010-05-06,7,5.5,mg", "patient not in person"),
        "a person as a float": ("1.0,3000.0,2010-05-06,7.0,5.5,mg", None),
        "concept 0": ("1,0,2010-05-06,7,5.5,mg", "concept 0"),
        "no concept": ("1,,2010-05-06,7,5.5,mg", "concept 0"),
        "text for a concept": ("1,glucose,2010-05-06,7,5.5,mg", "concept 0"),
        "an orphan visit": ("1,3000,2010-05-06,999,5.5,mg", None),
        "no visit and no unit": ("1,3000,2010-05-06,,5.5,", None),
        "text for a value": ("1,3000,2010-05-06,7,high,mg", None),
        "a quoted comma": ('1,3000,2010-05-06,7,5.5,"mg, dry"', None),
        "the same again": ("1,3000,2010-05-06,7,5.5,Confidential", None),
        "too few fields": ("1,3000,2010-05-06", None),
    },
    "eicu": {
        "no stay": (",10,renal,584.9", "no unit stay id"),
        "an unknown stay": ("9,10,renal,584.9", "unit stay not in patient"),
        "no offset": ("1,,renal,584.9", "no time"),
        "words for an offset": ("1,soon,renal,584.9", "unreadable time"),
        "part of a minute": ("1,10.5,renal,584.9", "unreadable time"),
        "before birth": ("1,-99999999,renal,584.9", "before birth"),
        "years later": ("1,9999999,renal,584.9", None),
        "no ICD code": ("1,10,renal,", None),
        "a quoted comma": ('1,10,renal,"584.9, N17"', None),
        "a quoted line end": ('1,10,renal,"584.9\nN17"', None),
        "a path that ends early": ("1,10,renal|,584.9", None),
        "the same again": ("1,10,cardiovascular|shock,Confidential", None),
        "too few fields": ("1,10,renal", None),
    },
}
ODD = [(name, case) for name, rows in ROWS.items() for case in rows]


def source(tmp_path: Path, kind: Kind, name: str, content: bytes) -> Path:
    folder = write_csv(tmp_path / "csv", {kind.people: kind.patients})
    (folder / name).write_bytes(content)
    return folder


def prepare(kind: Kind, folder: Path, output: Path) -> dict:
    output.mkdir()
    return dict(kind.prepare(folder, output))


@pytest.mark.parametrize(("name", "case"), CASES, ids=[" ".join(each) for each in CASES])
def test_a_file_that_cannot_be_used_is_named_in_one_line_without_its_values(tmp_path, name, case):
    file, content, message = damaged(KINDS[name])[case]
    with pytest.raises(ValueError, match=message) as caught:
        prepare(KINDS[name], source(tmp_path, KINDS[name], file, content), tmp_path / "out")
    text = str(caught.value)
    assert file in text and "\n" not in text and SECRET.lower() not in text.lower()


@pytest.mark.parametrize(("name", "case"), ODD, ids=[" ".join(each) for each in ODD])
def test_an_odd_row_is_an_event_or_counted(tmp_path, name, case):
    kind, (row, reason) = KINDS[name], ROWS[name][case]
    content = (kind.header + kind.row + row + "\n").encode()
    counts = prepare(kind, source(tmp_path, kind, f"{kind.table}.csv", content), tmp_path / "out")[kind.table]
    assert counts == (2, {reason: 1} if reason else {})
    assert pl.read_parquet(tmp_path / "out" / f"{kind.table}.parquet").height == 1 + (reason is None)


@pytest.mark.parametrize("name", KINDS)
def test_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path, name):
    kind = KINDS[name]
    content = b"\xef\xbb\xbf" + (kind.header + kind.row).replace("\n", "\r\n").encode()
    counts = prepare(kind, source(tmp_path, kind, f"{kind.table}.csv", content), tmp_path / "out")[kind.table]
    assert counts == (1, {})


@pytest.mark.parametrize("name", KINDS)
def test_patients_are_needed_and_a_header_alone_is_no_error(tmp_path, name):
    kind = KINDS[name]
    folder = source(tmp_path, kind, f"{kind.table}.csv", kind.header.encode())
    assert prepare(kind, folder, tmp_path / "out")[kind.table] == (0, {})
    (folder / f"{kind.people}.csv").unlink()
    with pytest.raises(ValueError, match=f"{kind.people}"):
        prepare(kind, folder, tmp_path / "again")
