"""Labels of unit stays of eICU: death in hospital, predicted some hours after the admission to the unit."""

from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse
from scipy.sparse import csgraph

from behrt_jax.data import events
from behrt_jax.sources import tables

KEYS = ("subject_id", "prediction_time")


def read_stays(folder: Path, admissions: pl.DataFrame, hours: float = 24) -> pl.DataFrame:
    """Reads the unit stays whose patients are still in hospital some hours after the admission to the unit.

    Stays that did not end in death or discharge by their record, and stays that `admissions` lack, are left out.

    Args:
      folder: tables of eICU; the table `apachePatientResult` may be missing.
      admissions: from `read_admissions`.
      hours: from the unit's admission to the prediction.

    Returns:
      `subject_id, prediction_time`; `boolean_value`, whether the hospital stay ended in death; `in_unit`, whether the
      patient is still in the unit; `apache`, the hospital mortality that APACHE IVa predicted, or null; `hospital`.
      Sorted; one of several stays that start at one time, of a patient.

    Raises:
      ValueError: a table cannot be read.
    """
    found, minutes = tables.list_tables(folder, "patient", "patient.csv.gz as eICU has it"), round(60 * hours)
    offsets = [
        pl.col(f"{place}dischargeoffset").cast(pl.Int64, strict=False) > minutes for place in ("hospital", "unit")
    ]
    names = ("patientunitstayid", "hospitalid", "hospitaldischargestatus", "unitdischargestatus")
    names += ("hospitaldischargeoffset", "unitdischargeoffset")
    rows = tables.collect(tables.scan_text(found["patient"], names), found["patient"])
    rows = rows.with_columns(in_hospital=offsets[0], in_unit=offsets[1], visit_id="patientunitstayid")
    is_dead = (pl.col("unitdischargestatus") == "Expired").fill_null(False) & ~pl.col("in_unit")
    rows = rows.filter("in_hospital", ~is_dead, pl.col("hospitaldischargestatus").is_in(["Alive", "Expired"]))
    times = admissions.with_columns(pl.col("time") + pl.duration(minutes=minutes))
    rows = rows.join(times, on="visit_id").join(_read_apache(found), on="visit_id", how="left")
    rows = rows.sort("subject_id", "time", "apache", pl.col("visit_id").cast(pl.Int64), nulls_last=True)
    rows = rows.select(
        "subject_id",
        "in_unit",
        "apache",
        prediction_time="time",
        boolean_value=pl.col("hospitaldischargestatus") == "Expired",
        hospital="hospitalid",
    )
    return rows.unique(KEYS, keep="first", maintain_order=True)


def read_admissions(data: Path) -> pl.DataFrame:
    """Reads `subject_id, time, visit_id` of the admissions to units in the MEDS data set that `convert` made."""
    shards = (events.read_shard(shard, ("visit_id",)) for shard in events.find_shards(data))
    rows = pl.concat(shard.filter(pl.col("code").str.starts_with("UNIT_ADMISSION//")) for shard in shards)
    return rows.select("subject_id", "time", visit_id=pl.col("visit_id").cast(pl.String))


def _read_apache(found: dict[str, list[Path]]) -> pl.DataFrame:
    """Returns `visit_id, apache` of the stays that have a prediction by APACHE IVa; -1 stands for none."""
    paths, names = found.get("apachepatientresult", []), ("patientunitstayid", "apacheversion")
    if not paths:
        return pl.DataFrame(schema={"visit_id": pl.String, "apache": pl.Float64})
    rows = tables.collect(tables.scan_text(paths, (*names, "predictedhospitalmortality")), paths)
    rows = rows.filter(pl.col("apacheversion") == "IVa").select(
        visit_id="patientunitstayid", apache=pl.col("predictedhospitalmortality").cast(pl.Float64, strict=False)
    )
    return rows.filter(pl.col("apache") >= 0).unique("visit_id", keep="first", maintain_order=True)


def group_hospitals(folder: Path, admissions: pl.DataFrame) -> pl.DataFrame:
    """Groups patients by hospital, for `folds.write_view`: hospitals that share a patient are one group.

    Args:
      folder: as in `read_stays`.
      admissions: as in `read_stays`.

    Returns:
      `subject_id, group` of every admitted patient: the number of a connected component of the patients and
      hospitals.
    """
    paths = tables.list_tables(folder, "patient", "patient.csv.gz as eICU has it")["patient"]
    stays = tables.collect(tables.scan_text(paths, ("patientunitstayid", "hospitalid")), paths)
    stays = stays.join(admissions, left_on="patientunitstayid", right_on="visit_id")
    subjects, places = (np.unique(stays[name].to_numpy(), return_inverse=True) for name in ("subject_id", "hospitalid"))
    size = len(subjects[0]) + len(places[0])
    links = scipy.sparse.coo_array((np.ones(stays.height), (subjects[1], len(subjects[0]) + places[1])), (size, size))
    _, component = csgraph.connected_components(links, directed=False)
    return pl.DataFrame({"subject_id": subjects[0], "group": component[: len(subjects[0])]})
