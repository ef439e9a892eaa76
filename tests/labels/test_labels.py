import dataclasses
import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from behrt_jax.labels.labels import Labels, check_learnable, match_subjects, read_labels, temporal_split
from tests.data.handmade import START, SUBJECTS, assert_clear

A, B, C = SUBJECTS[:3]


def day(number: float) -> datetime.datetime:
    return START + datetime.timedelta(days=number)


def days(*numbers: float) -> np.ndarray:
    return np.array([day(number) for number in numbers], "datetime64[us]")


def write(folder: Path, name: str, rows: list[tuple], column: str = "boolean_value", **schema) -> Path:
    """Writes `(subject, days since 2000, value)`."""
    kinds = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), **({column: schema.get(column)})}
    table = pl.DataFrame([(one, day(at), value) for one, at, value in rows], schema=kinds, orient="row")
    table.write_parquet(file := folder / f"{name}.parquet")
    return file


def write_survival(folder: Path, rows: list[tuple], kind=pl.Boolean) -> Path:
    """Writes `(subject, day, day of the event, event)`."""
    columns = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "event_time": pl.Datetime("us")}
    table = [(one, day(at), day(end), event) for one, at, end, event in rows]
    pl.DataFrame(table, schema={**columns, "event": kind}, orient="row").write_parquet(file := folder / "lives.parquet")
    return file


ROWS = [(A, 1, True), (A, 5, False), (B, 2, True)]


@pytest.mark.usefixtures("no_messages")
def test_binary_labels(tmp_path):
    labels = read_labels([write(tmp_path, "stroke", ROWS)])
    assert (labels.kind, labels.names, len(labels)) == ("binary", ("stroke",), 3)
    assert labels.values.tolist() == [[1], [0], [1]] and labels.values.dtype == np.float32
    assert labels.subject_ids.tolist() == [A, A, B] and labels.subject_ids.dtype == np.int64
    assert labels.prediction_times.dtype == np.dtype("datetime64[us]")
    assert (labels.prediction_times == days(1, 5, 2)).all()
    assert np.isnan(labels.days).all() and not labels.events.any()


@pytest.mark.parametrize(
    ("column", "values", "kind", "names", "expected"),
    [
        ("integer_value", (1, 0, 1), "binary", ("file",), (1, 0, 1)),
        ("float_value", (1.0, 0.0, 1.0), "binary", ("file",), (1, 0, 1)),
        ("integer_value", (30, 7, 30), "multiclass", ("7", "30"), (1, 0, 1)),
        ("integer_value", (0, 1, 2), "multiclass", ("0", "1", "2"), (0, 1, 2)),
        ("categorical_value", ("home", "died", "home"), "multiclass", ("died", "home"), (1, 0, 1)),
    ],
)
@pytest.mark.usefixtures("no_messages")
def test_other_columns(tmp_path, column, values, kind, names, expected):
    rows = [(*row[:2], value) for row, value in zip(ROWS, values, strict=True)]
    labels = read_labels([write(tmp_path, "file", rows, column)])
    assert (labels.kind, labels.names) == (kind, names)
    assert labels.values[:, 0].tolist() == list(expected)


@pytest.mark.usefixtures("no_messages")
def test_shards_as_aces_writes_them(tmp_path):
    """All columns of values, null but one; a shard without a label; others' columns."""
    full = {"integer_value": pl.Int64, "float_value": pl.Float32, "categorical_value": pl.String}
    empties = [pl.lit(None, kind).alias(name) for name, kind in full.items()]
    table = pl.read_parquet(write(tmp_path, "all", ROWS)).with_columns(*empties, trigger=pl.col("prediction_time"))
    for name, part in (("train/0", table[:2]), ("train/1", table[:0]), ("held_out/0", table[2:])):
        file = tmp_path / "readmission" / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_parquet(file)
    labels = read_labels([tmp_path / "readmission"])
    assert (labels.kind, labels.names) == ("binary", ("readmission",))
    assert labels.values[:, 0].tolist() == [1, 0, 1] and labels.subject_ids.tolist() == [A, A, B]


def test_csv(tmp_path, messages):
    (file := tmp_path / "seen.csv").write_text(
        f"subject_id,prediction_time,boolean_value\n{B},2000-01-03 00:00:00,true\n{A},2000-01-02 12:00:00,false\n"
    )
    labels = read_labels([file])
    assert labels.values[:, 0].tolist() == [0, 1] and (labels.prediction_times == days(1.5, 2)).all()
    file.write_text(
        f"subject_id,prediction_time,event_time,event\n{A},2000-01-02,2000-01-12,death\n{B},2000-01-02,2000-01-05,\n"
    )
    messages.clear()
    labels = read_labels([file])
    assert not messages
    assert labels.names == ("death",) and labels.events.tolist() == [1, 0] and labels.days.tolist() == [10, 3]


def test_several_files_are_joined_and_what_is_lost_is_counted(tmp_path, messages):
    first = write(tmp_path, "stroke", [*ROWS, (C, 9, False)])
    second = write(tmp_path, "fall", [(A, 5, 1), (B, 2, 0), (A, 6, 1), (B, 3, 0), (A, 1, 0)], "integer_value")
    labels = read_labels([first, second])
    assert (labels.kind, labels.names) == ("multilabel", ("stroke", "fall"))
    assert labels.values.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert labels.subject_ids.tolist() == [A, A, B] and (labels.prediction_times == days(1, 5, 2)).all()
    assert [line for line in messages if "1 of 4 rows have no label in every other file" in line]
    assert [line for line in messages if "2 of 5 rows have no label in every other file" in line]


@pytest.mark.usefixtures("no_messages")
def test_survival_labels(tmp_path):
    labels = read_labels([write_survival(tmp_path, [(A, 1, 1.25, True), (B, 2, 12, False)])])
    assert (labels.kind, labels.names) == ("survival", ("event",))
    assert labels.days.tolist() == [0.25, 10] and labels.events.tolist() == [1, 0] and labels.values.shape == (2, 0)


@pytest.mark.usefixtures("no_messages")
def test_causes_are_numbered_by_name(tmp_path):
    rows = [(A, 1, 2, "stroke"), (A, 2, 3, None), (B, 2, 4, "death")]
    labels = read_labels([write_survival(tmp_path, rows, pl.String)])
    assert labels.names == ("death", "stroke") and labels.events.tolist() == [2, 0, 1]
    assert labels.events.dtype == np.int32
    part = labels.take(labels.events > 0)
    assert part.days.tolist() == [1, 2] and part.subject_ids.tolist() == [A, B] and part.names == labels.names


def test_unsorted_and_repeated_rows_are_counted(tmp_path, messages):
    shuffled = [ROWS[2], ROWS[1], ROWS[0], ROWS[1]]
    labels = read_labels([write(tmp_path, "stroke", shuffled)])
    assert labels.subject_ids.tolist() == [A, A, B] and labels.values[:, 0].tolist() == [1, 0, 1]
    assert len(messages) == 2 and "2 of 4 rows were out of order" in messages[0] and "1 of 4 rows repeat" in messages[1]
    assert not any(str(subject) in line for line in messages for subject in SUBJECTS)


def refused(file: Path | list[Path], *parts: str) -> None:
    with pytest.raises(ValueError) as error:
        read_labels(file if isinstance(file, list) else [file])
    assert_clear(error, *parts)


def test_contradicting_rows_are_refused(tmp_path):
    refused(write(tmp_path, "stroke", [*ROWS, (A, 1, False)]), "stroke.parquet", "2 rows share", "not its label")
    lives = write_survival(tmp_path, [(A, 1, 5, True), (A, 1, 6, True), (B, 1, 2, False)])
    refused(lives, "2 rows share")


def test_holes_are_refused(tmp_path):
    refused(write(tmp_path, "x", [*ROWS, (C, 1, None)]), "'boolean_value' is null or NaN in 1 of 4 rows")
    rows = [(A, 1, 1.0), (A, 2, float("nan")), (B, 1, float("nan"))]
    refused(write(tmp_path, "x", rows, "float_value"), "'float_value' is null or NaN in 2 of 3 rows")
    table = pl.read_parquet(write(tmp_path, "x", ROWS))
    for name in ("subject_id", "prediction_time"):
        table.with_columns(pl.when(pl.col("boolean_value")).then(name).alias(name)).write_parquet(
            tmp_path / "y.parquet"
        )
        refused(tmp_path / "y.parquet", f"'{name}' is null or NaN in 1 of 3 rows")
    lives = write_survival(tmp_path, [(A, 1, 5, True), (A, 2, 6, None)])
    refused(lives, "'event' is null or NaN in 1 of 2 rows")
    ends = pl.col("event_time").filter("event").first()  # null where censored
    pl.read_parquet(lives).with_columns(event_time=pl.when("event").then(ends), event=pl.col("event") & True).fill_null(
        value=False
    ).write_parquet(lives)
    refused(lives, "'event_time' is null or NaN in 1 of 2 rows")
    for column, values in (("integer_value", (3, 4, None)), ("categorical_value", ("home", None, "died"))):
        rows = [(*row[:2], value) for row, value in zip(ROWS, values, strict=True)]
        refused(write(tmp_path, "x", rows, column), f"'{column}' is null or NaN in 1 of 3 rows")


def test_events_that_are_not_later_are_refused(tmp_path):
    rows = [(A, 1, 5, True), (A, 2, 2, False), (B, 3, 2, True)]
    refused(write_survival(tmp_path, rows), "lives.parquet", "'event_time' is not after", "2 of 3 rows")


def test_columns_of_another_kind_are_refused(tmp_path):
    table = pl.read_parquet(write(tmp_path, "x", ROWS))
    file = tmp_path / "y.parquet"

    def refuse(changed: pl.DataFrame, *parts: str) -> None:
        changed.write_parquet(file)
        refused(file, "y.parquet", *parts)

    for name in ("subject_id", "prediction_time"):
        refuse(table.drop(name), f"'{name}' is missing")
        refuse(table.cast({name: pl.String}), f"'{name}' is String")
    refuse(table.with_columns(pl.col("prediction_time").dt.replace_time_zone("UTC")), "time_zone='UTC'", "without a")
    refuse(table.drop("boolean_value"), "0 columns of labels have values", "boolean_value", "event_time")
    refuse(table.with_columns(boolean_value=None), "0 columns of labels have values")
    refuse(table.with_columns(integer_value=1), "2 columns of labels have values")
    refuse(table.cast({"boolean_value": pl.String}), "'boolean_value' is String; expected boolean")
    refuse(table.with_columns(event=pl.col("boolean_value")), "'event_time' is missing")
    refuse(table.with_columns(event_time=day(50)), "'event' is missing")
    refuse(table.with_columns(event_time=day(50), event=3), "'event' is Int32; expected boolean")
    refuse(table[:0], "holds no labels")
    numbers = table.select("subject_id", "prediction_time", float_value=pl.Series([0.0, 2.5, 1.0]))
    refuse(numbers, "'float_value' is neither 0 nor 1 in 1 of 3 rows", "regression is not supported")
    many = pl.DataFrame({"subject_id": A, "prediction_time": [day(i) for i in range(60)], "integer_value": range(60)})
    refuse(many, "60 distinct values", "at most 50")


def test_files_that_are_none(tmp_path):
    refused(tmp_path / "none.parquet", "none.parquet", "no such file", "experiments.labels")
    (tmp_path / "broken.parquet").write_text("not parquet")
    refused(tmp_path / "broken.parquet", "broken.parquet", "not a readable")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no *.parquet or *.csv file in this folder")
    with pytest.raises(ValueError, match="no file is named"):
        read_labels([])


def test_files_that_do_not_go_together(tmp_path):
    binary, classes = write(tmp_path, "a", ROWS), write(tmp_path, "b", [(A, 1, 5), (A, 5, 7)], "integer_value")
    refused([binary, classes], "b.parquet", "multiclass")
    (tmp_path / "other").mkdir()
    refused([binary, write(tmp_path / "other", "a", ROWS)], "two of the 2 files have one name")
    refused([binary, write(tmp_path, "c", [(C, 1, True)])], "no subject and prediction time is in all 2 files")


def made(kind: str, names: tuple[str, ...], subjects=(), times=(), values=None, lasting=None, events=None) -> Labels:
    size = len(subjects)
    return Labels(
        kind=kind,
        names=names,
        subject_ids=np.array(subjects, np.int64),
        prediction_times=days(*times),
        values=np.zeros((size, 0), np.float32) if values is None else np.array(values, np.float32),
        days=np.full(size, np.nan) if lasting is None else np.array(lasting, float),
        events=np.zeros(size, np.int32) if events is None else np.array(events, np.int32),
    )


@pytest.mark.parametrize(
    ("kind", "names", "outcomes", "expected"),
    [
        ("binary", ("stroke",), {"values": [[1], [1], [1]]}, "'stroke' is 1 in all 3 rows in train"),
        ("binary", ("stroke",), {"values": [[0], [0], [0]]}, "'stroke' is 0 in all 3 rows in train"),
        ("binary", ("stroke",), {"values": [[0], [1], [0]]}, None),
        ("multilabel", ("stroke", "fall"), {"values": [[0, 0], [1, 0], [1, 0]]}, "'fall' is 0 in all 3 rows in train"),
        ("multilabel", ("stroke", "fall"), {"values": [[0, 0], [1, 0], [1, 1]]}, None),
        ("multiclass", ("a", "b", "c"), {"values": [[2], [2], [2]]}, "all 3 rows in train are of one class"),
        ("multiclass", ("a", "b", "c"), {"values": [[2], [2], [0]]}, None),
        ("survival", ("event",), {"events": [0, 0, 0]}, "none of the 3 rows in train has the event 'event'"),
        ("survival", ("death", "stroke"), {"events": [1, 0, 1]}, "has the event 'stroke'"),
        ("survival", (), {"events": [0, 0, 0]}, "none of the 3 rows in train has an event"),
        ("survival", ("death", "stroke"), {"events": [1, 0, 2]}, None),
    ],
)
def test_whether_something_can_be_learned(kind, names, outcomes, expected):
    labels = made(kind, names, (A, A, B), (1, 2, 3), lasting=(1, 1, 1), **outcomes)
    if expected is None:
        return check_learnable(labels, "train")
    with pytest.raises(ValueError) as error:
        check_learnable(labels, "train")
    assert_clear(error, expected)


def test_no_labels_are_not_learned_from():
    with pytest.raises(ValueError, match="none is left in tuning"):
        check_learnable(made("binary", ("stroke",), values=np.zeros((0, 1))), "tuning")


def test_labels_out_of_a_life_are_counted():
    labels = made("binary", ("x",), (A, A, A, A, B, B, C, SUBJECTS[8]), (0, 1, 5, 10, -9, 99, 1, 1), np.zeros((8, 1)))
    lives = pl.DataFrame(
        {"subject_id": [SUBJECTS[5], A, B], "birth": [day(0), day(1), None], "death": [day(0), day(10), None]}
    )
    kept, left_out = match_subjects(labels, lives)
    assert kept.tolist() == [1, 2, 4, 5]  # at birth is in; at death is out; B's birth and death are unknown
    assert left_out == {"of unknown subjects": 2, "before birth": 1, "at or after death": 1}
    kept, left_out = match_subjects(labels, lives[:0])
    assert not kept.size and left_out == {"of unknown subjects": 8}
    kept, left_out = match_subjects(labels.take(kept), lives)
    assert not kept.size and not left_out


@pytest.mark.parametrize(
    ("split", "kept", "lasting", "events", "censored"),
    [
        ("train", [0, 1, 2], [90, 50, 1], [1, 0, 2], 1),  # the first event comes at the cutoff itself: known
        ("tuning", [0, 1, 2], [90, 50, 1], [1, 0, 2], 1),
        ("held_out", [3, 4], [20, 30], [2, 0], 0),
    ],
)
def test_out_of_time(split, kept, lasting, events, censored):
    """The cutoff is day 100: before it train learns what is known by then, from it on the test knows all."""
    labels = made("survival", ("a", "b"), range(5), (10, 50, 99, 100, 150), lasting=(90, 60, 1, 20, 30))
    labels = dataclasses.replace(labels, events=np.array([1, 1, 2, 2, 0], np.int32))
    found, number = temporal_split(labels, split, days(100)[0])
    assert found.subject_ids.tolist() == kept and number == censored
    assert found.days.tolist() == lasting and found.events.tolist() == events and found.events.dtype == np.int32
    assert labels.days.tolist() == [90, 60, 1, 20, 30]


def test_a_gap_before_the_cutoff():
    labels = made("binary", ("x",), (1, 1, 1, 3), (69, 70, 71, 100), values=[[0], [1], [1], [1]])
    kept = {
        split: temporal_split(labels, split, days(100)[0], outcome_window_days=30)[0]
        for split in ("tuning", "held_out")
    }
    assert kept["tuning"].prediction_times.tolist() == days(69).tolist() and np.isnan(kept["tuning"].days).all()
    assert kept["held_out"].prediction_times.tolist() == days(100).tolist()


def test_outcomes_by_name():
    assert made("binary", ("x",), (A, B), (1, 1), [[0], [1]]).outcomes().tolist() == [[False], [True]]
    classes = made("multiclass", ("a", "b", "c"), (A, B), (1, 1), [[2], [0]])
    assert classes.outcomes().tolist() == [[False, False, True], [True, False, False]]
    causes = made("survival", ("a", "b"), (A, B, C), (1, 1, 1), lasting=(1, 1, 1), events=(0, 2, 1))
    assert causes.outcomes().tolist() == [[False, False], [False, True], [True, False]]
