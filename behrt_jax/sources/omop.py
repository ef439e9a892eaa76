"""Prepares the tables of an OMOP Common Data Model (5.3 or 5.4): gives concepts their names and ancestors.

MEDS-Extract has no step for concepts. Each table is written with the columns `subject_id`, `time`, `code`, `visit_id`,
`numeric_value`, `text_value` and `unit`; codes are `VOCABULARY/CODE`, such as `SNOMED/44054006`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from behrt_jax.sources import tables
from behrt_jax.sources.tables import RowCounts


class Layout(NamedTuple):
    """Names of a table's columns: `KIND_concept_id` and so on, and `START_date` and `START_datetime`."""

    kind: str
    start: str
    has_values: bool = False


LAYOUTS = {
    "visit_occurrence": Layout("visit", "visit_start"),
    "condition_occurrence": Layout("condition", "condition_start"),
    "drug_exposure": Layout("drug", "drug_exposure_start"),
    "procedure_occurrence": Layout("procedure", "procedure"),
    "measurement": Layout("measurement", "measurement", True),
    "observation": Layout("observation", "observation", True),
    "device_exposure": Layout("device", "device_exposure_start"),
}
DEMOGRAPHICS = ("gender", "race", "ethnicity")
VALUES = ("value_as_number", "value_as_string", "value_as_concept_id", "unit_concept_id", "unit_source_value")
PARENTS = ("Is a", "Maps to")


def prepare(folder: Path, output: Path, source_codes: bool = False) -> Iterator[tuple[str, RowCounts]]:
    """Writes the tables found in a folder as Parquet files, and yields the name and row counts of each.

    Rows are skipped if they name no person of `person`, have no readable time, lie before the person's birth, or have
    concept 0 or none. `metadata/codes.parquet` gets the names of codes and their ancestors, as far as there are tables
    `concept`, `concept_ancestor` or `concept_relationship`; codes that `concept` lacks are `OMOP/ID`.

    Args:
      folder: holds the tables.
      output: a folder to write to.
      source_codes: whether codes are those of the source (`*_source_concept_id`, else `*_source_value`) in place of
        standard concepts; visits and demographics have standard concepts all the same.

    Raises:
      ValueError: there is no table `person`, or a table cannot be read or lacks a required column.
    """
    found = tables.list_tables(folder, "person", "tables of the OMOP Common Data Model")
    scans = {name: _scan(name, paths) for name, paths in found.items() if name in ("person", *LAYOUTS)}
    concepts = _read_concepts(found, _used_concepts(scans, found))
    yield "person", _prepare_persons(scans["person"], concepts, found["person"], output / "person.parquet")
    births = (
        pl.scan_parquet(output / "person.parquet").select("subject_id", birth="time").unique("subject_id", keep="first")
    )
    if "death" in found:
        rows = _with_person(_scan("death", found["death"]), births)
        paths, keep = found["death"], ["subject_id", "time"]
        yield "death", tables.write_table(rows, _reasons(pl.lit(False)), keep, paths, output / "death.parquet")
    for name, layout in LAYOUTS.items():
        if name in found:
            rows = _with_code(_with_person(scans[name], births), layout, concepts, source_codes)
            reasons = _reasons(pl.col("code").is_null(), "no source code" if source_codes else "concept 0")
            keep = ["subject_id", "time", "code", "visit_id", "numeric_value", "text_value", "unit"]
            yield name, tables.write_table(rows, reasons, keep, found[name], output / f"{name}.parquet")
    codes = concepts.select("code", "description", "parent_codes").unique("code", keep="first", maintain_order=True)
    (output / "metadata").mkdir(exist_ok=True)
    codes.write_parquet(output / "metadata" / "codes.parquet")


def _scan(name: str, paths: list[Path]) -> pl.LazyFrame:
    """Scans a table with ids as integers and times parsed, as `raw_time` and `time`."""
    if name == "person":
        born = ("year_of_birth", "month_of_birth", "day_of_birth", "birth_datetime")
        concepts = tuple(f"{kind}_concept_id" for kind in DEMOGRAPHICS)
        rows = tables.scan_text(paths, ("person_id", "year_of_birth|birth_datetime"), (*born, *concepts))
        date = "-".join(["{}"] * 3)
        month, day = (pl.col(f"{part}_of_birth").fill_null("1").str.zfill(2) for part in ("month", "day"))
        raw_time = pl.coalesce("birth_datetime", pl.format(date, pl.col("year_of_birth").str.zfill(4), month, day))
    else:
        layout = LAYOUTS.get(name, Layout("", "death"))
        required, optional = [f"{layout.start}_date|{layout.start}_datetime"], ["visit_occurrence_id"]
        if layout.kind:
            required.append(f"{layout.kind}_concept_id")
            optional += [f"{layout.kind}_source_concept_id", f"{layout.kind}_source_value"]
        rows = tables.scan_text(paths, ("person_id", *required), (*optional, *(VALUES if layout.has_values else ())))
        raw_time = pl.coalesce(f"{layout.start}_datetime", f"{layout.start}_date")
    rows = rows.with_columns(_integer(name) for name in rows.collect_schema().names() if name.endswith("_id"))
    return rows.with_columns(raw_time=raw_time, time=tables.parse_time(raw_time))


def _integer(column: str) -> pl.Expr:
    """Parses ids, which pandas writes as floats where some are missing; null where the text is no whole number."""
    return pl.col(column).str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)


def _used_concepts(scans: dict[str, pl.LazyFrame], found: dict[str, list[Path]]) -> pl.Series:
    """Returns the ids of all concepts that rows name, without 0."""
    ids = [pl.Series("concept_id", [0], pl.Int64)]
    for name, scan in scans.items():
        columns = [column for column in scan.collect_schema().names() if column.endswith("concept_id")]
        named = scan.select(columns).unpivot(value_name="concept_id").select("concept_id").unique()
        ids.append(tables.collect(named, found[name])["concept_id"])
    used = pl.concat(ids).unique().drop_nulls()
    return used.filter(used != 0)


def _read_concepts(found: dict[str, list[Path]], used: pl.Series) -> pl.DataFrame:
    """Returns `concept_id, code, description, parent_codes` of the used concepts and of all their ancestors."""
    links = _read_parents(found)
    vocabulary = [*found.get("concept_ancestor", []), *found.get("concept_relationship", [])]
    frontier, known, parents = pl.DataFrame({"concept_id": used}), pl.DataFrame({"concept_id": used}), []
    while frontier.height:  # breadth-first: no concept is reached twice
        parents.append(tables.collect(links.join(frontier.lazy(), on="concept_id", how="semi"), vocabulary))
        frontier = parents[-1].select(concept_id="parent").unique().join(known, on="concept_id", how="anti")
        known = pl.concat([known, frontier])
    names = pl.DataFrame(schema={"concept_id": pl.Int64, "name": pl.String, "description": pl.String})
    if "concept" in found:
        columns = ("concept_id", "concept_name", "vocabulary_id", "concept_code")
        rows = tables.scan_text(found["concept"], columns).select(
            _integer("concept_id"),
            name=pl.format("{}/{}", pl.col("vocabulary_id").str.replace_all(" ", "_"), "concept_code"),
            description="concept_name",
        )
        names = tables.collect(rows.join(known.lazy(), on="concept_id", how="semi"), found["concept"])
    unnamed = pl.format("OMOP/{}", "concept_id")
    codes = known.join(names, on="concept_id", how="left").with_columns(code=pl.coalesce("name", unnamed)).drop("name")
    pairs = pl.concat([*parents, pl.DataFrame(schema={"concept_id": pl.Int64, "parent": pl.Int64})]).unique()
    named = pairs.join(codes.select(parent="concept_id", parent_codes="code"), on="parent")
    grouped = named.group_by("concept_id").agg(pl.col("parent_codes").unique().sort())
    return codes.join(grouped, on="concept_id", how="left").sort("concept_id")


def _read_parents(found: dict[str, list[Path]]) -> pl.LazyFrame:
    """Returns the pairs `concept_id, parent` of the vocabulary tables that are there."""
    pairs = [pl.LazyFrame(schema={"concept_id": pl.Int64, "parent": pl.Int64})]
    if "concept_ancestor" in found:
        names = ("descendant_concept_id", "ancestor_concept_id", "min_levels_of_separation")
        rows = tables.scan_text(found["concept_ancestor"], names).filter(_integer(names[2]) == 1)
        pairs.append(rows.select(concept_id=_integer(names[0]), parent=_integer(names[1])))
    if "concept_relationship" in found:
        names = ("concept_id_1", "concept_id_2", "relationship_id")
        rows = tables.scan_text(found["concept_relationship"], names, ("invalid_reason",))
        rows = rows.filter(pl.col("relationship_id").is_in(PARENTS), pl.col("invalid_reason").is_null())
        pairs.append(rows.select(concept_id=_integer(names[0]), parent=_integer(names[1])))
    return pl.concat(pairs).filter(pl.col("concept_id") != pl.col("parent"))


def _name(id_column: str, concepts: pl.DataFrame, column: str = "code") -> pl.Expr:
    """Returns the code (or another column) of the concept in an id column; null for 0 and for null."""
    keys, values = concepts["concept_id"], concepts[column]

    def names(ids: pl.Series) -> pl.Series:
        return ids.replace_strict(keys, values, default=None, return_dtype=pl.String)

    # Polars streams a function of its own, but not `Expr.replace_strict`: memory would grow with the rows of a file.
    return pl.col(id_column).map_batches(names, return_dtype=pl.String, is_elementwise=True)


def _prepare_persons(rows: pl.LazyFrame, concepts: pl.DataFrame, paths: list[Path], output: Path) -> RowCounts:
    unnamed = "^OMOP/"  # of a gender, the reader knows the concepts by their ids
    names = {
        kind: _name(f"{kind}_concept_id", concepts).str.replace(unnamed, f"{kind.upper()}/") for kind in DEMOGRAPHICS
    }
    rows = rows.with_columns(subject_id="person_id", **names)
    reasons = [("no patient id", pl.col("subject_id").is_null()), *tables.time_reasons("time", pl.col("raw_time"))]
    return tables.write_table(rows, reasons, ["subject_id", "time", *DEMOGRAPHICS], paths, output)


def _with_person(rows: pl.LazyFrame, births: pl.LazyFrame) -> pl.LazyFrame:
    rows = rows.rename({"person_id": "subject_id", "visit_occurrence_id": "visit_id"})
    return rows.join(births, on="subject_id", how="left", maintain_order="left")


def _with_code(rows: pl.LazyFrame, layout: Layout, concepts: pl.DataFrame, source_codes: bool) -> pl.LazyFrame:
    code, null = _name(f"{layout.kind}_concept_id", concepts), pl.lit(None, pl.String)
    if source_codes and layout.kind != "visit":
        unmapped = pl.format("{}_SOURCE/{}", pl.lit(layout.kind.upper()), f"{layout.kind}_source_value")
        code = pl.coalesce(_name(f"{layout.kind}_source_concept_id", concepts), unmapped)
    if not layout.has_values:
        return rows.with_columns(code=code, numeric_value=pl.lit(None, pl.Float32), text_value=null, unit=null)
    number = pl.col("value_as_number").cast(pl.Float32, strict=False)
    not_number = pl.when(number.is_null()).then("value_as_number")
    value_name = _name("value_as_concept_id", concepts, "description")
    return rows.with_columns(
        code=code,
        numeric_value=number,
        text_value=pl.coalesce("value_as_string", value_name, not_number),
        unit=pl.coalesce(_name("unit_concept_id", concepts).str.replace("^UCUM/", ""), "unit_source_value"),
    )


def _reasons(no_code: pl.Expr, words: str = "no code") -> list[tuple[str, pl.Expr]]:
    return [
        ("no patient id", pl.col("subject_id").is_null()),
        ("patient not in person", pl.col("birth").is_null()),
        *tables.time_reasons("time", pl.col("raw_time")),
        ("before birth", pl.col("time") < pl.col("birth")),
        (words, no_code),
    ]
