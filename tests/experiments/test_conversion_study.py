"""The study of conversion: its tables hold the events they were made from, and its figures are of both parts."""

import math
import subprocess
import sys

import polars as pl
import pytest

from experiments.studies import conversion
from tests.experiments.conftest import cut_data_set


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return conversion.read_tables(cut_data_set(tmp_path_factory.mktemp("meds") / "some", skip=0))


def test_tables_repeat_all_patients_under_new_ids_up_to_the_number(tables, tmp_path):
    number = len(tables["patients"])
    conversion.write_tables(tables, number + 7, tmp_path / "csv")
    patients = pl.read_csv(tmp_path / "csv" / "patients.csv", infer_schema=False)
    assert patients["Id"].n_unique() == len(patients) == number + 7
    for name in ("observations", "conditions"):
        rows = pl.read_csv(tmp_path / "csv" / f"{name}.csv", infer_schema=False)
        first = rows.filter(pl.col("PATIENT").str.ends_with("-0"))
        assert first["CODE"].to_list() == tables[name]["CODE"].to_list()
        assert set(rows["PATIENT"]) <= set(patients["Id"]) and len(rows) > len(first)


def test_memory_of_a_process_is_what_it_holds():
    program = "block = b'1' * 100 * 2**20; print(flush=True); input()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline()
        held = conversion.held_mib(process.pid)
        process.communicate("\n")
    assert math.isnan(held) or 100 < held < 150
    assert math.isnan(conversion.held_mib(2**30))


def test_a_rate_counts_the_seconds_of_both_parts():
    found = {"events": 3000, "convert_seconds": 40.0, "prepare_seconds": 20.0, "convert_mib": 5.0, "prepare_mib": 7.4}
    assert conversion.format_markdown({20: found}).splitlines()[-1] == "| 20 | 3,000 | 40 | 20 | 3,000 | 5 | 7 |"


@pytest.mark.slow
def test_conversion_and_preparation_are_measured(tables, tmp_path):
    conversion.write_tables(tables, 70, tmp_path / "csv")
    found = conversion.measure(tmp_path)
    events = sum(len(table) for name, table in tables.items() if name != "patients")
    assert found["events"] > events and min(found.values()) > 0


@pytest.mark.slow
def test_a_failed_conversion_ends_the_measurement(tables, tmp_path):
    conversion.write_tables(tables, 3, tmp_path / "csv")
    (tmp_path / "csv" / "patients.csv").write_text("no header\n")
    with pytest.raises(ValueError, match="failed with status 1"):
        conversion.measure(tmp_path)
