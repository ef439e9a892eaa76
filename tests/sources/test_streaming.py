"""Tables are prepared in a stream: memory does not grow with the rows of a file."""

import re
from pathlib import Path

import polars as pl
import pytest

from behrt_jax.sources import eicu, omop, synthea, tables
from tests.sources.test_bad_tables import KINDS
from tests.sources.tiny import SYNTHEA, write_csv

WHOLE = r'label="([^"]*(?:in-memory|columnar-function)[^"]*)'  # steps of a plan that need all rows at once


def find_steps(rows: pl.LazyFrame) -> list[str]:
    plan = rows.show_graph(raw_output=True, show=False, engine="streaming", plan_stage="physical")
    return re.findall(WHOLE, str(plan))


@pytest.fixture
def steps(monkeypatch):
    """The steps that need all rows, by the table that is written."""
    found, write = {}, tables.write_table

    def record(rows, reasons, keep, source, output):
        marks = [condition.alias(f"mark {number}") for number, (_, condition) in enumerate(reasons)]
        found[Path(source[0]).stem] = find_steps(rows.select(*keep, *marks))
        return write(rows, reasons, keep, source, output)

    monkeypatch.setattr(tables, "write_table", record)
    return found


def test_synthea_is_streamed(steps, tmp_path):
    dict(synthea.prepare(write_csv(tmp_path / "csv", SYNTHEA), tmp_path / "out"))
    assert set(steps) == set(SYNTHEA) and not any(steps.values())


@pytest.mark.parametrize(("name", "prepare"), [("omop", omop.prepare), ("eicu", eicu.prepare)])
def test_events_of_other_sources_are_streamed(steps, tmp_path, name, prepare):
    kind = KINDS[name]
    source = write_csv(tmp_path / "csv", {kind.people: kind.patients, kind.table: kind.header + kind.row})
    dict(prepare(source, tmp_path / "out"))
    assert kind.table in steps and not steps[kind.table]


def test_a_step_that_needs_all_rows_is_found(tmp_path):
    scan = pl.scan_csv(write_csv(tmp_path / "csv", {"a": "code\n1\n2\n"}) / "a.csv")
    assert not find_steps(scan.select(pl.col("code") + 1))
    assert find_steps(scan.select(pl.col("code").replace(1, None)))
