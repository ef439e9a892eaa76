"""Damaged and odd tables of Synthea: each ends in one line that names the file, or in counted rows."""

import gzip
import io
import os
from pathlib import Path

import polars as pl
import pytest

from behrt_jax.sources import synthea
from tests.sources.tiny import write_csv

SECRET = "Confidential"
PATIENTS = "Id,BIRTHDATE,DEATHDATE,GENDER\np1,1990-03-01,,F\np2,1950-07-09,2020-01-02,M\n"
HEADER = "START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION\n"
ROW = f"2010-05-06,,p1,e1,44054006,{SECRET}\n"
TABLE = HEADER + ROW


def parquet(**columns) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


COLUMNS = {"start": ["2010-05-06"], "patient": ["p1"], "code": [44054006]}
BAD_FILES = {
    "empty": ("conditions.csv", b"", "the file is empty"),
    "blank lines alone": ("conditions.csv", b"\n\n\n", "the file is empty"),
    "no header": ("conditions.csv", ROW.encode(), "column 'patient' is missing"),
    "semicolons": ("conditions.csv", TABLE.replace(",", ";").encode(), "column 'patient' is missing"),
    "tabs": ("conditions.csv", TABLE.replace(",", "\t").encode(), "column 'patient' is missing"),
    "no column of patients": ("conditions.csv", TABLE.replace("PATIENT", "PERSON").encode(), "'patient' is missing"),
    "no column of times": ("conditions.csv", TABLE.replace("START", "BEGIN").encode(), "'start' or 'date' is missing"),
    "no column of codes": ("conditions.csv", TABLE.replace("CODE", "SNOMED").encode(), "'code' is missing"),
    "a web page": ("conditions.csv", b"<!DOCTYPE html>\n<html>Sign in</html>\n", "column 'patient' is missing"),
    "Latin-1": ("conditions.csv", (TABLE + ROW.replace(SECRET, "é")).encode("latin-1"), "not UTF-8"),
    "UTF-16": ("conditions.csv", TABLE.encode("utf-16"), "conditions.csv: "),
    "an open quote": ("conditions.csv", (TABLE + ROW.replace(SECRET, f'"{SECRET}')).encode(), "a quote is not closed"),
    "too many fields": ("conditions.csv", (TABLE + ROW.rstrip() + ",1,2,3\n").encode(), "more fields than the header"),
    "a gzip that ends early": ("conditions.csv.gz", gzip.compress(TABLE.encode() * 500)[:-30], "ends early"),
    "text named .gz": ("conditions.csv.gz", b"no gzip at all" * 9, "conditions.csv.gz: "),
    "text named .parquet": ("conditions.parquet", TABLE.encode(), "not a readable Parquet file"),
    "a Parquet file that ends early": ("conditions.parquet", parquet(**COLUMNS)[:-60], "not a readable Parquet file"),
    "Parquet without patients": ("conditions.parquet", parquet(start=["2010-05-06"]), "column 'patient' is missing"),
    "patients: empty": ("patients.csv", b"", "patients.csv: not a readable CSV file .the file is empty"),
    "patients: no births": ("patients.csv", b"Id,GENDER\np1,F\n", "column 'birthdate' is missing"),
    "patients: no ids": ("patients.csv", b"BIRTHDATE\n1990-03-01\n", "column 'id' is missing"),
}
# What becomes of a row in place of ROW: the reason why it is skipped; None for an event.
ROWS = {
    "year 1800": ("1800-05-06,,p1,e1,1,x", "before birth"),
    "the day before birth": ("1990-02-28,,p1,e1,1,x", "before birth"),
    "year 2300": ("2300-05-06,,p1,e1,1,x", None),
    "year 9999": ("9999-12-31,,p1,e1,1,x", "unreadable time"),
    "30 February": ("2010-02-30,,p1,e1,1,x", "unreadable time"),
    "zeros": ("0000-00-00,,p1,e1,1,x", "unreadable time"),
    "American date": ("05/06/2010,,p1,e1,1,x", "unreadable time"),
    "date in words": ("6 May 2010,,p1,e1,1,x", "unreadable time"),
    "another time zone": ("2010-05-06T08:00:00+05:00,,p1,e1,1,x", "unreadable time"),
    "UTC": ("2010-05-06T08:00:00+00:00,,p1,e1,1,x", None),
    "parts of seconds": ("2010-05-06T08:00:00.125Z,,p1,e1,1,x", None),
    "no time": (",,p1,e1,1,x", "no time"),
    "spaces for a time": ("   ,,p1,e1,1,x", "no time"),
    "spaces around": (" 2010-05-06 , , p1 , e1 , 1 , x ", None),
    "end before start": ("2010-05-06,2009-01-01,p1,e1,1,x", None),
    "no patient": ("2010-05-06,,,e1,1,x", "no patient id"),
    "a stranger": ("2010-05-06,,p9,e1,1,x", "patient not in patients"),
    "no encounter": ("2010-05-06,,p1,,1,x", None),
    "an orphan encounter": ("2010-05-06,,p1,e999,1,x", None),
    "a quoted comma": ('2010-05-06,,p1,e1,1,"x, y"', None),
    "a quoted line end": ('2010-05-06,,p1,e1,1,"x\ny"', None),
    "a quoted quote": ('2010-05-06,,p1,e1,1,"x ""y"""', None),
    "letters of many alphabets": ("2010-05-06,,p1,e1,1,Ödème 浮腫", None),
    "too few fields": ("2010-05-06,,p1", None),
    "a row of commas": (",,,,,", "no patient id"),
    "after death": ("2021-05-06,,p2,e1,1,x", None),
}
LAYOUTS = {
    "a byte order mark": ("conditions.csv", b"\xef\xbb\xbf" + TABLE.encode()),
    "Windows line ends": ("conditions.csv", TABLE.replace("\n", "\r\n").encode()),
    "no last line end": ("conditions.csv", TABLE.rstrip().encode()),
    "lower-case names": ("Conditions.CSV", TABLE.replace(HEADER, HEADER.lower()).encode()),
    "compressed": ("conditions.csv.gz", gzip.compress(TABLE.encode())),
    "spaces in the header": ("conditions.csv", TABLE.replace("PATIENT", " PATIENT ").encode()),
    "Parquet with numbers": ("conditions.parquet", parquet(**COLUMNS)),
}


def prepare(folder: Path, output: Path) -> dict:
    return dict(synthea.prepare(folder, output))


def source(tmp_path: Path, name: str, content: bytes) -> Path:
    folder = write_csv(tmp_path / "csv", {"patients": PATIENTS})
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_used_is_named_in_one_line_without_its_values(tmp_path, case):
    name, content, message = BAD_FILES[case]
    with pytest.raises(ValueError, match=message) as caught:
        prepare(source(tmp_path, name, content), tmp_path / "out")
    text = str(caught.value)
    assert name in text and "\n" not in text and SECRET.lower() not in text.lower()


@pytest.mark.parametrize("case", ROWS)
def test_an_odd_row_is_an_event_or_counted(tmp_path, case):
    row, reason = ROWS[case]
    counts = prepare(source(tmp_path, "conditions.csv", (TABLE + row + "\n").encode()), tmp_path / "out")["conditions"]
    assert counts == (2, {reason: 1} if reason else {})
    assert pl.read_parquet(tmp_path / "out" / "conditions.parquet").height == 1 + (reason is None)


@pytest.mark.parametrize("case", LAYOUTS)
def test_other_layouts_of_a_file_give_the_same(tmp_path, case):
    counts = prepare(source(tmp_path, *LAYOUTS[case]), tmp_path / "out")["conditions"]
    assert counts == (1, {})
    (row,) = pl.read_parquet(tmp_path / "out" / "conditions.parquet").rows(named=True)
    assert (row["patient"], row["code"], str(row["time"])) == ("p1", "44054006", "2010-05-06 00:00:00")


def test_header_alone_and_patients_given_twice(tmp_path):
    folder = source(tmp_path, "conditions.csv", HEADER.encode())
    (folder / "patients.csv").write_text(PATIENTS + "p1,1991-01-01,,F\np3,1990-01-01,1980-01-01,F\np4,,,F\n")
    counts = prepare(folder, tmp_path / "out")
    assert counts["conditions"] == (0, {})
    assert counts["patients"].skipped == {"before birth": 1, "no time": 1}


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root reads every file")
def test_a_file_without_permission_is_named(tmp_path):
    folder = source(tmp_path, "conditions.csv", TABLE.encode())
    (folder / "conditions.csv").chmod(0)
    with pytest.raises(ValueError, match="conditions.csv"):
        prepare(folder, tmp_path / "out")
