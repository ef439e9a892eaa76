"""Prepares the CSV tables of Synthea: what MEDS-Extract cannot do with them.

Synthea writes dates in some tables and times in others, and its columns differ between versions. Each table is written
with the same lower-case columns: `patient`, `encounter`, `time`, `code`, `description`, `system` and its own.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from behrt_jax.sources import tables
from behrt_jax.sources.tables import RowCounts

# Of each table: the columns that may hold the time, the code and the description, then what else is kept.
START, CODE, DESCRIPTION = ("start", "date"), ("code",), ("description",)
EVENTS = {
    "encounters": (START, CODE, DESCRIPTION, ("id", "encounterclass")),
    "conditions": (START, CODE, DESCRIPTION, ()),
    "procedures": (START, CODE, DESCRIPTION, ()),
    "medications": (START, CODE, DESCRIPTION, ()),
    "observations": (START, CODE, DESCRIPTION, ("value", "units")),
    "immunizations": (START, CODE, DESCRIPTION, ()),
    "allergies": (START, CODE, DESCRIPTION, ()),
    "careplans": (START, CODE, DESCRIPTION, ()),
    "devices": (START, CODE, DESCRIPTION, ()),
    "supplies": (START, CODE, DESCRIPTION, ()),
    "imaging_studies": (
        START,
        ("procedure_code", "bodysite_code"),
        ("procedure_description", "bodysite_description"),
        (),
    ),
}
DEFAULT_SYSTEMS = {"medications": "RXNORM", "observations": "LOINC", "immunizations": "CVX"}
SYSTEMS = {"snomed": "SNOMED", "rxnorm": "RXNORM", "loinc": "LOINC", "cvx": "CVX"}


def prepare(folder: Path, output: Path) -> Iterator[tuple[str, RowCounts]]:
    """Writes the tables found in a folder as Parquet files, and yields the name and row counts of each.

    Rows are skipped if they name no patient of `patients`, have no readable time, or lie before the patient's birth.

    Raises:
      ValueError: there is no table `patients`, or a table cannot be read or lacks a required column.
    """
    found = tables.list_tables(folder, "patients", "patients.csv as Synthea writes it")
    yield "patients", _prepare_patients(found["patients"], output / "patients.parquet")
    births = pl.scan_parquet(output / "patients.parquet").select("patient", "birth").unique("patient", keep="first")
    for name in EVENTS:
        if name in found:
            yield name, _prepare_events(name, found[name], births, output / f"{name}.parquet")


def _prepare_patients(paths: list[Path], output: Path) -> RowCounts:
    demographics = ("race", "ethnicity", "gender")
    rows = tables.scan_text(paths, ("id", "birthdate"), ("deathdate", *demographics)).rename({"id": "patient"})
    rows = rows.with_columns(birth=tables.parse_time(pl.col("birthdate")), death=tables.parse_time(pl.col("deathdate")))
    reasons = [("no patient id", pl.col("patient").is_null()), *tables.time_reasons("birth", pl.col("birthdate"))]
    reasons += [("unreadable time", pl.col("death").is_null() & pl.col("deathdate").is_not_null())]
    reasons += [("before birth", pl.col("death") < pl.col("birth"))]
    return tables.write_table(rows, reasons, ["patient", "birth", "death", *demographics], paths, output)


def _prepare_events(name: str, paths: list[Path], births: pl.LazyFrame, output: Path) -> RowCounts:
    times, codes, descriptions, others = EVENTS[name]
    required = ("patient", "|".join(times), "id" if name == "encounters" else "|".join(codes))
    rows = tables.scan_text(paths, required, ("encounter", "system", *codes, *descriptions, *others))
    system = pl.lit(DEFAULT_SYSTEMS.get(name, "SNOMED"))
    for part, label in SYSTEMS.items():
        system = pl.when(pl.col("system").str.to_lowercase().str.contains(part)).then(pl.lit(label)).otherwise(system)
    raw_time = pl.coalesce(times)
    rows = rows.with_columns(
        time=tables.parse_time(raw_time),
        code=pl.coalesce(codes),
        description=pl.coalesce(descriptions),
        system=system,
        encounter=pl.col("id" if name == "encounters" else "encounter"),
    )
    rows = rows.join(births, on="patient", how="left", maintain_order="left")
    reasons = [
        ("no patient id", pl.col("patient").is_null()),
        ("patient not in patients", pl.col("birth").is_null()),
        *tables.time_reasons("time", raw_time),
        ("before birth", pl.col("time") < pl.col("birth")),
    ]
    keep = ["patient", "encounter", "time", "code", "description", "system", *others]
    return tables.write_table(rows, reasons, [column for column in keep if column != "id"], paths, output)
