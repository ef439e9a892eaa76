"""Synthea CSV: which rows become which events, on hand-made tables and on patients of the bundled data."""

import datetime
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from meds import CodeMetadataSchema, DataSchema, SubjectSplitSchema

from behrt_jax.data import events as data_events
from tests.sources.tiny import SHARED, SYNTHEA, convert_to, find_skipped, write_csv

pytest.importorskip("MEDS_extract")
pytestmark = pytest.mark.current_only
BUNDLED = Path(__file__).parents[2] / "data" / "synthea-1151"
DAY_TABLES = ("CONDITION", "ALLERGY", "CAREPLAN", "MEDS_BIRTH", "MEDS_DEATH")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthea")
    return folder / "meds", *convert_to(folder / "meds", write_csv(folder / "csv", SYNTHEA), "synthea")


def test_rows_become_events(converted):
    rows = converted[2].filter(pl.col("code") != "MEDS_BIRTH", pl.col("time").is_not_null())
    rows = rows.select(pl.col("time").dt.to_string("%F %R"), "code", "numeric_value", "text_value", "visit_id")
    assert sorted(rows.rows(), key=str) == [
        ("2010-05-06 00:00", "ALLERGY//RXNORM//1191", None, None, "e1"),
        ("2010-05-06 00:00", "CONDITION//SNOMED//44054006", None, None, "e1"),
        ("2010-05-06 08:00", "ENCOUNTER//wellness", None, None, "e1"),
        ("2010-05-06 08:00", "IMMUNIZATION//CVX//08", None, None, "e1"),
        ("2010-05-06 08:00", "OBSERVATION//LOINC//72166-2", None, "Never smoker", "e1"),
        ("2010-05-06 08:00", "OBSERVATION//LOINC//8302-2", 165.5, None, "e1"),
        ("2010-05-06 08:00", "OBSERVATION//LOINC//8302-2", 166.0, None, "e1"),
        ("2019-12-31 00:00", "CONDITION//SNOMED//22298006", None, None, "e2"),
        ("2019-12-31 10:30", "ENCOUNTER//inpatient", None, None, "e2"),
        ("2020-01-02 00:00", "MEDS_DEATH", None, None, None),
    ]
    static = converted[2].filter(pl.col("time").is_null())["code"].value_counts()
    assert dict(static.iter_rows())["GENDER//F"] == 2
    births = converted[2].filter(pl.col("code") == "MEDS_BIRTH")["time"]
    assert set(births) == {datetime.datetime(*day) for day in ((1990, 3, 1), (1950, 7, 9), (2001, 1, 1))}


def test_every_row_that_makes_no_event_is_counted(converted):
    conversion = converted[1]
    person = {"unreadable time": 1}
    assert find_skipped(conversion) == {
        **{f"patients/{kind}": person for kind in ("birth", "gender", "race", "ethnicity")},
        "patients/death": {"unreadable time": 1, "no time": 2},
        "encounters/encounter": {"patient not in patients": 1},
        "conditions/condition": {"no patient id": 1, "no time": 1, "unreadable time": 1, "before birth": 1},
        "observations/observation": {"no code": 1, "duplicate": 1},
    }
    rows = {count.table: count.rows for count in conversion.counts}
    assert rows == {name: text.count("\n") - 1 for name, text in SYNTHEA.items() if name != "supplies"}
    assert conversion.empty == ["supplies"]
    assert conversion.missing == ["procedures", "medications", "careplans", "devices", "imaging_studies"]
    assert conversion.num_subjects == 3


def test_the_output_fits_the_schemas(converted):
    output = converted[0]
    for shard in data_events.find_shards(output):
        DataSchema.validate(pq.read_table(shard))
        data_events.read_shard(shard, ("visit_id",))
    CodeMetadataSchema.validate(pq.read_table(output / "metadata/codes.parquet"))
    SubjectSplitSchema.validate(pq.read_table(output / "metadata/subject_splits.parquet"))
    codes = data_events.read_codes(output, "description")
    assert dict(codes.iter_rows())["CONDITION//SNOMED//44054006"] == "Diabetes, type 2"
    parents = dict(data_events.read_codes(output, "parent_codes").iter_rows())
    assert parents["CONDITION//SNOMED//44054006"] == ["SNOMED/44054006"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
def test_the_bundled_patients_give_the_events_of_the_bundled_copy(tmp_path):
    """The copy also holds what the CSV files lack: imaging, observations without a value, and more exact times.

    Both sides are compared without repeated rows, which MEDS-Extract removes.
    """
    conversion, found = convert_to(tmp_path / "meds", SHARED / "synthea-csv-40", "synthea")
    bundled = pl.concat([pl.read_parquet(shard) for shard in data_events.find_shards(BUNDLED)])
    bundled = bundled.filter(pl.col("subject_id") <= 40)
    kind = pl.col("code").str.split("//").list.first()
    no_value = (kind == "OBSERVATION") & pl.col("numeric_value").is_null() & pl.col("text_value").is_null()
    assert bundled.select(no_value.sum(), imaging=(kind == "IMAGING").sum()).row(0) == (3761, 279)
    day = pl.col("time").dt.truncate("1d")
    bundled = bundled.filter(~no_value, kind != "IMAGING").with_columns(
        time=pl.when(kind.is_in(DAY_TABLES)).then(day).otherwise(pl.col("time").dt.truncate("1s"))
    )
    ids = {f"syn-{number:06}": number + 1 for number in range(40)}
    hashes = pl.DataFrame({"id": list(ids)}).select(pl.col("id").hash().reinterpret(signed=True))["id"]
    number = pl.col("subject_id").replace_strict(dict(zip(hashes, ids.values(), strict=True)), return_dtype=pl.Int64)
    visit = pl.col("visit_id").str.extract(r"-(\d+)$").cast(pl.Int64)
    named = pl.col("visit_id").is_null() | (pl.col("visit_id").str.extract(r"^syn-(\d+)-").cast(pl.Int64) + 1 == number)
    assert found.select(named.all()).item()
    found = found.with_columns(subject_id=number, visit_id=visit).select(bundled.columns)
    assert found.height == found.unique().height == 65006
    assert sum(count.events for count in conversion.counts) == 65006
    differing = bundled.unique().join(found, on=bundled.columns, how="full", nulls_equal=True)
    differing = differing.filter(pl.col("subject_id").is_null() | pl.col("subject_id_right").is_null())
    assert differing.height == 0


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
def test_tables_of_the_java_program_are_converted(tmp_path):
    conversion, found = convert_to(tmp_path / "meds", SHARED / "synthea-csv-107", "synthea")
    assert found.height == 6610 and conversion.num_subjects == 107
    assert find_skipped(conversion) == {"patients/death": {"no time": 100}}
    assert conversion.empty == ["allergies", "supplies", "imaging_studies"]
    visits = found.filter(pl.col("code").str.starts_with("ENCOUNTER"))["visit_id"]
    assert visits.n_unique() == 1274
