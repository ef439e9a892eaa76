"""OMOP: names, ancestors and values of concepts, on hand-made tables and on CSV and Parquet of one data set."""

import polars as pl
import pytest

from behrt_jax.data import events as data_events
from behrt_jax.data import sexes
from behrt_jax.sources.convert import Source, convert
from tests.sources.tiny import SHARED, convert_to, find_skipped, write_csv

pytest.importorskip("MEDS_extract")
pytestmark = pytest.mark.current_only
OMOP = {
    "PERSON": "person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth,birth_datetime,race_concept_id,"
    "ethnicity_concept_id\n1,8507,1950,4,9,1950-04-09 00:00:00,0,0\n2,8532,1960,,,,0,0\n3,8532,1970,12,1,,0,0\n",
    "DEATH": "person_id,death_date,death_datetime\n2,2020-02-03,\n9,2020-02-03,\n",
    "VISIT_OCCURRENCE": "visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_start_datetime\n"
    "7,1,9201,2010-01-02,2010-01-02 03:04:05\n",
    "CONDITION_OCCURRENCE": "person_id,condition_concept_id,condition_start_date,condition_start_datetime,"
    "visit_occurrence_id,condition_source_value,condition_source_concept_id\n"
    "1,201826,2010-01-02,,7,E11,45\n1,0,2010-01-02,,7,local,0\n1,77,2010-01-02,,,,\n1,201826,1940-01-02,,7,E11,45\n",
    "MEASUREMENT": "person_id,measurement_concept_id,measurement_date,measurement_datetime,value_as_number,"
    "value_as_concept_id,unit_concept_id,unit_source_value,visit_occurrence_id,measurement_source_value,"
    "measurement_source_concept_id\n1,3000,2010-01-02,2010-01-02T04:00:00,7.25,0,9529,kilo,7,,0\n"
    "1,3000,2010-01-02,2010-01-02T04:00:00,,4181412,0,odd,7,w,0\n",
    "CONCEPT": "concept_id,concept_name,vocabulary_id,concept_code\n8507,MALE,Gender,M\n8532,FEMALE,Gender,F\n"
    "9201,Inpatient Visit,Visit,IP\n201826,Type 2 diabetes,SNOMED,44054006\n201820,Diabetes,SNOMED,73211009\n"
    "4,Disease,SNOMED,64572001\n3000,Weight,LOINC,29463-7\n9529,kilogram,UCUM,kg\n4181412,Present,SNOMED,52101004\n"
    "45,Type 2 diabetes,ICD10CM,E11\n",
    "CONCEPT_ANCESTOR": "ancestor_concept_id,descendant_concept_id,min_levels_of_separation\n"
    "201820,201826,1\n4,201826,2\n4,201820,1\n201826,201826,0\n",
    "CONCEPT_RELATIONSHIP": "concept_id_1,concept_id_2,relationship_id,invalid_reason\n45,201826,Maps to,\n"
    "45,4,Maps to,D\n201826,201826,Maps to,\n",
}


def timed(events: pl.DataFrame) -> list[tuple]:
    rows = events.filter(pl.col("time").is_not_null(), pl.col("code") != "MEDS_BIRTH")
    rows = rows.select(pl.col("time").dt.to_string("%F %T"), "code", "numeric_value", "text_value", "unit", "visit_id")
    return rows.sort(rows.columns).rows()


def test_rows_have_the_names_values_and_units_of_concepts(tmp_path):
    conversion, events = convert_to(tmp_path / "meds", write_csv(tmp_path / "csv", OMOP), "omop")
    assert timed(events) == [
        ("2010-01-02 00:00:00", "OMOP/77", None, None, None, None),
        ("2010-01-02 00:00:00", "SNOMED/44054006", None, None, None, 7),
        ("2010-01-02 03:04:05", "Visit/IP", None, None, None, 7),
        ("2010-01-02 04:00:00", "LOINC/29463-7", None, "Present", "odd", 7),
        ("2010-01-02 04:00:00", "LOINC/29463-7", 7.25, None, "kg", 7),
        ("2020-02-03 00:00:00", "MEDS_DEATH", None, None, None, None),
    ]
    births = events.filter(pl.col("code") == "MEDS_BIRTH").select("subject_id", pl.col("time").dt.to_string("%F"))
    assert sorted(births.rows()) == [(1, "1950-04-09"), (2, "1960-01-01"), (3, "1970-12-01")]
    assert events.filter(pl.col("code") == "Gender/F").height == 2
    assert find_skipped(conversion) == {
        "person/race": {"no code": 3},
        "person/ethnicity": {"no code": 3},
        "death/death": {"patient not in person": 1},
        "condition_occurrence/condition": {"before birth": 1, "concept 0": 1},
    }


def test_codes_keep_all_their_ancestors(tmp_path):
    convert_to(tmp_path / "meds", write_csv(tmp_path / "csv", OMOP), "omop")
    parents = dict(data_events.read_codes(tmp_path / "meds", "parent_codes").iter_rows())
    names = dict(data_events.read_codes(tmp_path / "meds", "description").iter_rows())
    assert {code: found for code, found in parents.items() if found} == {
        "ICD10CM/E11": ["SNOMED/44054006"],
        "SNOMED/44054006": ["SNOMED/73211009"],
        "SNOMED/73211009": ["SNOMED/64572001"],
    }
    assert names["SNOMED/73211009"] == "Diabetes" and names["LOINC/29463-7"] == "Weight"


@pytest.mark.slow
def test_source_codes_replace_standard_concepts_by_a_flag(tmp_path):
    folder = write_csv(tmp_path / "csv", OMOP)
    conversion, events = convert_to(tmp_path / "meds", folder, "omop", source_codes=True)
    codes = events.filter(pl.col("time").is_not_null())["code"]
    assert {"ICD10CM/E11", "CONDITION_SOURCE/local", "MEASUREMENT_SOURCE/w", "Visit/IP"} < set(codes)
    assert find_skipped(conversion)["condition_occurrence/condition"] == {"before birth": 1, "no source code": 1}
    with pytest.raises(ValueError, match="--source_codes: applies to --source=omop alone"):
        convert(Source(folder, "synthea", source_codes=True), tmp_path / "other")


@pytest.mark.slow
def test_without_vocabulary_tables_codes_are_concept_ids(tmp_path):
    tables = {name: text for name, text in OMOP.items() if not name.startswith("CONCEPT")}
    _, events = convert_to(tmp_path / "meds", write_csv(tmp_path / "csv", tables), "omop")
    assert {"OMOP/201826", "OMOP/9201", "GENDER/8507"} < set(events["code"])
    assert (sexes.sex_of("GENDER/8507"), sexes.sex_of("Gender/F")) == ("M", "F")


def test_parquet_of_any_type_gives_what_csv_gives(tmp_path):
    """Ids may be floats, as pandas writes integers with gaps, and dates may be typed; names may be in either case."""
    csv, parquet = write_csv(tmp_path / "csv", OMOP), tmp_path / "parquet"
    parquet.mkdir()
    for file in csv.glob("*.csv"):
        table = pl.read_csv(file, try_parse_dates=True)
        ids = [name for name in table.columns if name.endswith("_id") and table[name].dtype == pl.Int64]
        table = table.with_columns(pl.col(ids).cast(pl.Float64)).rename(str.upper)
        table.write_parquet(parquet / f"{file.stem.lower()}.parquet")
    of_csv, events = convert_to(tmp_path / "1", csv, "omop")
    of_parquet, same = convert_to(tmp_path / "2", parquet, "omop")
    assert of_csv == of_parquet and events.equals(same)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
def test_csv_and_parquet_of_a_data_set_give_the_same_events(tmp_path):
    of_csv, events = convert_to(tmp_path / "1", SHARED / "omop54-csv-28", "omop")
    of_parquet, same = convert_to(tmp_path / "2", SHARED / "omop54-parquet-28", "omop")
    assert of_csv == of_parquet and events.equals(same)
    assert events.height == 23010 and of_csv.num_subjects == 28
    assert {count.table: count.events for count in of_csv.counts}["measurement"] == 10022
    kept = pl.col("code").str.starts_with("LOINC/") & pl.col("numeric_value").is_not_null()
    assert events.filter(kept).height > 9000 and events.filter(kept)["unit"].null_count() == 0
    assert not events["code"].str.starts_with("OMOP/").any()
