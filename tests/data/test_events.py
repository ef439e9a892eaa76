import datetime

import meds as standard
import numpy as np
import polars as pl
import pyarrow.parquet
import pytest

from behrt_jax.data import events
from tests.data.handmade import START, SUBJECTS, assert_clear, history, table

FIRST, SECOND = SUBJECTS[:2]


def read_error(meds, rows, *parts):
    shard = meds.shard("0", rows)
    with pytest.raises(ValueError) as error:
        events.read_shard(shard)
    assert_clear(error, shard, *parts)


def test_a_valid_shard(cohort):
    shard = cohort.root / "data" / "0.parquet"
    found = events.read_shard(shard)
    assert found.schema == {
        "subject_id": pl.Int64,
        "time": pl.Datetime("us"),
        "code": pl.String,
        "numeric_value": pl.Float32,
    }
    assert found.rows() == table([row for subject in SUBJECTS[:5] for row in history(subject)]).rows()


def test_names_are_those_of_the_standard():
    assert (events.BIRTH, events.DEATH) == (standard.birth_code, standard.death_code)
    assert events.SPLITS == (standard.train_split, standard.tuning_split, standard.held_out_split)
    assert str(events.SPLITS_FILE) == standard.subject_splits_filepath


def test_reads_what_the_standard_writes(bundled_config, tmp_path):
    shard = events.find_shards(bundled_config.path)[0]
    aligned = standard.DataSchema.align(pyarrow.parquet.read_table(shard))
    standard.DataSchema.validate(aligned)
    pyarrow.parquet.write_table(aligned, tmp_path / "0.parquet")
    found = events.read_shard(tmp_path / "0.parquet", ("visit_id",))
    assert found.equals(events.read_shard(shard, ("visit_id",))) and found.height > 100_000


def test_shards_come_in_order_from_all_folders(meds):
    files = [meds.shard(name, history(FIRST)) for name in ("train/1", "held_out/0", "train/0", "flat")]
    (meds.root / "data" / "notes.txt").write_text("not a shard")
    assert events.find_shards(meds.root) == sorted(files)


def test_missing_directory(tmp_path):
    with pytest.raises(ValueError) as error:
        events.find_shards(tmp_path / "nowhere")
    assert_clear(error, tmp_path / "nowhere", "no such directory", "data.path", "folder with data/")


def test_no_parquet(meds):
    (meds.root / "data").mkdir(parents=True)
    (meds.root / "elsewhere.parquet").touch()
    with pytest.raises(ValueError) as error:
        events.find_shards(meds.root)
    assert_clear(error, meds.root, "no *.parquet file under", meds.root / "data", "expected MEDS shards")


@pytest.mark.parametrize("name", ["subject_id", "time", "code"])
def test_missing_column(meds, name):
    rest = [column for column in table([]).columns if column != name]
    read_error(meds, table(history(FIRST)).drop(name), f"'{name}' is missing (found {', '.join(rest)})", "expected")


def test_numeric_value_may_be_missing(meds):
    found = events.read_shard(meds.shard("0", table(history(FIRST)).drop("numeric_value")))
    assert found.schema["numeric_value"] == pl.Float32 and found["numeric_value"].null_count() == found.height


@pytest.mark.parametrize(
    ("name", "kind", "wanted"),
    [
        ("subject_id", pl.String, "expected int64"),
        ("subject_id", pl.Float64, "expected int64"),
        ("subject_id", pl.UInt64, "expected int64"),
        ("time", pl.Int64, "expected timestamp[us] without a time zone"),
        ("time", pl.Date, "expected timestamp[us]"),
        ("time", pl.Datetime("us", "UTC"), "expected timestamp[us] without a time zone"),
        ("code", pl.Binary, "expected string"),
        ("numeric_value", pl.String, "expected float32"),
    ],
)
def test_mistyped_column(meds, name, kind, wanted):
    mistyped = table(history(FIRST)).with_columns(pl.col(name).cast(kind))
    read_error(meds, mistyped, f"column '{name}' is {kind}", wanted, "convert it")


@pytest.mark.parametrize("unit", ["ms", "ns"])
def test_other_units_of_time(meds, unit):
    other = table(history(FIRST)).with_columns(pl.col("time").dt.cast_time_unit(unit))
    found = events.read_shard(meds.shard("0", other))
    assert found.rows() == table(history(FIRST)).rows()
    assert found.schema["time"] == pl.Datetime("us")


def test_other_kinds_of_numbers_and_codes(meds):
    other = table(history(FIRST)).with_columns(
        pl.col("subject_id").cast(pl.UInt32),
        pl.col("code").cast(pl.Categorical),
        pl.col("numeric_value").cast(pl.Int16),
    )
    assert events.read_shard(meds.shard("0", other)).rows() == table(history(FIRST)).rows()


def test_unsorted_subjects(meds):
    rows = [*history(SECOND), *history(FIRST)]
    read_error(meds, rows, "'subject_id' is not sorted", "sort the shard by subject_id, then time")


def test_unsorted_times(meds):
    rows = [(FIRST, 5, "SECRET//A"), (FIRST, 3, "SECRET//B"), (FIRST, 4, "SECRET//C"), (SECOND, 1, "SECRET//A")]
    read_error(meds, rows, "'time' goes backwards within a subject in 1 rows", "sort the shard")


def test_static_rows_after_timed_ones(meds):
    rows = [(FIRST, 5, "SECRET//A"), (FIRST, None, "SECRET//B"), (SECOND, None, "SECRET//B")]
    read_error(meds, rows, "'time' goes backwards within a subject in 1 rows", "static rows, with a null time, first")


@pytest.mark.parametrize("name", ["code", "subject_id"])
def test_nulls(meds, name):
    rows = table([(FIRST, 1, "SECRET//A"), (FIRST, 2, "SECRET//B"), (SECOND, 2, "SECRET//B")])
    holed = rows.with_columns(pl.when(pl.int_range(pl.len()) != 1).then(pl.col(name)))
    read_error(meds, holed, f"'{name}' is null in 1 of 3 rows", "drop or fill")


def test_events_before_birth(meds):
    rows = [(FIRST, 1, "SECRET//A"), (FIRST, 2, "SECRET//A"), (FIRST, 3, "MEDS_BIRTH"), (SECOND, 1, "SECRET//A")]
    read_error(meds, rows, "2 events of 1 subjects lie before MEDS_BIRTH", "correct the birth times or remove")


def test_events_at_the_time_of_birth_and_without_a_birth_are_fine(meds):
    rows = [(FIRST, 3, "SECRET//A"), (FIRST, 3, "MEDS_BIRTH"), (SECOND, 1, "SECRET//A")]
    assert events.read_shard(meds.shard("0", rows)).height == 3


def test_placeholder_times(meds):
    rows = [(FIRST, 0, "MEDS_BIRTH"), (FIRST, 400_000, "SECRET//A"), (SECOND, 1, "SECRET//A")]
    read_error(meds, rows, "'time' is more than 1,000 years after", "in 1 rows", "9999-12-31", "correct or remove")
    rows = [(FIRST, None, "SECRET//SEX"), (FIRST, 2_900_000, "SECRET//A"), (SECOND, 1, "SECRET//A")]
    read_error(meds, rows, "'time' is not in the years 1 to 6,000 in 1 rows", "9999-12-31", "correct or remove")
    before = table(rows).with_columns(time=pl.col("time") - pl.duration(days=2_900_000))
    read_error(meds, before, "'time' is not in the years 1 to 6,000 in 1 rows")


def test_the_first_and_the_last_time(meds):
    moments = [datetime.datetime(1, 1, 1), datetime.datetime(events.LAST_YEAR, 12, 31, 23, 59)]
    rows = table([(FIRST, 0, "MEDS_BIRTH"), (SECOND, 0, "SECRET//A")]).with_columns(time=pl.Series(moments))
    found = events.read_shard(meds.shard("0", rows))
    assert found["time"].to_list() == moments
    minutes = [(moment - events.EPOCH) / datetime.timedelta(minutes=1) for moment in moments]
    assert -(2**31) < minutes[0] and minutes[1] < 2**31


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_truncated_parquet(cohort, kept):
    shard = cohort.root / "data" / "0.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError) as error:
        events.read_shard(shard)
    assert_clear(error, shard, "not a readable parquet file", "write or copy it again")


def test_damaged_pages(meds):
    rows = [(FIRST, day, f"SECRET//{day}", float(day)) for day in range(3000)]
    shard = meds.shard("0", rows)
    content = bytearray(shard.read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    shard.write_bytes(content)
    with pytest.raises(ValueError) as error:
        events.read_shard(shard)
    assert_clear(error, shard, "not a readable parquet file")


def test_extra_columns_are_kept_where_they_are(meds):
    rows = table([(FIRST, 1, "SECRET//A", None, 7)], visit_column="hadm_id")
    found = events.read_shard(meds.shard("0", rows), ("visit_id", "hadm_id", "code"))
    assert found.columns == ["subject_id", "time", "code", "numeric_value", "hadm_id"]


def test_splits_as_they_are_listed(cohort):
    found = events.read_splits(cohort.root)
    assert found is not None
    assert sorted(found["split"].to_list()) == ["held_out"] * 2 + ["train"] * 6 + ["tuning"] * 2
    assert events.read_splits(cohort.root / "data") is None


def splits_error(meds, splits, *parts):
    file = meds.splits(splits)
    with pytest.raises(ValueError) as error:
        events.read_splits(meds.root)
    assert_clear(error, file, *parts)


def test_subject_in_two_splits(meds):
    rows = pl.DataFrame({"subject_id": [FIRST, SECOND, FIRST, SECOND], "split": ["train", "train", "tuning", "train"]})
    splits_error(meds, rows, "1 subjects are in two splits", "train, tuning, held_out")


def test_splits_with_a_wrong_column(meds):
    rows = pl.DataFrame({"subject_id": [FIRST], "part": ["train"]})
    splits_error(meds, rows, "'split' is missing (found subject_id, part)")
    rows = pl.DataFrame({"subject_id": [str(FIRST)], "split": ["train"]})
    splits_error(meds, rows, "'subject_id' is String", "expected int64", "convert it")


def test_truncated_splits(cohort):
    file = cohort.root / events.SPLITS_FILE
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError) as error:
        events.read_splits(cohort.root)
    assert_clear(error, file, "not a readable parquet file", "write or copy it again")


def test_made_splits_have_the_shares_and_stay_when_patients_join():
    ids = np.arange(20_000) * 7 + 3
    made = events.make_splits(ids)
    shares = {split: (made["split"] == split).mean() for split in events.SPLITS}
    assert shares == pytest.approx({"train": 0.70, "tuning": 0.15, "held_out": 0.15}, abs=0.012)
    few = events.make_splits(ids[::-50])
    assert few.join(made, on=["subject_id", "split"], how="semi").height == few.height == 400


def test_duplicate_shards(tmp_path):
    subjects = {tmp_path / "a": np.array([1, 5]), tmp_path / "b": np.array([2, 3]), tmp_path / "c": np.array([5, 1, 9])}
    with pytest.raises(ValueError) as error:
        events.check_disjoint(subjects)
    assert_clear(error, tmp_path / "c", "2 subjects are also in another shard", tmp_path / "a", "remove the duplicate")
    del subjects[tmp_path / "a"]
    events.check_disjoint(subjects)


def test_no_event_at_all(tmp_path):
    with pytest.raises(ValueError, match="the data set is empty: its 2 shards hold no event"):
        events.check_disjoint({tmp_path / "a": np.array([], int), tmp_path / "b": np.array([], int)})


def test_patterns_match_case_and_whole_codes():
    codes = ["LAB//1", "lab//1", "X//LAB//1", "DIAGNOSIS//2", "LAB"]
    assert events.matching_codes(codes, ("*",), ("LAB//*",)) == ["lab//1", "X//LAB//1", "DIAGNOSIS//2", "LAB"]
    assert events.matching_codes(codes, ("LAB*", "DIAG*"), ("*//1",)) == ["DIAGNOSIS//2", "LAB"]
    assert events.matching_codes(codes, (), ()) == []


def test_birth_times_are_each_subjects_own(meds):
    rows = table([(FIRST, 3, "MEDS_BIRTH"), (FIRST, 9, "MEDS_BIRTH"), (SECOND, 1, "SECRET//A")])
    births = rows.select(events.birth_times(pl.col("time"))).to_series().to_list()
    assert [birth and (birth - START).days for birth in births] == [3, 3, None]


def test_a_code_with_brackets_matches_itself_and_what_begins_like_it():
    codes = ["LOINC//Body mass index (BMI) [Ratio]", "A//[x] *b?", "LAB//a", "LAB//[ab]", "A//x"]
    for code in codes:
        assert code in events.matching_codes(codes, (code,), ())
        assert code not in events.matching_codes(codes, ("*",), (code,))
    assert events.matching_codes(codes, ("LOINC//*[Ratio]",), ()) == codes[:1]
    assert events.matching_codes(codes, ("*(BMI) [Rat*",), ()) == codes[:1]
    assert events.matching_codes(codes, ("LAB//[ab]",), ()) == ["LAB//a", "LAB//[ab]"]  # brackets as in a shell too
    assert events.matching_codes(codes, ("LAB//[!b]",), ()) == ["LAB//a"]


@pytest.mark.parametrize("name", ["subject_id", "time", "code"])
@pytest.mark.parametrize("columns", [{}, {"code": pl.Series([], dtype=pl.List(pl.Int64))}, {"note": []}])
def test_a_shard_without_rows_is_read_whatever_its_columns(meds, name, columns):
    shard = meds.shard("0", pl.DataFrame(columns))
    assert events.read_shard(shard, ("visit_id",)).schema == table([]).schema
    assert events.read_shard(meds.shard("1", table([]).drop(name))).schema == table([]).schema


@pytest.mark.parametrize("kind", [pl.Null, pl.String, pl.Int64, pl.List(pl.Int64), pl.Datetime("us", "UTC")])
def test_a_column_without_any_value_may_have_any_type(meds, kind):
    static = table([(FIRST, None, "SECRET//SEX"), (SECOND, None, "SECRET//SEX")])
    shard = meds.shard("0", static.with_columns(time=pl.lit(None, kind), numeric_value=pl.lit(None, kind)))
    assert events.read_shard(shard).equals(static) and events.read_shard(shard).schema == static.schema
    nothing = static.with_columns(pl.lit(None, kind).alias(name) for name in static.columns)
    read_error(meds, nothing, "'code' is null in 2 of 2 rows")


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("extreme", [2**63 - 1, -(2**63) + 1])
def test_times_that_overflow_in_another_unit(meds, unit, extreme):
    rows = table([(FIRST, 1, "SECRET//A"), (SECOND, 1, "SECRET//A")])
    times = pl.Series([extreme, 0], dtype=pl.Int64).cast(pl.Datetime(unit))
    shard = meds.shard("0", rows.with_columns(time=times))
    if unit == "ns":  # years 1677 and 2262
        assert events.read_shard(shard)["time"].dt.year().to_list() == [2262 if extreme > 0 else 1677, 1970]
    else:
        with pytest.raises(ValueError, match="'time' is not in the years 1 to 6,000 in 1 rows"):
            events.read_shard(shard)


def sorted_splits(folder) -> pl.DataFrame:
    splits = events.read_splits(folder.root)
    assert splits is not None
    return splits.sort("subject_id")


def test_splits_in_a_folder_of_shards_or_behind_a_link(cohort, tmp_path):
    expected, file = sorted_splits(cohort), cohort.root / events.SPLITS_FILE
    file.rename(tmp_path / "splits.parquet")
    file.symlink_to(tmp_path / "splits.parquet")
    assert expected.equals(sorted_splits(cohort))
    file.unlink()
    file.mkdir()
    for i, part in enumerate((expected[:4], expected[4:], expected[:0].with_columns(split=None))):
        part.write_parquet(file / f"part-{i}.parquet")
    assert expected.equals(sorted_splits(cohort))
    (file / "part-0.parquet").rename(tmp_path / "moved")
    (file / "part-0.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="part-0.parquet: this link points to nothing"):
        events.read_splits(cohort.root)


def test_splits_that_say_nothing_are_no_splits(meds):
    rows = pl.DataFrame({"subject_id": [FIRST, None, SECOND], "split": ["train", "tuning", None]})
    meds.splits(rows)
    assert sorted_splits(meds).rows() == [(FIRST, "train")]
    meds.splits(rows.clear().cast({"subject_id": pl.Null, "split": pl.Null}))
    assert sorted_splits(meds).rows() == []
    splits_error(meds, rows.with_columns(split=pl.lit(1)), "'split' is Int32; expected string; convert it")


def test_what_a_table_says_of_codes(meds):
    file = meds.root / events.CODES_FILE
    file.parent.mkdir(parents=True)
    schema = {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)}
    sound = pl.DataFrame([("A", "a", ["P"]), ("B", None, None), ("C", "c", [])], schema=schema, orient="row")
    for table_of_codes in (sound, sound.cast({"code": pl.Categorical, "description": pl.Categorical})):
        table_of_codes.write_parquet(file)
        assert events.read_codes(meds.root, "description").rows() == [("A", "a"), ("C", "c")]
        assert events.read_codes(meds.root, "parent_codes").rows() == [("A", ["P"]), ("C", [])]
    nothing = (sound.clear(), sound.clear().cast(pl.Null), sound.select("code"), sound.with_columns(description=None))
    for table_of_codes in nothing:
        table_of_codes.write_parquet(file)
        assert events.read_codes(meds.root, "description").schema == {"code": pl.String, "description": pl.String}
        assert events.read_codes(meds.root, "description").height == 0
    sound.with_columns(description=pl.lit(1)).write_parquet(file)
    assert events.read_codes(meds.root, "parent_codes").height == 2
    with pytest.raises(ValueError, match="codes.parquet: column 'description' is Int32; expected String; correct it"):
        events.read_codes(meds.root, "description")
