"""Conversion: specs, damaged input, resuming, and the check that every row is counted."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from behrt_jax.sources import convert as conversion
from behrt_jax.sources import counts, engine, tables
from behrt_jax.sources.convert import Source, convert, summarize
from behrt_jax.sources.engine import Workers
from tests.sources.tiny import SYNTHEA, convert_to, find_skipped, read_events, write_csv

pytest.importorskip("MEDS_extract")
pytestmark = pytest.mark.current_only
SECRET = "Ms Confidential"
SPEC = """
etl: {dataset_name: clinic, raw_dataset_version: "1"}
people:
  birth: {code: MEDS_BIRTH, time: '$born::?"%d.%m.%Y"'}
labs:
  _table: {join: {people: {key: subject_id, cols: [sex]}}}
  lab:
    code: f"LAB//{$test}//{$sex ?? 'unknown'}"
    time: '$day::?"%d.%m.%Y"'
    numeric_value: $result::?float
    visit_id: $visit
"""
CLINIC = {
    "people": "subject_id,born,sex\n1,01.02.1980,F\n2,03.04.1990,\n3,03.04.1990,M\n",
    "labs": "subject_id,test,day,result,visit\n1,Na,05.06.2020,140,7\n1,Na,05.06.2020,140,7\n2,K,06.07.2021,high,8\n"
    "2,,06.07.2021,4,8\n2,K,soon,4,8\n2,K,,4,8\n2,,,4,8\n,K,06.07.2021,4,8\n",
}


def test_plain_tables_are_converted_by_a_spec(tmp_path):
    spec = tmp_path / "clinic.yaml"
    spec.write_text(SPEC)
    found, events = convert_to(tmp_path / "meds", write_csv(tmp_path / "csv", CLINIC), spec=spec)
    columns = ["subject_id", "code", "numeric_value", "visit_id"]
    assert events.filter(events["code"] != "MEDS_BIRTH").select(columns).sort(columns).rows() == [
        (1, "LAB//Na//F", 140.0, 7),
        (2, "LAB//K//unknown", None, 8),
    ]
    skipped = {"no subject id": 1, "no code": 2, "no time": 1, "unreadable time": 1, "duplicate": 1}
    assert find_skipped(found) == {"labs/lab": skipped}
    assert json.loads((tmp_path / "meds/metadata/conversion.json").read_text())["counts"][1]["skipped"] == skipped
    assert "labs/lab" in "\n".join(summarize(found)) and "1 duplicate" in "\n".join(summarize(found))


def test_the_spec_to_copy_converts_what_it_shows(tmp_path):
    tables = {
        "people": "subject_id,born,died,sex\n1,1950-07-09,,F\n2,1960-07-09,2020-01-01,M\n3,1970-07-09,,F\n",
        "events": "subject_id,time,code,name,value,unit,visit\n1,2010-05-06 08:00:00,LAB/Na,Sodium,140,mmol/L,17\n"
        "1,2010-05-06 08:00:00,SMOKING,Smoking,never,,17\n",
    }
    spec = conversion.SPECS / "plain.yaml"
    _, events = convert_to(tmp_path / "meds", write_csv(tmp_path / "csv", tables), spec=spec)
    columns = ["code", "numeric_value", "text_value", "unit", "visit_id"]
    assert events.filter(pl.col("visit_id").is_not_null()).select(columns).sort("code").rows() == [
        ("LAB/Na", 140.0, None, "mmol/L", 17),
        ("SMOKING", None, "never", None, 17),
    ]
    assert events["code"].to_list().count("MEDS_DEATH") == 1


def test_the_spec_of_the_docs_is_valid(tmp_path):
    docs = Path(__file__).parents[2] / "docs" / "data.md"
    (tmp_path / "spec.yaml").write_text(docs.read_text().partition("```yaml\n")[2].partition("```")[0])
    assert engine.load_spec(tmp_path / "spec.yaml").table_prefixes == ["people", "labs"]


def damage(folder, name, content):
    (folder / "conditions.csv").unlink()
    (folder / name).write_bytes(content)


ROW = b"START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION\n2010-05-06,,a,e1,1,Ms Confidential\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("conditions.csv", b"", "the file is empty"),
        ("conditions.csv", b"START,STOP,ENCOUNTER,CODE\n2010-05-06,,e1,1\n", "column 'patient' is missing"),
        ("conditions.csv", b"PATIENT,CODE\na,1\n", "column 'start' or 'date' is missing"),
        ("conditions.csv", ROW + b'2010-05-06,,a,e1,1,"Ms Confidential\n', "a quote is not closed"),
        ("conditions.csv", ROW + b"2010-05-06,,a,e1,1,Ms Confidential,1,2,3\n", "more fields than the header"),
        ("conditions.csv", ROW + "2010-05-06,,a,e1,1,Ms Confidential é\n".encode("latin-1"), "not UTF-8"),
        ("conditions.csv.gz", gzip.compress(ROW * 100)[:-20], "ends early"),
        ("encounters.csv.gz", gzip.compress(ROW), "are both the table 'encounters'"),
    ],
)
def test_a_damaged_table_is_named_in_one_line_without_its_values(tmp_path, name, content, message):
    folder = write_csv(tmp_path / "csv", SYNTHEA)
    damage(folder, name, content)
    with pytest.raises(ValueError, match=message) as caught:
        convert(Source(folder, "synthea"), tmp_path / "meds")
    assert name in str(caught.value) and "\n" not in str(caught.value) and SECRET not in str(caught.value)
    assert not (tmp_path / "meds" / "data").exists()


@pytest.mark.slow
def test_a_byte_order_mark_and_compression_change_nothing(tmp_path):
    folder = write_csv(tmp_path / "csv", SYNTHEA)
    plain, events = convert_to(tmp_path / "plain", folder, "synthea")
    damage(folder, "conditions.csv.gz", gzip.compress(b"\xef\xbb\xbf" + SYNTHEA["conditions"].encode()))
    packed, same = convert_to(tmp_path / "packed", folder, "synthea")
    assert packed == plain and events.equals(same)


def test_a_stopped_conversion_resumes_after_its_last_stage(tmp_path):
    folder, output = write_csv(tmp_path / "csv", SYNTHEA), tmp_path / "meds"
    whole, events = convert_to(tmp_path / "whole", folder, "synthea")

    def stop(stages):
        yield from stages[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(Source(folder, "synthea"), output, progress=stop)
    seen = []
    assert convert(Source(folder, "synthea"), output, progress=lambda stages: seen.extend(stages) or stages) == whole
    assert seen[0] == "extract_code_metadata" and not (output / conversion.WORK).exists()
    with pytest.raises(ValueError, match="holds a data set already"):
        convert(Source(folder, "synthea"), output)


def test_a_stopped_conversion_of_other_tables_is_not_resumed(tmp_path):
    folder, output = write_csv(tmp_path / "csv", SYNTHEA), tmp_path / "meds"

    def stop(stages):
        yield stages[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(Source(folder, "synthea"), output, progress=stop)
    with (folder / "supplies.csv").open("a") as file:
        file.write("2010-05-06,a,e1,1,Mask,2\n")
    with pytest.raises(ValueError, match="left by a conversion of other tables"):
        convert(Source(folder, "synthea"), output)


@pytest.mark.slow
def test_tables_can_be_corrected_after_an_error(tmp_path):
    folder, output = write_csv(tmp_path / "csv", SYNTHEA), tmp_path / "meds"
    supplies = (folder / "supplies.csv").read_text()
    (folder / "supplies.csv").write_text("")
    with pytest.raises(ValueError, match="the file is empty"):
        convert(Source(folder, "synthea"), output)
    (folder / "supplies.csv").write_text(supplies)
    assert convert(Source(folder, "synthea"), output).num_subjects == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [(f'4,"{SECRET}\n', "a quote is not closed"), (f"4,{SECRET},F,1,2,3\n", "more fields than the header")],
)
def test_a_damaged_table_of_a_spec_is_named_without_its_values(tmp_path, line, message):
    spec = tmp_path / "clinic.yaml"
    spec.write_text(SPEC)
    folder = write_csv(tmp_path / "csv", CLINIC | {"people": CLINIC["people"] + line})
    with pytest.raises(ValueError, match=rf"people.csv: not a readable CSV file \(.*{message}") as caught:
        convert(Source(folder, spec=spec), tmp_path / "meds")
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_several_jobs_give_what_one_process_gives(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folder = write_csv(tmp_path / "csv", SYNTHEA)
    one, events = convert_to(tmp_path / "one", folder, "synthea")
    assert convert(Source(folder, "synthea"), tmp_path / "two", Workers(2)) == one
    assert read_events(tmp_path / "two").equals(events)


def test_a_missing_launcher_names_the_command(monkeypatch):
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    engine.check_launcher(Workers(1, "submitit_slurm"))
    with pytest.raises(ValueError, match="pip install hydra-submitit-launcher"):
        engine.check_launcher(Workers(2, "submitit_slurm"))


def test_wrong_specs_and_sources_are_named(tmp_path):
    folder, spec = write_csv(tmp_path / "csv", CLINIC), tmp_path / "clinic.yaml"
    spec.write_text(SPEC.replace("labs:", "vitals:"))
    with pytest.raises(ValueError, match="convert_to_parquet: No raw source file found for prefix 'vitals'"):
        convert(Source(folder, spec=spec), tmp_path / "meds")
    spec.write_text(SPEC.replace("$result", "$outcome"))
    with pytest.raises(ValueError, match=r"labs.csv.* 'outcome'|'outcome'.*labs.csv|\['outcome'\]"):
        convert(Source(folder, spec=spec), tmp_path / "third")
    spec.write_text(SPEC.replace("$test", "$test {"))
    with pytest.raises(ValueError, match="clinic.yaml: not a valid spec"):
        convert(Source(folder, spec=spec), tmp_path / "other")
    with pytest.raises(ValueError, match="no such spec"):
        convert(Source(folder, spec=tmp_path / "none.yaml"), tmp_path / "other")
    with pytest.raises(ValueError, match="no such directory"):
        convert(Source(tmp_path / "none", "synthea"), tmp_path / "other")
    with pytest.raises(ValueError, match="found no table 'patients'"):
        convert(Source(folder, "synthea"), tmp_path / "other")
    assert not (tmp_path / "other" / "data").exists()


def test_values_that_do_not_fit_a_strict_spec_stay_out_of_the_error(tmp_path):
    spec = tmp_path / "clinic.yaml"
    spec.write_text(SPEC.replace("::?", "::"))
    folder = write_csv(tmp_path / "csv", CLINIC | {"people": CLINIC["people"] + f"4,{SECRET},F\n"})
    with pytest.raises(ValueError, match="MEDS-Extract failed in convert_to_MEDS_events") as caught:
        convert(Source(folder, spec=spec), tmp_path / "meds")
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_without_a_reason_is_an_error():
    whole = counts.EventCounts("labs", "lab", 5, {"no time": 2}, 3)
    counts.check([whole])
    with pytest.raises(ValueError, match="labs/lab: 5 rows, but 2 events and 2 rows skipped"):
        counts.check([whole, whole._replace(events=2)])


def test_a_missing_installation_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "MEDS_extract.config", None)
    with pytest.raises(ValueError, match="install it by: pip install -r requirements-sources.txt"):
        engine.load_spec(tmp_path / "any.yaml")


def test_times_are_read_in_every_form():
    texts = ["2020-03-04", "2020-03-04T05:06:07Z", "2020-03-04 05:06", "2020-03-04T05:06:07.25", "9999-12-31", "4.3.20"]
    times = pl.DataFrame({"text": texts}).select(time=tables.parse_time(pl.col("text")).dt.to_string("%F %T%.3f"))
    assert times["time"].to_list() == [
        "2020-03-04 00:00:00.000",
        "2020-03-04 05:06:07.000",
        "2020-03-04 05:06:00.000",
        "2020-03-04 05:06:07.250",
        None,
        None,
    ]


def test_fewer_patients_than_splits_are_said_to_be(tmp_path):
    tables = {**SYNTHEA, "patients": "".join(SYNTHEA["patients"].splitlines(keepends=True)[:3])}
    with pytest.raises(ValueError, match="fewer patients with events than splits"):
        convert_to(tmp_path / "meds", write_csv(tmp_path / "csv", tables), "synthea")
