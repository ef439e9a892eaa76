import collections
import dataclasses
import errno
import shutil
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from behrt_jax.data import dataset, events, tokenize, windows
from behrt_jax.data.config import DataConfig
from behrt_jax.data.prepare import prepare
from behrt_jax.data.vocabulary import UNK, Vocabulary
from tests.data.handmade import SPLITS, SUBJECTS, MedsFolder, assert_clear, history, table, write_cohort

FIRST, LAST = SUBJECTS[0], SUBJECTS[-1]
MIMIC = Path(__file__).parents[3] / "shared" / "data" / "mimic-iv-demo-meds"


def decoded(prepared, split: str) -> dict[int, list[tuple]]:
    """The tokens of each subject of a split: `(token, visit, minutes)`."""
    patients = dataset.read(prepared.folder, split)
    rows = list(
        zip(
            [prepared.vocabulary.tokens[code] for code in patients.codes],
            patients.visits,
            patients.minutes,
            strict=True,
        )
    )
    return {
        int(subject): rows[patients.offsets[i] : patients.offsets[i + 1]]
        for i, subject in enumerate(patients.subject_ids)
    }


def accounted(report: dict) -> int:
    """Events that became tokens and events that were left out."""
    left_out = ("left_out_by_pattern", "of_patients_without_codes", "in_other_splits", "without_visit")
    tokens = sum(report[f"tokens/{split}"] for split in events.SPLITS)
    return tokens + report["repeats_left_out"] + sum(report[f"events_{name}"] for name in left_out)


# Bad input: what breaks the ten good patients, and what the message must say.
def _shard(folder: MedsFolder) -> Path:
    return folder.root / "data" / "0.parquet"


def _rewrite(change):
    """Changes the events of the first shard."""
    return lambda folder: folder.shard("0", change(pl.read_parquet(_shard(folder))))


def _with_rows(*rows):
    """Puts rows before, or after, those of the first shard."""
    return _rewrite(lambda good: pl.concat([table([row for row in rows if row[0] < FIRST]), good]))


def _remove(*names):
    def remove(folder):
        for name in names:
            target = folder.root / name
            shutil.rmtree(target) if target.is_dir() else target.unlink()

    return remove


def _set_splits(splits):
    return lambda folder: folder.splits(splits)


def _truncate(folder):
    _shard(folder).write_bytes(_shard(folder).read_bytes()[:-100])


def _empty(folder):
    for shard in events.find_shards(folder.root):
        table([]).write_parquet(shard)


def _nothing_but_birth_in_held_out(folder):
    held_out = [subject for subject, split in SPLITS.items() if split == "held_out"]
    rest = [row for subject in SUBJECTS[5:8] for row in history(subject)]
    folder.shard("1", [*rest, *[(subject, 0, "MEDS_BIRTH") for subject in held_out]])


BAD_DATA = {
    "missing directory": (_remove("."), "no such directory; data.path must name"),
    "no parquet": (_remove("data/0.parquet", "data/1.parquet"), "no *.parquet file under"),
    "missing column": (
        _rewrite(lambda good: good.drop("time")),
        "0.parquet: column 'time' is missing (found subject_id,",
    ),
    "mistyped column": (
        _rewrite(lambda good: good.with_columns(time=pl.lit("x"))),
        "0.parquet: column 'time' is String; expected timestamp[us]",
    ),
    "unsorted subjects": (_rewrite(lambda good: good.reverse()), "0.parquet: column 'subject_id' is not sorted"),
    "unsorted times": (
        _rewrite(lambda good: good.sort("subject_id", "time", descending=[False, True], nulls_last=False)),
        "0.parquet: column 'time' goes backwards within a subject in 10 rows; sort the shard",
    ),
    "static rows last": (
        _rewrite(lambda good: good.sort("subject_id", "time", nulls_last=True)),
        "goes backwards within a subject in 5 rows; sort the shard by subject_id, then time (static rows",
    ),
    "two splits": (
        _set_splits(
            pl.DataFrame({"subject_id": [*SPLITS, LAST], "split": [*SPLITS.values(), "train"]}),
        ),
        "subject_splits.parquet: 1 subjects are in two splits",
    ),
    "no split": (
        _set_splits({subject: SPLITS[subject] for subject in SUBJECTS[:-2]}),
        "subject_splits.parquet: 2 of 10 subjects of the data have no split; add them, or remove the file",
    ),
    "duplicate shard": (
        lambda folder: shutil.copy(_shard(folder), folder.root / "data" / "copy.parquet"),
        "copy.parquet: 5 subjects are also in another shard, such as",
    ),
    "before birth": (
        _rewrite(
            lambda good: good.with_columns(
                pl.when(pl.col("code") == "MEDS_BIRTH").then(pl.col("time") + pl.duration(days=450)).otherwise("time")
            ).sort("subject_id", "time", nulls_last=False)
        ),
        "0.parquet: 10 events of 5 subjects lie before MEDS_BIRTH",
    ),
    "null code": (
        _rewrite(lambda good: good.with_columns(pl.when(pl.col("code") != "SECRET//B").then(pl.col("code")))),
        "0.parquet: column 'code' is null in 5 of 25 rows",
    ),
    "empty": (_empty, "the data set is empty: its 2 shards hold no event"),
    "truncated": (_truncate, "0.parquet: not a readable parquet file"),
    "no patient in a split": (
        _set_splits(dict.fromkeys(SUBJECTS, "train")),
        "split 'tuning' has no patient; expected some in each of train, tuning, held_out; correct metadata/",
    ),
    "nothing left of a split": (
        _nothing_but_birth_in_held_out,
        "no patient of split 'held_out' has a code left in the sequence; check data.codes_include",
    ),
    "made splits leave one empty": (
        lambda folder: (_remove("metadata", "data/1.parquet")(folder), folder.shard("0", history(FIRST))),
        "has no patient; expected some in each of train, tuning, held_out; add patients or metadata/",
    ),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(cohort, name):
    spoil, expected = BAD_DATA[name]
    spoil(cohort)
    with pytest.raises(ValueError) as error:
        prepare(cohort.config())
    assert_clear(error, expected, cohort.root)
    assert cohort.left_behind() == []


def test_empty_data_without_splits(cohort):
    _empty(cohort)
    _remove("metadata")(cohort)
    with pytest.raises(ValueError, match="the data set is empty"):
        prepare(cohort.config())


BAD_CONFIG = {
    "min_patients": ({"min_patients": 7}, "data.min_patients: none of the 3 codes", "the most frequent: 6"),
    "codes_exclude": ({"codes_exclude": ("*",)}, "none of the 0 codes", "data.codes_exclude"),
    "visits": (
        {"visits": "ward"},
        "data.visits: column 'ward' is not in",
        "0.parquet (found subject_id, time, code, nu",
    ),
    "negative": ({"min_patients": 0}, "data.min_patients: found 0; expected 1 or more"),
    "short rows": ({"row_length": 4}, "data.row_length: found 4; expected 8 or more"),
    "one string": ({"codes_include": "LAB//*"}, "data.codes_include: found one string; expected a tuple of patterns"),
}


@pytest.mark.parametrize("name", BAD_CONFIG)
def test_bad_config(cohort, name):
    changes, *expected = BAD_CONFIG[name]
    with pytest.raises(ValueError) as error:
        prepare(cohort.config(**changes))
    assert_clear(error, *expected)
    assert cohort.left_behind() == []


def test_visit_column_error_names_all_columns(cohort):
    cohort.shard("0", pl.read_parquet(_shard(cohort)).with_columns(stay=pl.lit(1)))
    with pytest.raises(ValueError, match=r"'ward' is not in .*0.parquet \(found .*, stay\)"):
        prepare(cohort.config(visits="ward"))


def test_reading_stops_at_the_first_bad_shard_though_others_are_good(cohort):
    cohort.shard("2", table([(99_000_000, 2, "SECRET//A"), (99_000_000, 1, "SECRET//A")]))
    with pytest.raises(ValueError, match="2.parquet: column 'time' goes backwards"):
        prepare(cohort.config())


# What becomes of good data.
def test_tokens_of_a_patient(meds):
    person = [
        (FIRST, None, "SEX"),
        (FIRST, None, "SEX"),
        (FIRST, 0, "MEDS_BIRTH"),
        (FIRST, 10, "A", None, 1),
        (FIRST, 10, "LAB", 5.0, 1),
        (FIRST, 11, "B", None, 2),
        (FIRST, 12, "A", None, 1),
        (FIRST, 12, "C", None, 1),
        (FIRST, 13, "B", None, 2),
        (FIRST, 20.5, "A"),
    ]
    for i in range(3):
        meds.shard(str(i), table([(row[0] + i, *row[1:]) for row in person], "visit_id"))
    meds.splits({FIRST + i: split for i, split in enumerate(events.SPLITS)})
    config = meds.config(min_patients=1, codes_exclude=("MEDS_BIRTH", "LAB"))
    prepared = prepare(config)
    expected = [
        ("SEX", -1, 0),
        ("A", 0, 10 * 1440),
        ("C", 0, 12 * 1440),
        ("B", 1, 11 * 1440),
        ("A", 2, 20 * 1440 + 720),
    ]
    assert decoded(prepared, "train") == {FIRST: expected}
    assert decoded(prepared, "held_out") == {FIRST + 2: expected}
    report = prepared.report
    assert (report["events"], report["visits"], report["events_left_out_by_pattern"]) == (30, 9, 6)
    assert report["repeats_left_out"] == 9 and report["codes"] == 4
    assert report["tokens/train"] == 5 and accounted(report) == 30

    repeated = decoded(prepare(dataclasses.replace(config, unique_codes_in_visit=False)), "train")[FIRST]
    assert [token for token, *_ in repeated] == ["SEX", "SEX", "A", "A", "C", "B", "B", "A"]
    by_day = decoded(prepare(dataclasses.replace(config, visits="day")), "train")[FIRST]
    assert [visit for _, visit, _ in by_day] == [-1, 0, 1, 2, 2, 3, 4]
    by_gap = decoded(prepare(dataclasses.replace(config, visits="gap", visit_gap_hours=48.0)), "train")[FIRST]
    assert [visit for _, visit, _ in by_gap] == [-1, 0, 0, 0, 1]


def test_dates_are_those_of_the_events(meds):
    """With and without a known birth, before and after 2000, from year 1 on."""
    people = {
        FIRST: [(-20_000.75, "MEDS_BIRTH"), (-9_000.25, "A"), (3_000.5, "A")],
        FIRST + 1: [(-800.5, "A"), (-700, "A"), (9.25, "A")],
        FIRST + 2: [(9_000.125, "A"), (9_001, "A")],
        FIRST + 3: [(-730_119, "MEDS_BIRTH"), (-730_118, "A")],
    }
    rows = []
    for subject, timed in people.items():
        rows += [(subject, None, "SEX"), *[(subject, *event) for event in timed]]
    meds.shard("0", [*rows, *history(LAST - 1), *history(LAST)])
    meds.splits({**dict.fromkeys(people, "train"), LAST - 1: "tuning", LAST: "held_out"})
    patients = dataset.read(prepare(meds.config(min_patients=1)).folder, "train")
    days = [timed[0][0] for timed in people.values()]
    assert patients.origins.tolist() == [round(day * 1440) for day in days]
    assert patients.has_birth.tolist() == [True, False, False, True]
    index = windows.index_visits(patients, 32, use_sep=False)
    found = windows.build_columns(patients, index, windows.newest_windows(index), np.arange(len(patients)), 0)
    expected = []
    for timed in people.values():
        seen = [day for day, code in timed if code != "MEDS_BIRTH"]
        expected += [seen[0], seen[0], *seen]  # [CLS] and the static code have the first visit's
    recent = len(expected) - 3
    np.testing.assert_allclose(found["dates"][:recent] * 365.25, expected[:recent], atol=1 / 1440)
    np.testing.assert_allclose(found["dates"], np.array(expected) / 365.25, rtol=1e-6)


def test_values_become_bins(cohort):
    prepared = prepare(cohort.config(min_patients=1, value_bins=2))
    bins = {subject: rows[2][0] for subject, rows in decoded(prepared, "train").items()}
    assert prepared.vocabulary.value_edges == {"SECRET//B": (2.5,)}
    assert bins == {subject: f"SECRET//B//Q{1 + (subject % 10 > 2)}" for subject in SUBJECTS[:6]}
    assert "SECRET//B" in prepare(cohort.config(value_bins=0)).vocabulary.codes


def test_codes_below_the_minimum_are_unknown_and_counted(cohort):
    rows = [*history(FIRST), (FIRST, 600, "SECRET//RARE")]
    cohort.shard("0", [*rows, *[row for subject in SUBJECTS[1:5] for row in history(subject)]])
    rows = [row for subject in SUBJECTS[5:] for row in history(subject)]
    cohort.shard("1", [*rows, (LAST, 600, "SECRET//NEW"), (LAST, 600, "SECRET//RARE")])
    prepared = prepare(cohort.config(value_bins=0))
    assert decoded(prepared, "train")[FIRST][-1] == ("[UNK]", 2, 600 * 1440)
    counts = [prepared.report[f"unknown/{split}"] for split in events.SPLITS]
    assert counts == [1, 0, 2]
    assert [int((dataset.read(prepared.folder, split).codes == UNK).sum()) for split in events.SPLITS] == counts


def test_patient_with_one_event_and_patients_with_none_left(cohort):
    one, born, static = FIRST - 3, FIRST - 2, FIRST - 1
    rows = [(one, 7, "SECRET//A"), (born, 0, "MEDS_BIRTH"), (static, None, "SECRET//SEX")]
    _with_rows(*rows)(cohort)
    other, born_too = SUBJECTS[-1] + 1, SUBJECTS[-1] + 2
    cohort.shard("2", [(other, 3, "SECRET//A"), (born_too, 0, "MEDS_BIRTH")])
    cohort.splits({**SPLITS, **dict.fromkeys((one, born, static, born_too), "train"), other: "tuning"})
    prepared = prepare(cohort.config())
    train = decoded(prepared, "train")
    assert train[one] == [("SECRET//A", 0, 0)] and born not in train and static not in train
    report = prepared.report
    assert report["patients/train"] == 7 and report["patients_without_codes"] == 3
    assert report["patients_without_birth"] == 3 and report["events_of_patients_without_codes"] == 1
    assert report["events"] == 55 == accounted(report)
    assert dataset.read(prepared.folder, "train").has_birth.tolist() == [False, *[True] * 6]


def test_a_birth_without_a_time_is_no_birth(cohort):
    _with_rows((FIRST - 1, None, "MEDS_BIRTH"), (FIRST - 1, 9, "SECRET//A"))(cohort)
    cohort.splits({**SPLITS, FIRST - 1: "train"})
    prepared = prepare(cohort.config())
    assert prepared.report["patients_without_birth"] == 1
    found = dataset.read(prepared.folder, "train")
    assert not found.has_birth[0] and found.origins[0] == 9 * 1440


def test_patients_of_other_splits_and_events_after_death_are_counted(cohort):
    rows = [*history(FIRST), (FIRST, 500, "MEDS_DEATH"), (FIRST, 501, "SECRET//A"), (FIRST, 502, "SECRET//B")]
    cohort.shard("0", [*rows, *[row for subject in SUBJECTS[1:5] for row in history(subject)]])
    cohort.splits({**SPLITS, SUBJECTS[1]: "elsewhere"})
    report = prepare(cohort.config()).report
    assert report["patients_in_other_splits"] == 1 and report["events_in_other_splits"] == 5
    assert report["patients/train"] == 5 and report["events_after_death"] == 2
    assert accounted(report) == report["events"] == 53


def test_vocabulary_is_of_train_alone(cohort, tmp_path):
    before = prepare(cohort.config())
    rows = [row for subject in SUBJECTS[5:8] for row in history(subject)]
    for subject in SUBJECTS[8:]:
        rows += [(subject, day, f"SECRET//NEW{day}", 1e6) for day in range(5)] + [(subject, 9, "SECRET//B", 1e6)]
    cohort.shard("1", rows)
    after = prepare(cohort.config())
    assert after.folder != before.folder
    assert after.vocabulary.fingerprint == before.vocabulary.fingerprint
    assert decoded(after, "train") == decoded(before, "train")
    assert decoded(after, "held_out") != decoded(before, "held_out")
    changed = write_cohort(MedsFolder(tmp_path, "changed"))
    changed.shard("0", [row for subject in SUBJECTS[:5] for row in [*history(subject), (subject, 700, "SECRET//B")]])
    assert prepare(changed.config()).vocabulary.fingerprint != before.vocabulary.fingerprint


def test_counts_of_the_vocabulary_are_those_of_the_tokens(bundled, bundled_train):
    counts = collections.Counter(bundled_train.codes.tolist())
    owners = [bundled_train.codes[a:b] for a, b in zip(bundled_train.offsets, bundled_train.offsets[1:], strict=False)]
    patients = collections.Counter(code for codes in owners for code in set(codes.tolist()))
    vocabulary = bundled.vocabulary
    for code, count, number in zip(vocabulary.codes, vocabulary.counts, vocabulary.patients, strict=True):
        assert counts[vocabulary.ids[code]] == count and patients[vocabulary.ids[code]] == number >= 5
    assert list(vocabulary.counts) == sorted(vocabulary.counts, reverse=True)


def test_bundled_counts(bundled, bundled_config):
    files = events.find_shards(bundled_config.path)
    report = bundled.report
    assert report["events"] == sum(pl.scan_parquet(file).select(pl.len()).collect().item() for file in files)
    assert accounted(report) == report["events"]
    assert [report[f"patients/{split}"] for split in events.SPLITS] == [806, 173, 172]
    assert report["codes"] == len(bundled.vocabulary.codes)


@pytest.mark.parametrize("unit", ["ms", "ns"])
def test_units_of_time_change_nothing(cohort, tmp_path, unit):
    other = write_cohort(MedsFolder(tmp_path, unit))
    for shard in events.find_shards(other.root):
        pl.read_parquet(shard).with_columns(pl.col("time").dt.cast_time_unit(unit)).write_parquet(shard)
    assert decoded(prepare(other.config()), "train") == decoded(prepare(cohort.config()), "train")


def test_sampled_values_are_merged_on_the_way(cohort, tmp_path, monkeypatch):
    vocabulary = prepare(cohort.config(min_patients=1)).vocabulary
    monkeypatch.setattr(tokenize, "MOST_SAMPLES", 2)
    assert prepare(cohort.config(min_patients=1, prepared_dir=str(tmp_path / "again"))).vocabulary == vocabulary


# Splits made from the hash.
def test_splits_are_made_stored_and_stay(meds):
    def write(subjects):
        meds.shard("0", [row for subject in subjects for row in history(subject)])
        prepared = prepare(meds.config())
        assert prepared.report["splits_made"] == 1
        found = {subject: split for split in events.SPLITS for subject in decoded(prepared, split)}
        stored = pl.read_parquet(prepared.folder / "subject_splits.parquet")
        assert dict(stored.iter_rows()) == found
        return found

    few = write(range(FIRST, FIRST + 150))
    many = write(range(FIRST - 150, FIRST + 150))
    assert len(many) == 300 and {subject: many[subject] for subject in few} == few
    assert 0.62 < list(many.values()).count("train") / 300 < 0.78


def test_no_splits_are_made_where_there_are_some(cohort):
    prepared = prepare(cohort.config())
    assert prepared.report["splits_made"] == 0 and not (prepared.folder / "subject_splits.parquet").exists()


# Events that name no visit.
def write_unnamed(meds: MedsFolder) -> None:
    """Writes a patient a split with events that no visit names, its birth among them, and one with nothing else."""
    person = [
        (FIRST, None, "SEX"),
        (FIRST, 0, "MEDS_BIRTH"),
        (FIRST, 10, "A", None, 1),
        (FIRST, 10, "B"),
        (FIRST, 11, "LAB"),
        (FIRST, 12, "B", None, 2),
        (FIRST, 12, "A"),
        (FIRST, 15, "A"),
    ]
    for i in range(3):
        meds.shard(str(i), table([(row[0] + i, *row[1:]) for row in person], "visit_id"))
    meds.shard("3", table([(LAST, None, "SEX"), (LAST, 4, "A"), (LAST, 5, "B")], "visit_id"))
    meds.shard("4", table([(LAST + 1, 4, "A"), (LAST + 1, 5, "B")], "visit_id"))
    meds.splits({**{FIRST + i: split for i, split in enumerate(events.SPLITS)}, LAST: "train", LAST + 1: "train"})


@pytest.mark.parametrize("visits", ["auto", "visit_id"])
def test_events_without_a_visit_can_be_left_out(meds, visits):
    write_unnamed(meds)
    config = meds.config(visits=visits, min_patients=1, codes_exclude=("MEDS_BIRTH", "LAB"))
    kept = prepare(config)
    assert kept.report["events_without_visit"] == 0 and accounted(kept.report) == kept.report["events"] == 29
    assert sorted(row[0] for row in decoded(kept, "train")[FIRST]) == ["A", "A", "A", "B", "B", "SEX"]

    prepared = prepare(dataclasses.replace(config, events_without_visit="leave_out"))
    expected = [("SEX", -1, 0), ("A", 0, 10 * 1440), ("B", 1, 12 * 1440)]  # minutes are still since birth
    assert decoded(prepared, "train") == {FIRST: expected} and decoded(prepared, "held_out") == {FIRST + 2: expected}
    report = prepared.report
    assert report["events_without_visit"] == 3 * 5 + 4 and report["visits"] == 6
    assert (report["events_left_out_by_pattern"], report["patients_without_codes"]) == (0, 2)
    assert report["events"] == 29 and accounted(report) == 29


@pytest.mark.parametrize("visits", ["day", "gap"])
def test_without_a_visit_column_nothing_is_left_out(meds, visits):
    write_unnamed(meds)
    config = meds.config(visits=visits, min_patients=1)
    kept, same = prepare(config), prepare(dataclasses.replace(config, events_without_visit="leave_out"))
    assert same.folder != kept.folder and same.report == kept.report and same.report["events_without_visit"] == 0
    assert all(decoded(same, split) == decoded(kept, split) for split in events.SPLITS)


def test_events_without_visit_has_two_choices(meds):
    with pytest.raises(ValueError, match="data.events_without_visit: found 'drop'; expected group_by_day or leave_out"):
        meds.config(events_without_visit="drop")


# The cache.
def modified(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_second_preparation_writes_and_reads_nothing(cohort, messages):
    first = prepare(cohort.config())
    before = modified(cohort.prepared_dir)
    assert len(before) == 8 and len(messages) == 3
    second = prepare(cohort.config(row_length=64, use_sep=False))
    assert modified(cohort.prepared_dir) == before and len(messages) == 3
    assert second == first


def test_damaged_prepared_data_are_prepared_again_with_one_warning(cohort, messages):
    first = prepare(cohort.config())
    (first.folder / "report.json").write_text("{}")
    messages.clear()
    assert prepare(cohort.config()) == first
    assert [message for message in messages if "preparing it again" in message] == [
        f"warning: {first.folder}: report.json is not as it was written; preparing it again"
    ]


def test_changed_source_is_prepared_anew(cohort):
    first = prepare(cohort.config())
    cohort.shard("0", [row for subject in SUBJECTS[1:5] for row in history(subject)])
    second = prepare(cohort.config())
    cohort.splits({**SPLITS, SUBJECTS[5]: "tuning"})
    third = prepare(cohort.config())
    assert [run.report["patients/train"] for run in (first, second, third)] == [6, 5, 4]


OTHER_KEYS = {
    "visits": "day",
    "events_without_visit": "leave_out",
    "visit_gap_hours": 12.0,
    "codes_include": ("A*",),
    "codes_exclude": ("B*",),
    "unique_codes_in_visit": False,
    "min_patients": 3,
    "value_bins": 5,
    "sex_codes": ("B=F",),
    "value_digits": 2,
    "value_encoding": "continuous",
    "text_values": True,
    "unit_table": __file__,
    "roll_up": ("icd",),
}
UNRELATED_KEYS = {"row_length": 64, "use_sep": False, "prepared_dir": "elsewhere"}


def test_fingerprint_holds_every_key_that_matters(cohort, tmp_path):
    keys = {field.name for field in dataclasses.fields(DataConfig)}
    assert keys == {"path", *OTHER_KEYS, *UNRELATED_KEYS}
    base = cohort.config().fingerprint()
    others = [cohort.config(**{key: value}).fingerprint() for key, value in OTHER_KEYS.items()]
    assert len({base, *others, cohort.config().fingerprint(fitted="abc")}) == len(others) + 2
    for key, value in UNRELATED_KEYS.items():
        assert cohort.config(**{key: value}).fingerprint() == base
    shutil.copytree(cohort.root, tmp_path / "moved")
    assert cohort.config(path=str(tmp_path / "moved")).fingerprint() == base


@pytest.mark.parametrize("spoil", ["remove", "cut", "other"])
@pytest.mark.parametrize("name", ["report.json", "vocabulary.json"])
def test_a_folder_that_was_cut_short_is_prepared_again(cohort, name, spoil, messages):
    first = prepare(cohort.config())
    file = first.folder / name
    content = file.read_text()
    if spoil == "remove":
        file.unlink()
    else:
        file.write_text(content[:-5] if spoil == "cut" else "[")
    messages.clear()
    assert prepare(cohort.config()) == first and messages
    assert file.read_text() == content and cohort.left_behind() == [first.folder.name]


# No space, no permission.
@pytest.mark.parametrize("failing", [(dataset, "write"), (Vocabulary, "save"), (Path, "rename"), (Path, "write_text")])
def test_nothing_is_left_when_the_disk_is_full(cohort, monkeypatch, failing):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*failing, full)
    with pytest.raises(ValueError) as error:
        prepare(cohort.config())
    assert_clear(error, cohort.prepared_dir, "cannot write the prepared data", "No space left", "data.prepared_dir")
    assert cohort.left_behind() == []


def test_prepared_dir_that_cannot_be_made(cohort, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError) as error:
        prepare(cohort.config(prepared_dir=str(tmp_path / "file" / "below")))
    assert_clear(error, "cannot write the prepared data", "Not a directory", "data.prepared_dir")


def test_nothing_is_left_after_an_interrupt(cohort, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Vocabulary, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(cohort.config())
    assert cohort.left_behind() == []


# Other data with the vocabulary of a trained model.
def test_fitted_vocabulary_on_the_same_data_gives_the_same_tokens(cohort):
    # Of the bins of SECRET//B none has two patients, so all of them are unknown; without a value it is known.
    rows = [row for subject in SUBJECTS[:5] for row in [*history(subject), (subject, 700, "SECRET//B")]]
    cohort.shard("0", rows)
    own = prepare(cohort.config(value_bins=10))
    assert own.report["unknown/train"] > 0 and "SECRET//B" in own.vocabulary.codes
    other = prepare(cohort.config(value_bins=10), fitted=own.vocabulary)
    assert other.folder != own.folder and other.vocabulary == own.vocabulary
    for split in events.SPLITS:
        assert decoded(other, split) == decoded(own, split)


def test_rounded_edges_give_a_user_of_the_vocabulary_the_tokens_of_training(tmp_path):
    """Eleven patients and more a bin; no exact value of any patient is in the file that would be published."""
    rng, data = np.random.default_rng(0), MedsFolder(tmp_path, "values")
    values = np.float32(rng.normal(4.1, 0.6, (90, 3)))
    rows = [
        row
        for number, own in enumerate(values)
        for row in [(number, 0, "MEDS_BIRTH"), *[(number, 400 + day, "LAB//1", float(own[day])) for day in range(3)]]
    ]
    data.shard("0", rows)
    data.splits({number: ("train", "train", "train", "tuning", "held_out")[number % 5] for number in range(90)})
    own = prepare(data.config(value_bins=10, value_digits=2, min_patients=11))
    text = (own.folder / "vocabulary.json").read_text()
    (edges,) = own.vocabulary.value_edges.values()
    assert 2 <= len(edges) and not [value for value in values.ravel() if float(value) in edges or str(value) in text]
    assert set(own.vocabulary.codes) == {f"LAB//1//Q{place}" for place in range(1, len(edges) + 2)}
    assert min(own.vocabulary.patients) >= 11 and own.report["unknown/train"] == 0
    loaded = Vocabulary.load(own.folder / "vocabulary.json")
    other = prepare(data.config(value_bins=10, value_digits=0), fitted=loaded)
    for split in events.SPLITS:
        assert decoded(other, split) == decoded(own, split)
    assert prepare(data.config(value_bins=10, min_patients=11)).vocabulary.fingerprint != loaded.fingerprint


def test_data_without_train_patients(cohort, tmp_path):
    fitted = prepare(cohort.config()).vocabulary
    other = MedsFolder(tmp_path, "other")
    other.shard("0", [*history(5), (5, 900, "NEW"), (6, 0, "MEDS_BIRTH")])
    other.splits({5: "held_out", 6: "tuning"})
    prepared = prepare(other.config(), fitted=fitted, splits=("held_out",))
    assert prepared.vocabulary == fitted
    assert [row[0] for row in decoded(prepared, "held_out")[5]][-2:] == ["SECRET//A", "[UNK]"]
    assert {split: prepared.report[f"patients/{split}"] for split in events.SPLITS} == {
        "train": 0,
        "tuning": 0,
        "held_out": 1,
    }
    for split in ("train", "tuning"):
        with pytest.raises(ValueError, match=f"split '{split}' is not in the prepared data .found held_out."):
            dataset.read(prepared.folder, split)
    with pytest.raises(ValueError, match="split 'train' has no patient; expected some in each of train, held_out"):
        prepare(other.config(), splits=("held_out",))


@pytest.mark.skipif(not MIMIC.is_dir(), reason="the MIMIC-IV demo does not lie beside the repository")
def test_real_patients_with_only_the_path_changed(bundled_config):
    began = time.perf_counter()
    prepared = prepare(dataclasses.replace(bundled_config, path=str(MIMIC)))
    assert time.perf_counter() - began < 60
    report = prepared.report
    files = events.find_shards(MIMIC)
    assert report["events"] == sum(pl.scan_parquet(file).select(pl.len()).collect().item() for file in files) == 916_166
    assert accounted(report) == report["events"]
    assert sum(report[f"patients/{split}"] for split in events.SPLITS) == 100 - report["patients_without_codes"]
    for split in events.SPLITS:
        patients = dataset.read(prepared.folder, split)
        assert len(patients.codes) == report[f"tokens/{split}"] == patients.offsets[-1]
        assert int((patients.codes == UNK).sum()) == report[f"unknown/{split}"]
        assert patients.minutes.min() >= 0


# Splits that are folders.
def _in_folders(cohort, names=events.SPLITS) -> dict[int, str]:
    """Moves the ten patients to folders, against what the hash of their ids would say; returns where each is."""
    made = dict(events.make_splits(np.array(SUBJECTS)).iter_rows())
    held_out, train = SUBJECTS[:4], SUBJECTS[6:]
    assert any(made[subject] == "train" for subject in held_out) and len({made[subject] for subject in train}) > 1
    groups = dict(zip(names, (train, SUBJECTS[4:6], held_out), strict=True))
    shutil.rmtree(cohort.root / "data")
    (cohort.root / events.SPLITS_FILE).unlink(missing_ok=True)
    for folder, subjects in groups.items():
        cohort.shard(f"{folder}/0", [row for subject in subjects for row in history(subject)])
    return {
        subject: split for split, subjects in zip(events.SPLITS, groups.values(), strict=True) for subject in subjects
    }


@pytest.mark.parametrize("prefix", ["", "split=", "hospital/"])
def test_splits_are_those_of_folders_where_no_file_has_them(cohort, prefix):
    expected = _in_folders(cohort, tuple(f"{prefix}{split}" for split in events.SPLITS))
    cohort.shard(f"{prefix}tuning/empty", table([]))
    prepared = prepare(cohort.config())
    assert {subject: split for split in events.SPLITS for subject in decoded(prepared, split)} == expected
    assert (prepared.report["splits_of_folders"], prepared.report["splits_made"]) == (1, 0)
    assert accounted(prepared.report) == prepared.report["events"]


def test_a_file_of_splits_counts_more_than_folders(cohort):
    _in_folders(cohort)
    cohort.splits(SPLITS)
    prepared = prepare(cohort.config())
    assert {subject: split for split in events.SPLITS for subject in decoded(prepared, split)} == SPLITS
    assert (prepared.report["splits_of_folders"], prepared.report["splits_made"]) == (0, 0)


def test_folders_that_leave_the_split_open_are_errors(cohort):
    expected = _in_folders(cohort)
    with pytest.raises(ValueError) as error:
        shutil.rmtree(cohort.root / "data" / "tuning")
        prepare(cohort.config())
    assert_clear(error, "split 'tuning' has no patient", "those of the folders under data/; add patients, or write")
    cohort.shard("test/1", history(SUBJECTS[4]))
    with pytest.raises(ValueError) as error:
        prepare(cohort.config())
    assert_clear(
        error, "test/1.parquet: lies in no folder of a split", "or write a file metadata/subject_splits.parquet"
    )
    shutil.move(cohort.root / "data" / "test", cohort.root / "data" / "train" / "held_out")
    with pytest.raises(ValueError, match="held_out/1.parquet: lies in the folders of two splits"):
        prepare(cohort.config())
    assert cohort.left_behind() == [] and expected


def test_patterns_that_match_no_code_are_reported(cohort):
    patterns = {"codes_include": ("SECRET//[ABS]*", "NONE//*"), "codes_exclude": ("MEDS_BIRTH", "none", "SECRET//SE?")}
    assert prepare(cohort.config(**patterns)).report["unmatched_patterns"] == ["NONE//*", "none"]
    assert prepare(cohort.config()).report["unmatched_patterns"] == []
