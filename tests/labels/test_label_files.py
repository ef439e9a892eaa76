import datetime
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from behrt_jax.labels.labels import read_labels
from tests import tiny
from tests.data.handmade import SUBJECTS, assert_clear

A, B, C = SUBJECTS[:3]
DAY = datetime.datetime(2000, 2, 1)


def csv(folder: Path, header: str, *rows: str, name: str = "x.csv") -> Path:
    (file := folder / name).parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


def parquet(folder: Path, name: str = "x.parquet", **columns) -> Path:
    (file := folder / name).parent.mkdir(parents=True, exist_ok=True)
    size = max(len(column) for column in columns.values() if isinstance(column, list | pl.Series))
    keys = {"subject_id": SUBJECTS[:size], "prediction_time": [DAY] * size}
    pl.DataFrame({**keys, **columns}).write_parquet(file)
    return file


def refused(file: Path, *parts: str) -> None:
    with pytest.raises(ValueError) as error:
        read_labels([file])
    assert_clear(error, *parts)


def read(file: Path, said: list[str] | None = None):
    with tiny.collect_messages() as messages:
        labels = read_labels([file])
    assert said is not None or not messages
    if said is not None:
        said += messages
    return labels


DATES = [
    ("2000-02-01", (2000, 2, 1)),
    ("2000/02/01", (2000, 2, 1)),
    ("2000-02-01 13:05", (2000, 2, 1, 13, 5)),
    ("2000-02-01T13:05:09", (2000, 2, 1, 13, 5, 9)),
    ("2000-02-01 13:05:09.25", (2000, 2, 1, 13, 5, 9, 250_000)),
    ("2000-02-01 13:05:09.123456789", (2000, 2, 1, 13, 5, 9, 123_456)),
]
GUESSES = ["02/01/2000", "1/2/2000", "01.02.2000", "01-02-2000", "00-02-01", "20000201", "949363200", "Feb 1, 2000"]


GUESSES += ["1 Feb 2000", "2000-2-1", "2000-13-01", "2000-02-30", "2000-02-01Z", "2000-02-01 13:05:09+01:00", "36557"]


GUESSES += ["2000-02/01", "2000-02-01 1 pm", "2000-02-01 25:00", "soon", "2000", "2000-02"]


@pytest.mark.parametrize(("text", "expected"), DATES)
def test_dates_that_can_mean_one_day_alone(tmp_path, text, expected):
    file = csv(tmp_path, "subject_id,prediction_time,event_time,event", f"{A},{text},2001-01-01,true")
    assert read(file).prediction_times[0] == np.datetime64(datetime.datetime(*expected), "us")
    file = csv(tmp_path, "subject_id,prediction_time,event_time,event", f"{A},1999-12-31,{text},true")
    after = datetime.datetime(*expected) - datetime.datetime(1999, 12, 31)
    assert read(file).days.tolist() == [after / datetime.timedelta(days=1)]


@pytest.mark.parametrize("column", ["prediction_time", "event_time"])
def test_dates_that_are_a_guess_are_refused_in_every_column(tmp_path, column):
    """US and European dates among them; other rows and the other column hold good ones. Only their form is told."""
    header = "subject_id,prediction_time,event_time,event"
    for text in GUESSES:
        row = {"prediction_time": "2000-02-01", "event_time": "2000-03-01"} | {column: f'"{text}"'}
        rows = [f"{A},2000-02-01,2000-03-01,true", f"{B},{row['prediction_time']},{row['event_time']},false"]
        for file in (csv(tmp_path, header, *rows), csv(tmp_path, header, *rows, name="folder/0.csv").parent):
            with pytest.raises(ValueError) as error:
                read_labels([file])
            parts = f".csv: column '{column}' is not an unambiguous date in 1 of 2 rows", "such as 2025-12-31"
            assert_clear(error, *parts)
            assert text not in str(error.value).partition("expected")[0].rpartition("/")[2]


def test_us_dates_were_days_of_january(tmp_path):
    """The input of the report: first days of months, written in the US way."""
    rows = [f"{A},0{month}/01/2000,{month % 2}" for month in range(1, 10)]
    refused(csv(tmp_path, "subject_id,prediction_time,integer_value", *rows), "in 9 of 9 rows (of the form 99/99/9999)")


def test_columns_of_csv_are_typed_by_all_their_rows(tmp_path):
    """Also where a value that says the type comes after thousands of others."""
    rows = [f"{A},2000-01-01 00:{i // 60:02}:{i % 60:02},{i % 2}" for i in range(2000)]
    header = "subject_id,prediction_time,integer_value"
    assert read(csv(tmp_path, header, *rows)).kind == "binary"
    assert read(csv(tmp_path, header, *rows, f"{B},2000-01-01,7")).names == ("0", "1", "7")
    refused(csv(tmp_path, header, *rows, f"{B},2000-01-01,high"), "'integer_value' is String; expected an integer")
    refused(csv(tmp_path, header, *rows, "x,2000-01-01,1"), "'subject_id' is String; expected int64")
    refused(csv(tmp_path, header, *rows, f"{A}.0,2000-01-01,1"), "'subject_id' is Float64; expected int64")
    refused(csv(tmp_path, header, *rows, "99999999999999999999,2000-01-01,1"), "'subject_id' is String")


def test_csv_as_other_programs_write_it(tmp_path):
    """R: NA and TRUE; pandas: True and empty; a byte-order mark, quotes, spaces, blank lines and Windows' lines."""
    header = "subject_id,prediction_time,boolean_value,integer_value,float_value,categorical_value"
    for cells in ("TRUE,NA,NA,NA", "True,,,", "true,nan,NaN,None", " true , null ,,"):
        rows = [f"{A},2000-02-01,{cells}", f"{B}, 2000-02-01 ,{cells.lower().replace('true', 'false')}"]
        assert read(csv(tmp_path, header, *rows)).values.tolist() == [[1], [0]]
    file = csv(tmp_path, "\ufeff" + header, "", rows[0], "", rows[1], "")
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert read(file).values.tolist() == [[1], [0]]
    rows = [f"{A},2000-02-01,1,'a, b'".replace("'", '"'), f"{B},2000-02-01,2,c"]
    assert read(csv(tmp_path, "subject_id,prediction_time,comment,categorical_value", *rows)).names == ("a, b", "c")


def test_csv_that_is_cut_off_or_no_table(tmp_path):
    header = "subject_id,prediction_time,event_time,event"
    whole = [f"{A},2000-02-01,2000-03-01,death", f"{B},2000-02-01,2000-03-01,"]
    refused(csv(tmp_path, header, *whole, f"{C},2000-02-01,2000-04-01"), "1 of 3 rows do not have 4 cells")
    refused(csv(tmp_path, header, *whole, f"{C},2000-02-01,2000-04-01,a,b"), "1 of 3 rows do not have 4 cells")
    refused(csv(tmp_path, header, *whole, f'{C},2000-02-01,2000-04-01,"dea'), "not a readable .csv file")
    refused(csv(tmp_path, whole[0], whole[1]), "the first line does not name columns", "subject_id")
    refused(csv(tmp_path, header.replace(",", ";"), *whole), "the first line does not name columns")
    refused(csv(tmp_path, header + ",event", *(f"{row},x" for row in whole)), "column 'event' is there more than once")
    refused(csv(tmp_path, header), "holds no labels")
    for content, part in ((b"", "is empty"), (b"\xff\xfea\x00", "not UTF-8"), (b"subject_id\xe9,x\n", "not UTF-8")):
        (tmp_path / "x.csv").write_bytes(content)
        refused(tmp_path / "x.csv", part)


@pytest.mark.parametrize("cause", ["", " ", "NA", "nan", "None", "null"])
def test_an_empty_cause_is_censoring_in_csv_and_parquet(tmp_path, cause):
    said = []
    rows = [f"{A},2000-02-01,2000-03-01,death", f"{B},2000-02-01,2000-04-01,{cause}"]
    found = [read(csv(tmp_path, "subject_id,prediction_time,event_time,event", *rows), said)]
    ends = [datetime.datetime(2000, 3, 1), datetime.datetime(2000, 4, 1)]
    for kind in (pl.String, pl.Categorical):
        events = pl.Series(["death", cause], dtype=kind)
        found.append(read(parquet(tmp_path, event_time=ends, event=events), said))
    for labels in found:
        assert labels.names == ("death",) and labels.events.tolist() == [1, 0] and labels.days.tolist() == [29, 60]
    assert len(said) == 3 * bool(cause.strip()) and all("in 1 rows; read as censored" in line for line in said)


def test_events_without_any_cause_are_all_censored(tmp_path):
    rows = [f"{A},2000-02-01,2000-03-01,", f"{B},2000-02-01,2000-04-01,"]
    ends = [datetime.datetime(2000, 3, 1), datetime.datetime(2000, 4, 1)]
    found = [read(csv(tmp_path, "subject_id,prediction_time,event_time,event", *rows))]
    found += [
        read(parquet(tmp_path, event_time=ends, event=pl.Series([None, None], dtype=kind)))
        for kind in (pl.Null, pl.String)
    ]
    for labels in found:
        assert (labels.kind, labels.names, labels.events.tolist()) == ("survival", (), [0, 0])


def test_events_as_text(tmp_path):
    """True and false are no causes; numbers and words of both kinds say nothing for certain."""
    ends = [datetime.datetime(2000, 3, 1)] * 3
    labels = read(parquet(tmp_path, event_time=ends, event=["true", "False", "TRUE"]))
    assert labels.names == ("event",) and labels.events.tolist() == [1, 0, 1]
    refused(parquet(tmp_path, event_time=ends, event=["0", "1", "0"]), "'event' is text that holds numbers")
    refused(parquet(tmp_path, event_time=ends, event=["true", "death", ""]), "'event' is text that holds true or false")
    refused(parquet(tmp_path, event_time=ends, event=["true", "", "false"]), "'event' is null or NaN in 1 of 3 rows")
    rows = [f"{A},2000-02-{i % 28 + 1:02} 00:{i:02},2000-05-01,P{i}" for i in range(51)]
    file = csv(tmp_path, "subject_id,prediction_time,event_time,event", *rows)
    refused(file, "'event' names 51 causes; expected at most 50")


def test_columns_that_say_nothing_are_not_read(tmp_path):
    """NaN, empty text and nulls of no type beside the one column of values that is in use."""
    nothing = {
        "float_value": [float("nan")] * 2,
        "categorical_value": ["", " "],
        "integer_value": pl.Series([None] * 2),
    }
    labels = read(parquet(tmp_path, boolean_value=[True, False], **nothing))
    assert labels.kind == "binary" and labels.values.tolist() == [[1], [0]]
    refused(parquet(tmp_path, categorical_value=["home", ""]), "'categorical_value' is null or NaN in 1 of 2 rows")
    labels = read(parquet(tmp_path, categorical_value=["none", "mild"]))  # none is a class beside others
    assert labels.names == ("mild", "none")
    for name in ("subject_id", "prediction_time", "boolean_value"):
        columns = {"boolean_value": [True, False], name: pl.Series([None, None])}
        expected = "0 columns of labels" if name == "boolean_value" else f"'{name}' is null or NaN in 2 of 2 rows"
        refused(parquet(tmp_path, **columns), expected)


def test_shards_that_are_empty_or_of_no_type(tmp_path):
    """Nothing is lost by a shard without a row, whatever its columns are, or by a column without a value."""
    folder = tmp_path / "labels"
    both = {"boolean_value": [True, False], "integer_value": pl.Series([None, None])}
    parquet(folder, "1.parquet", **both)
    none = pl.DataFrame({"subject_id": [], "prediction_time": [], "boolean_value": []}, schema_overrides={})
    none.write_parquet(folder / "0.parquet")
    none.select(pl.all().cast(pl.String)).write_parquet(folder / "2.parquet")
    none.select("subject_id").write_parquet(folder / "3.parquet")
    pl.DataFrame().write_parquet(folder / "4.parquet")
    assert read(folder).values.tolist() == [[1], [0]]
    text = tmp_path / "text"
    header = "subject_id,prediction_time,event_time,event"
    csv(text, header, name="0.csv")
    csv(text, header, f"{A},2000-02-01,2000-03-01,", name="1.csv")
    csv(text, header, f"{B},2000-02-01,2000-03-01,death", name="2.csv")
    labels = read(text)
    assert labels.names == ("death",) and labels.events.tolist() == [0, 1]
    for file in (folder / "1.parquet", text / "1.csv", text / "2.csv"):
        file.unlink()
    refused(folder, "holds no labels"), refused(text, "holds no labels")
    (folder / "5.parquet").write_bytes(b"")
    refused(folder, "5.parquet: not a readable")


def test_shards_that_differ(tmp_path):
    """Joined, boolean and text would make the causes true and false, and a lost column would censor."""
    end = [datetime.datetime(2000, 3, 1)]
    folder = tmp_path / "labels"
    parquet(folder, "0.parquet", event_time=end, event=["death"])
    other = parquet(folder, "1.parquet", event_time=end, event=[True])
    refused(folder, "1.parquet: column 'event' is Boolean, but String in other shards of")
    pl.read_parquet(other).drop("event").write_parquet(other)
    refused(folder, "1.parquet: column 'event', which other shards have, is missing (found subject_id, ")
    pl.DataFrame({"notes": ["x"]}).write_parquet(other)
    refused(folder, "1.parquet: column 'subject_id', which other shards have, is missing (found notes)")
    pl.DataFrame({"a\nb": ["x"]}).write_parquet(other)
    refused(folder, "1.parquet: column 'subject_id', which other shards have, is missing (found a b)")
    refused(other, "'subject_id' is missing (found a b)")
    binary = pl.Series([None], dtype=pl.Binary)  # a type that goes with no other, but of no value
    parquet(folder, "1.parquet", event_time=end, event=["death"], boolean_value=binary, log_hazard=binary)
    assert len(read_labels([other])) == 1
    with pytest.raises(ValueError, match="'event_time' is Datetime.*UTC"):
        utc = pl.Series(end).dt.replace_time_zone("UTC")
        read(parquet(folder, "1.parquet", event_time=utc, event=["death"]).parent)


def test_folders_of_csv_shards(tmp_path):
    """As Spark writes them, in a folder that is named like a file; beside Parquet, CSV is said not to be read."""
    folder, said = tmp_path / "labels.csv", []
    for number, subject in enumerate((A, B)):
        row = f"{subject},2000-02-01,{number}"
        csv(folder, "subject_id,prediction_time,integer_value", row, name=f"part-{number}.csv")
    (folder / "_SUCCESS").touch()
    labels = read(folder, said)
    assert labels.subject_ids.tolist() == [A, B] and labels.names == ("labels",)
    parquet(folder, "part-2.parquet", integer_value=[1, 0, 1])
    assert len(read(folder, said)) == 3
    assert ["0 files that are not *.csv" in said[0], "2 files that are not *.parquet were not read" in said[1]] == [
        True
    ] * 2


def test_times_that_stand_for_none(tmp_path):
    ends = [datetime.datetime(2000, 3, 1), datetime.datetime(9999, 12, 31)]
    refused(
        parquet(tmp_path, event_time=ends, event=[True, False]), "'event_time' is not in the years 1 to 6,000 in 1 of 2"
    )
    beyond = pl.Series([0, 2**62]).cast(pl.Datetime("ms"))  # in microseconds they overflow
    refused(
        parquet(tmp_path, event_time=beyond, event=[True, False]), "'event_time' is not in the years 1 to 6,000 in 1"
    )
    rows = [f"{A},0000-01-01,1", f"{B},2000-01-01,0"]
    refused(csv(tmp_path, "subject_id,prediction_time,integer_value", *rows), "'prediction_time' is not in the years")


def test_the_truth_of_simulated_outcomes_is_numbers(tmp_path):
    ends = [datetime.datetime(2000, 3, 1)] * 2
    truth = {name: ["high", "low"] for name in ("log_hazard", "weibull_scale", "weibull_shape")}
    refused(
        parquet(tmp_path, event_time=ends, event=[True, False], **truth), "'log_hazard' is String; expected a number"
    )


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "neither a file nor a folder")
