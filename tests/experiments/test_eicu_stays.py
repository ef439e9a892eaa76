"""Unit stays of eICU: labels 24 hours after admission, APACHE's predictions, and hospitals that are held out whole."""

import datetime

import polars as pl
import pytest

from behrt_jax.data import folds
from experiments.studies import eicu_stays
from tests.data.handmade import MedsFolder
from tests.sources.tiny import write_csv

DAY = datetime.timedelta(days=1)
# stay, patient, day of admission, hospital, minutes to the end of the unit and hospital stays, states at both ends
STAYS = (
    (1, "p", 0, 7, 1380, 6000, "Alive", "Alive"),  # 23 hours in the unit, longer in hospital
    (2, "p", 400, 7, 1800, 14_400, "Alive", "Expired"),  # dies on a ward after the unit, in the second hospital stay
    (3, "q", 0, 7, 1380, 1380, "Alive", "Alive"),  # 23 hours in hospital
    (4, "q", 500, 8, 1441, 1500, "Alive", "Alive"),  # of a second hospital
    (5, "r", 0, 9, 1440, 1440, "Expired", "Expired"),  # at 24 hours exactly
    (6, "s", 0, 9, 2000, 3000, "Alive", ""),  # of unknown end
    (7, "t", 0, 9, 1000, 3000, "Expired", "Expired"),  # dead by one record, in hospital by the other
    (8, "u", 0, 10, 2000, 3000, "Expired", "Expired"),
    (9, "v", 0, 10, 30, 3000, "Alive", "Alive"),  # two unit stays that start together
    (10, "v", 0, 10, 2000, 3000, "Alive", "Alive"),
)
APACHE = ((1, "IV", 0.9), (1, "IVa", 0.1), (2, "IVa", 0.2), (4, "IVa", -1), (8, "IV", 0.5), (10, "IVa", 0.3))


@pytest.fixture
def source(tmp_path):
    """Tables of eICU, the admissions of the MEDS data set that goes with them, and that data set."""
    head = "patientunitstayid,uniquepid,hospitalid,unitdischargeoffset,hospitaldischargeoffset,unitdischargestatus,"
    rows = [f"{stay},{name},{','.join(map(str, rest))}" for stay, name, _, *rest in STAYS]
    results = [f"{stay},{version},{value}" for stay, version, value in APACHE]
    tables = {"patient": "\n".join([f"{head}hospitaldischargestatus", *rows])}
    tables["apachePatientResult"] = "\n".join(["patientunitstayid,apacheversion,predictedhospitalmortality", *results])
    meds = MedsFolder(tmp_path)
    start = datetime.datetime(2014, 1, 1)
    events = [(ord(name), start + day * DAY, "UNIT_ADMISSION//MICU", str(stay)) for stay, name, day, *_ in STAYS]
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "visit_id": pl.String}
    table = pl.DataFrame(events, schema, orient="row").with_columns(numeric_value=pl.lit(None, pl.Float32))
    meds.shard("0", table.sort("subject_id", "time"))
    return write_csv(tmp_path / "csv", tables), eicu_stays.read_admissions(meds.root), meds.root


def test_stays_are_labelled_by_their_own_hospital_stay_and_carry_their_own_prediction(source):
    folder, admissions, _ = source
    found = eicu_stays.read_stays(folder, admissions)
    start = datetime.datetime(2014, 1, 2)
    assert found.select("subject_id", "prediction_time", "boolean_value", "in_unit", "apache", "hospital").rows() == [
        (ord("p"), start, False, False, 0.1, "7"),
        (ord("p"), start + 400 * DAY, True, True, 0.2, "7"),
        (ord("q"), start + 500 * DAY, False, True, None, "8"),
        (ord("u"), start, True, True, None, "10"),
        (ord("v"), start, False, True, 0.3, "10"),
    ]
    shorter = eicu_stays.read_stays(folder, admissions, hours=12)
    assert shorter.height == 8 and shorter["prediction_time"].min() == start - DAY / 2
    (folder / "apachePatientResult.csv").unlink()
    assert eicu_stays.read_stays(folder, admissions)["apache"].null_count() == 5


def test_hospitals_that_share_a_patient_are_never_on_two_sides(source, tmp_path):
    groups = eicu_stays.group_hospitals(*source[:2])
    by_patient = {chr(subject): group for subject, group in groups.iter_rows()}
    assert sorted(by_patient) == sorted({stay[1] for stay in STAYS})
    assert by_patient["p"] == by_patient["q"] and len({*by_patient.values()}) == 3
    groups.write_parquet(tmp_path / "groups.parquet")
    hospitals = pl.DataFrame([(ord(stay[1]), stay[3]) for stay in STAYS], ["subject_id", "hospital"], orient="row")
    held_out = []
    for fold in range(3):
        view = folds.write_view(source[2], tmp_path / str(fold), fold, 3, tmp_path / "groups.parquet")
        rows = hospitals.join(pl.read_parquet(view / "metadata" / "subject_splits.parquet"), on="subject_id")
        sides = [set(part["hospital"]) for _, part in rows.group_by(pl.col("split") == "held_out")]
        assert len(sides) == 2 and not sides[0] & sides[1]
        held_out += rows.filter(split="held_out")["subject_id"].unique().to_list()
    assert sorted(held_out) == sorted({ord(stay[1]) for stay in STAYS})
