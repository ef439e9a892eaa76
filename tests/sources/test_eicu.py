"""eICU: offsets become dates, unit stays visits, and paths ancestors, on hand-made tables and on the demo."""

import datetime

import polars as pl
import pytest

from behrt_jax.data import events as data_events
from behrt_jax.data import visits
from tests.sources.tiny import SHARED, convert_to, find_skipped, write_csv

pytest.importorskip("MEDS_extract")
pytestmark = pytest.mark.current_only
# Patient p: hospital stay 20 of three days with unit stays 1 and 2, and after it hospital stay 10 with unit stay 3.
EICU = {
    "patient": "patientunitstayid,patienthealthsystemstayid,gender,age,ethnicity,hospitaladmittime24,"
    "hospitaladmitoffset,hospitaldischargeyear,hospitaldischargeoffset,hospitaldischargelocation,"
    "hospitaldischargestatus,unittype,unitdischargeoffset,uniquepid\n"
    "1,20,Female,> 89,,06:00:00,-60,2014,4260,Home,Alive,MICU,1000,p\n"
    "2,20,Female,> 89,,06:00:00,-2060,2014,2260,Home,Alive,SICU,50,p\n"
    "3,10,Female,> 89,,10:00:00,-30,2014,100,Death,Expired,MICU,100,p\n"
    "4,30,Male,50,Asian,00:00:00,0,2015,100,Home,Alive,MICU,100,q\n5,40,Male,,,00:00:00,0,2015,100,,,,100,r\n",
    "diagnosis": "diagnosisid,patientunitstayid,diagnosisoffset,diagnosisstring,icd9code\n"
    '1,1,30,cardiovascular|shock|septic,"785.52, R65.21, E980.0"\n2,3,0,cardiovascular|shock,""\n'
    "3,4,-99999999,renal,584.9\n4,9,1,renal,584.9\n5,4,soon,renal,584.9\n6,4,,renal,584.9\n",
    "medication": "patientunitstayid,drugstartoffset,drugordercancelled,drugname,drughiclseqno\n"
    "1,5,No,ASPIRIN,1\n1,6,No,,77\n1,7,Yes,ASPIRIN,1\n",
    "nurseAssessment": "patientunitstayid,nurseassessoffset,nurseassessentryoffset,celllabel,cellattribute,"
    "cellattributevalue\n4,10,30,Pain,Score,3\n4,50,40,Pain,Score,4\n4,60,,Pain,Score,5\n",
    "vitalAperiodic": "vitalaperiodicid,patientunitstayid,observationoffset,noninvasivesystolic,noninvasivemean\n"
    "1,1,10,120,80\n2,1,20,,90\n",
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eicu")
    return folder / "meds", *convert_to(folder / "meds", write_csv(folder / "csv", EICU), "eicu")


def test_offsets_become_dates_in_the_order_of_stays(converted):
    rows = converted[2].filter(pl.col("visit_id").is_in(["1", "2", "3"]))
    rows = rows.select(pl.col("time").dt.to_string("%F %R"), "code", "numeric_value", "visit_id")
    assert sorted(rows.rows()) == [
        ("2014-01-01 07:00", "UNIT_ADMISSION//MICU", None, "1"),
        ("2014-01-01 07:05", "MEDICATION//ASPIRIN", None, "1"),
        ("2014-01-01 07:06", "MEDICATION//HICL 77", None, "1"),
        ("2014-01-01 07:10", "VITAL//noninvasivemean", 80.0, "1"),
        ("2014-01-01 07:10", "VITAL//noninvasivesystolic", 120.0, "1"),
        ("2014-01-01 07:20", "VITAL//noninvasivemean", 90.0, "1"),
        ("2014-01-01 07:30", "DIAGNOSIS//cardiovascular|shock|septic", None, "1"),
        ("2014-01-01 23:40", "UNIT_DISCHARGE//unknown", None, "1"),
        ("2014-01-02 16:20", "UNIT_ADMISSION//SICU", None, "2"),
        ("2014-01-02 17:10", "UNIT_DISCHARGE//unknown", None, "2"),
        ("2014-01-05 10:30", "DIAGNOSIS//cardiovascular|shock", None, "3"),
        ("2014-01-05 10:30", "UNIT_ADMISSION//MICU", None, "3"),
        ("2014-01-05 12:10", "UNIT_DISCHARGE//unknown", None, "3"),
    ]
    patients = converted[2].filter(pl.col("code").is_in(["MEDS_BIRTH", "MEDS_DEATH"])).sort("time")
    assert patients.select("code", "time").rows() == [
        ("MEDS_BIRTH", datetime.datetime(1924, 1, 1)),  # the age "> 89" is taken for 90
        ("MEDS_BIRTH", datetime.datetime(1965, 1, 1)),
        ("MEDS_DEATH", datetime.datetime(2014, 1, 5, 12, 10)),
    ]
    assert visits.name_visits(converted[2], "auto")["visit_name"].drop_nulls().n_unique() == 5


def test_what_is_entered_later_has_the_time_of_its_entry(converted):
    rows = converted[2].filter(pl.col("code") == "NURSE_ASSESSMENT//Pain//Score").sort("numeric_value")
    admission = datetime.datetime(2015, 1, 1)
    assert [(time - admission).total_seconds() / 60 for time in rows["time"]] == [30, 50, 60]


def test_every_row_that_makes_no_event_is_counted(converted):
    skipped = find_skipped(converted[1])
    assert skipped["diagnosis/diagnosis"] == {
        "unit stay not in patient": 1,
        "no time": 1,
        "unreadable time": 1,
        "before birth": 1,
    }
    assert skipped["medication/order"] == {"cancelled order": 1}
    assert skipped["patient/birth"] == {"no time": 1, "duplicate": 2}
    assert skipped["patient/death"] == {"no code": 4}
    assert {count.table: count.rows for count in converted[1].counts}["vitalaperiodic"] == 3  # values


def test_paths_keep_their_ancestors_and_icd_codes(converted):
    parents = dict(data_events.read_codes(converted[0], "parent_codes").iter_rows())
    assert {code: found for code, found in parents.items() if found} == {
        "DIAGNOSIS//cardiovascular|shock|septic": [
            "DIAGNOSIS//cardiovascular|shock",
            "ICD10CM/R65.21",
            "ICD9CM/785.52",
            "ICD9CM/E980.0",
        ],
        "DIAGNOSIS//cardiovascular|shock": ["DIAGNOSIS//cardiovascular"],
    }
    descriptions = dict(data_events.read_codes(converted[0], "description").iter_rows())
    assert descriptions["DIAGNOSIS//cardiovascular"] == "cardiovascular"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
def test_the_demo_is_converted(tmp_path):
    conversion, events = convert_to(tmp_path / "meds", SHARED / "eicu-demo-csv", "eicu")
    counts = {f"{count.table}/{count.kind}": count.events for count in conversion.counts}
    assert conversion.num_subjects == 1841 and counts["patient/unit_admission"] == 2520
    assert counts["diagnosis/diagnosis"] == 24662 and counts["patient/death"] == 182
    assert conversion.missing == ["lab", "vitalperiodic", "nursecharting", "intakeoutput"]
    stays = events.filter(pl.col("code").str.starts_with("UNIT_ADMISSION"))
    assert stays["visit_id"].n_unique() == 2520 and set(stays["time"].dt.year()) <= {2013, 2014, 2015, 2016}
    observed = set(events["code"])
    parents = {code: found for code, found in data_events.read_codes(tmp_path / "meds", "parent_codes").iter_rows()}
    diagnoses = [code for code in observed if code.startswith("DIAGNOSIS//")]
    assert all(code.rpartition("|")[0] in parents[code] for code in diagnoses)
    assert sum(any(parent.startswith("ICD") for parent in parents[code]) for code in diagnoses) > len(diagnoses) / 2
