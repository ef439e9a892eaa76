"""Prepares the tables of the eICU Collaborative Research Database: gives offsets dates, and paths ancestors.

eICU has no dates: minutes since the unit's admission, the time of day, and the year of the hospital discharge. MEDS
needs dates, so each hospital stay of a patient starts on 1 January of the year of its discharge, or on the day after
the patient's hospital stay before it if that is later. The order of the stays of one year is not in the data: those
that end in death come last, the others are in the order of age, then of `patienthealthsystemstayid`. Only differences
within a hospital stay are real.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from behrt_jax.sources import tables
from behrt_jax.sources.tables import RowCounts


class Layout(NamedTuple):
    """Columns of a table.

    Attributes:
      offset: minutes from the unit's admission.
      keep: those to keep; the first is required.
      values: those of one value each.
      entered: the offset at which a row was entered, where the table has one beside the offset it is about.
    """

    offset: str
    keep: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    entered: str = ""


LAYOUTS = {
    "diagnosis": Layout("diagnosisoffset", ("diagnosisstring", "icd9code")),
    "treatment": Layout("treatmentoffset", ("treatmentstring",)),
    "admissiondx": Layout("admitdxenteredoffset", ("admitdxpath",)),
    "pasthistory": Layout("pasthistoryoffset", ("pasthistorypath",), entered="pasthistoryenteredoffset"),
    "allergy": Layout("allergyoffset", ("allergyname",), entered="allergyenteredoffset"),
    "admissiondrug": Layout("drugoffset", ("drugname",), entered="drugenteredoffset"),
    "medication": Layout(
        "drugstartoffset", ("drugname", "drughiclseqno", "drugordercancelled"), entered="drugorderoffset"
    ),
    "infusiondrug": Layout("infusionoffset", ("drugname", "drugrate")),
    "lab": Layout(
        "labresultoffset",
        ("labname", "labresult", "labresulttext", "labmeasurenamesystem"),
        entered="labresultrevisedoffset",
    ),
    "customlab": Layout("labotheroffset", ("labothername", "labothervaluetext")),
    "microlab": Layout("culturetakenoffset", ("culturesite", "organism", "antibiotic", "sensitivitylevel")),
    "vitalaperiodic": Layout(
        "observationoffset",
        values=("noninvasivesystolic", "noninvasivediastolic", "noninvasivemean", "paop", "cardiacoutput")
        + ("cardiacinput", "svr", "svri", "pvr", "pvri"),
    ),
    "vitalperiodic": Layout(
        "observationoffset",
        values=("temperature", "sao2", "heartrate", "respiration", "cvp", "etco2", "systemicsystolic")
        + ("systemicdiastolic", "systemicmean", "pasystolic", "padiastolic", "pamean", "st1", "st2", "st3", "icp"),
    ),
    "physicalexam": Layout("physicalexamoffset", ("physicalexampath", "physicalexamtext")),
    "nurseassessment": Layout(
        "nurseassessoffset", ("celllabel", "cellattribute", "cellattributevalue"), entered="nurseassessentryoffset"
    ),
    "nursecare": Layout(
        "nursecareoffset", ("celllabel", "cellattribute", "cellattributevalue"), entered="nursecareentryoffset"
    ),
    "nursecharting": Layout(
        "nursingchartoffset",
        ("nursingchartcelltypevallabel", "nursingchartcelltypevalname", "nursingchartvalue"),
        entered="nursingchartentryoffset",
    ),
    "respiratorycharting": Layout(
        "respchartoffset", ("respchartvaluelabel", "respchartvalue"), entered="respchartentryoffset"
    ),
    "respiratorycare": Layout("respcarestatusoffset", ("airwaytype",)),
    "intakeoutput": Layout("intakeoutputoffset", ("celllabel", "cellvaluenumeric"), entered="intakeoutputentryoffset"),
    "careplangeneral": Layout("cplitemoffset", ("cplgroup", "cplitemvalue")),
    "careplangoal": Layout("cplgoaloffset", ("cplgoalcategory", "cplgoalvalue")),
    "note": Layout("noteoffset", ("notepath", "notevalue"), entered="noteenteredoffset"),
}
PATHS = {"diagnosis": "DIAGNOSIS//", "treatment": "TREATMENT//", "admissiondx": "ADMISSION_DX//"}
OLDEST = 90  # the age that "> 89" stands for
ICD9 = r"^(\d{2,3}|V\d{2}|E\d{3})(\.\d+)?$"


def prepare(folder: Path, output: Path) -> Iterator[tuple[str, RowCounts]]:
    """Writes the tables found in a folder as Parquet files, and yields the name and row counts of each.

    Tables have the columns `uniquepid`, `patientunitstayid`, `time` and what `LAYOUTS` keeps; with `values`, a row for
    each value, as `name` and `value`. Rows are skipped if they name no stay of `patient`, have no offset, lie before
    the patient's birth or are cancelled orders. What was entered later than the offset that it is about has the time of
    its entry, as it was not known before. `metadata/codes.parquet` gets the ancestors of diagnoses, treatments
    and admission diagnoses, whose paths are separated by `|`, and the ICD codes of diagnoses.

    Raises:
      ValueError: there is no table `patient`, or a table cannot be read or lacks a required column.
    """
    found = tables.list_tables(folder, "patient", "patient.csv.gz as eICU has it")
    yield "patient", _prepare_stays(found["patient"], output / "patient.parquet")
    stays = pl.scan_parquet(output / "patient.parquet")
    stays = stays.select("patientunitstayid", "uniquepid", "birth", unit_admission="time").unique(
        "patientunitstayid", keep="first"
    )
    for name, layout in LAYOUTS.items():
        if name in found:
            yield name, _prepare_events(layout, found[name], stays, output / f"{name}.parquet")
    codes = [_path_codes(output / f"{name}.parquet", name) for name in PATHS if name in found]
    if codes:
        (output / "metadata").mkdir(exist_ok=True)
        pl.concat(codes).sort("code").write_parquet(output / "metadata" / "codes.parquet")


def _prepare_stays(paths: list[Path], output: Path) -> RowCounts:
    ids = ("uniquepid", "patienthealthsystemstayid", "patientunitstayid")
    offsets = ("hospitaladmitoffset", "hospitaldischargeoffset", "unitdischargeoffset")
    times = ("hospitaladmittime24", "hospitaldischargeyear")
    others = ("gender", "ethnicity", "hospitaladmitsource", "hospitaldischargelocation", "hospitaldischargestatus")
    others += ("unittype", "unitstaytype", "unitdischargelocation", "apacheadmissiondx")
    rows = tables.scan_text(paths, (*ids, *offsets, *times, "age"), others)
    age = pl.when(pl.col("age").str.starts_with(">")).then(pl.lit(str(OLDEST))).otherwise("age")
    rows = rows.with_columns(
        *(pl.col(name).cast(pl.Int64, strict=False) for name in offsets),
        age=age.cast(pl.Int32, strict=False),
        year=pl.col("hospitaldischargeyear").cast(pl.Int32, strict=False),
        admitted=pl.col("hospitaladmittime24").str.to_time("%H:%M:%S", strict=False),
    )
    rows = rows.join(_hospital_dates(rows), on="patienthealthsystemstayid", how="left", maintain_order="left")
    admission = pl.col("date").dt.combine(pl.col("admitted"))
    minutes = {name: pl.duration(minutes=pl.col(name)) for name in offsets}
    unit = admission - minutes["hospitaladmitoffset"]
    rows = rows.with_columns(
        time=unit,
        hospital_admission=admission,
        unit_discharge=unit + minutes["unitdischargeoffset"],
        hospital_discharge=unit + minutes["hospitaldischargeoffset"],
        birth=pl.date(pl.col("first_year") - pl.col("first_age"), 1, 1).cast(pl.Datetime("us")),
    )
    stay_times = ("hospital_admission", "unit_discharge", "hospital_discharge")
    reasons = [
        ("no patient id", pl.any_horizontal(pl.col(name).is_null() for name in ids)),
        *tables.time_reasons("time", pl.coalesce(times)),
        ("before birth", pl.min_horizontal("time", *stay_times) < pl.col("birth")),
    ]
    keep = [*ids, "time", *stay_times, "birth", *others]
    return tables.write_table(rows, reasons, keep, paths, output)


def _hospital_dates(stays: pl.LazyFrame) -> pl.LazyFrame:
    """Returns for each hospital stay its first `date`, and the patient's `first_year` and `first_age`."""
    of_day = pl.col("admitted").dt.hour().cast(pl.Int64) * 60 + pl.col("admitted").dt.minute()
    stay = (pl.col("hospitaldischargeoffset") - pl.col("hospitaladmitoffset")).clip(0)
    days = (of_day + stay) // (24 * 60) + 1  # to the day after the discharge
    stays = stays.with_columns(days=days, start=pl.date(pl.col("year"), 1, 1))
    stays = stays.drop_nulls(["uniquepid", "patienthealthsystemstayid", "days", "start"])
    stays = stays.unique("patienthealthsystemstayid", keep="first", maintain_order=True)
    is_last = (pl.col("hospitaldischargestatus") == "Expired").fill_null(False)
    stays = stays.sort("uniquepid", "year", is_last, "age", "patienthealthsystemstayid")
    before = (pl.col("days").cum_sum() - pl.col("days")).over("uniquepid")  # days of the patient's stays before this
    waits = (pl.col("start").cast(pl.Int64) - before).cum_max().over("uniquepid")
    return stays.select(
        "patienthealthsystemstayid",
        date=(before + waits).cast(pl.Int32).cast(pl.Date),
        first_year=pl.col("year").first().over("uniquepid"),
        first_age=pl.col("age").first().over("uniquepid"),
    )


def _prepare_events(layout: Layout, paths: list[Path], stays: pl.LazyFrame, output: Path) -> RowCounts:
    required, entered = ("patientunitstayid", layout.offset, *layout.keep[:1]), layout.entered or layout.offset
    rows = tables.scan_text(paths, required, (*layout.keep, *layout.values, entered))
    if layout.values:
        rows = rows.unpivot(list(layout.values), index=["patientunitstayid", layout.offset], variable_name="name")
        rows = rows.filter(pl.col("value").is_not_null())
    offset, entry = (pl.col(name).cast(pl.Int64, strict=False) for name in (layout.offset, entered))
    minutes = pl.when(offset.is_not_null()).then(pl.max_horizontal(offset, entry))
    rows = rows.join(stays, on="patientunitstayid", how="left", maintain_order="left")
    rows = rows.with_columns(time=pl.col("unit_admission") + pl.duration(minutes=minutes))
    reasons = [
        ("no unit stay id", pl.col("patientunitstayid").is_null()),
        ("unit stay not in patient", pl.col("unit_admission").is_null()),
        *tables.time_reasons("time", pl.col(layout.offset)),
        ("before birth", pl.col("time") < pl.col("birth")),
    ]
    if "drugordercancelled" in layout.keep:
        reasons.append(("cancelled order", pl.col("drugordercancelled") == "Yes"))
    columns = ("name", "value") if layout.values else layout.keep
    return tables.write_table(rows, reasons, ["uniquepid", "patientunitstayid", "time", *columns], paths, output)


def _path_codes(file: Path, name: str) -> pl.DataFrame:
    """Returns `code, description, parent_codes` of the paths of a table and of every path above them."""
    path = LAYOUTS[name].keep[0]
    icd = pl.col("icd9code").str.split(",") if name == "diagnosis" else pl.lit(None, pl.List(pl.String))
    rows = pl.scan_parquet(file).select(path=path, icd=icd).drop_nulls("path").unique().collect()
    links = [rows.explode("icd", empty_as_null=True).select("path", parent=_icd_code(pl.col("icd"))).drop_nulls()]
    paths = set(rows["path"])
    while above := {each.rpartition("|")[0] for each in paths if "|" in each}:
        pairs = [(PATHS[name] + each.rpartition("|")[0], each) for each in paths if "|" in each]
        links.append(pl.DataFrame(pairs, ["parent", "path"], orient="row").select("path", "parent"))
        paths = above
    everything = sorted(
        {*rows["path"], *(code.removeprefix(PATHS[name]) for link in links[1:] for code in link["parent"])}
    )
    parents = pl.concat(links).group_by("path").agg(parent_codes=pl.col("parent").unique().sort())
    codes = pl.DataFrame({"path": everything}, {"path": pl.String}).join(parents, on="path", how="left")
    return codes.select(
        pl.format(f"{PATHS[name]}{{}}", "path").alias("code"), description="path", parent_codes="parent_codes"
    )


def _icd_code(text: pl.Expr) -> pl.Expr:
    code = tables.strip(text)
    system = pl.when(code.str.contains(ICD9)).then(pl.lit("ICD9CM")).otherwise(pl.lit("ICD10CM"))
    return pl.format("{}/{}", system, code)
