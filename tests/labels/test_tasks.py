import datetime
import logging
from pathlib import Path

import meds
import polars as pl
import pytest
from ruamel.yaml import YAML

from behrt_jax.data.events import find_shards
from behrt_jax.labels.tasks import load_task, make_labels
from tests.data.handmade import START, SUBJECTS, assert_clear, table

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "configs" / "tasks"
BUNDLED = ROOT / "data" / "synthea-1151"
MIMIC = Path(__file__).parents[3] / "shared" / "data" / "mimic-iv-demo-meds"
A, B, C, D, E = SUBJECTS[:5]


def day(number: float) -> datetime.datetime:
    return START + datetime.timedelta(days=number)


def day_of(moment: datetime.datetime) -> float:
    return (moment - START) / datetime.timedelta(days=1)


def write_task(folder: Path, task: dict) -> Path:
    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False
    with (folder / "task.yaml").open("w") as file:
        yaml.dump(task, file)
    return folder / "task.yaml"


def label(folder, task: dict, *shards: list[tuple], visits: bool = False):
    """Makes the labels of hand-made events, one shard each."""
    files = [
        folder.shard(str(number), table(sorted(rows, key=by_time), "visit_id" if visits else None))
        for number, rows in enumerate(shards)
    ]
    return make_labels(load_task(write_task(folder.root.parent, task)), files)


def by_time(row: tuple) -> tuple:
    return row[0], -1e9 if row[1] is None else row[1]


def rows_of(made) -> list[tuple]:
    """Rows with days since 2000 in place of times."""
    return [
        tuple(day_of(cell) if isinstance(cell, datetime.datetime) else cell for cell in row)
        for row in made.labels.iter_rows()
    ]


def dropped(made) -> dict[str, int]:
    return {reason: number for reason, number in made.dropped.items() if number}


def survival(index: dict, events: dict, until: int | None = None, last_event: bool = False, **require) -> dict:
    end = {"until": day(until).date()} if until is not None else {}
    section = {"index": index, "events": events, "follow_up": {**end, "last_event": last_event}}
    return {"description": "x", "time_to_event": {**section, "require": require}}


def dates(*numbers: int) -> dict:
    return {"dates": [day(number).date() for number in numbers]}


def test_events_and_censoring(meds):
    """A dies, B is followed to the end, C's event comes at the end itself, D's a day later, E's at the index date."""
    times = {A: (150,), B: (), C: (400,), D: (401,), E: (100, 150)}
    rows = [(one, 50, "X") for one in times] + [(one, at, "GOAL") for one in times for at in times[one]]
    made = label(meds, survival(dates(100), {"goal": "GOAL"}, until=400), rows)
    assert rows_of(made) == [
        (A, 100, 150, True),
        (B, 100, 400, False),
        (C, 100, 400, True),
        (D, 100, 400, False),
        (E, 100, 150, True),  # at the index date itself nothing is left to predict
    ]
    assert made.labels.schema == {
        "subject_id": pl.Int64,
        "prediction_time": pl.Datetime("us"),
        "event_time": pl.Datetime("us"),
        "event": pl.Boolean,
    }
    assert made.counts == {"patients": 5, "index dates": 5, "patients with index dates": 5}
    assert not dropped(made)


def test_the_last_event_ends_follow_up(meds):
    rows = [(A, 50, "X"), (A, 150, "X"), (B, 50, "X"), (C, 50, "X"), (C, 100, "X"), (D, 50, "X"), (D, 500, "X")]
    made = label(meds, survival(dates(100), {"goal": "GOAL"}, last_event=True), rows)
    assert rows_of(made) == [(A, 100, 150, False), (D, 100, 500, False)]
    assert dropped(made) == {"after the end of follow-up": 2}  # B is last seen before, C at the index date
    made = label(meds, survival(dates(100), {"goal": "GOAL"}, until=400, last_event=True), rows)
    assert rows_of(made) == [(A, 100, 150, False), (D, 100, 400, False)]


def test_who_is_not_at_risk(meds):
    """One reason each, in order; A is fine."""
    rows = [(A, 0, "MEDS_BIRTH"), (A, 50, "X")]
    rows += [(B, 101, "MEDS_BIRTH"), (C, 0, "MEDS_BIRTH"), (C, 50, "X"), (C, 100, "MEDS_DEATH"), (C, 300, "GOAL")]
    rows += [(D, 0, "MEDS_BIRTH"), (D, 50, "OLD//1"), (E, 0, "MEDS_BIRTH"), (E, 100, "OLD//2")]
    late = SUBJECTS[5]
    rows += [(late, 0, "MEDS_BIRTH"), (late, 50, "X"), (late, 101, "OLD//1")]
    task = survival(dates(100), {"goal": "GOAL"}, until=400, none_before=["OLD//*"])
    made = label(meds, task, rows)
    assert rows_of(made) == [(A, 100, 400, False), (late, 100, 400, False)]
    assert dropped(made) == {"before birth": 1, "at or after death": 1, "with a code of none_before by then": 2}
    assert sum(dropped(made).values()) + made.labels.height == made.counts["index dates"]


def test_ages_are_of_the_index_date(meds):
    years = 18 * 365.25
    rows = [(A, 0, "MEDS_BIRTH"), (A, 10, "X"), (B, 1, "MEDS_BIRTH"), (B, 10, "X"), (C, 10, "X")]
    made = label(meds, survival(dates(int(years + 0.5)), {"goal": "GOAL"}, until=9000, min_age=18), rows)
    assert [row[0] for row in rows_of(made)] == [A]
    assert dropped(made) == {"younger than 18 years": 1, "of unknown age": 1}


def test_visits_before_are_those_with_an_event_before(meds):
    def visit(subject, at, number):
        return (subject, at, "X", None, number)

    rows = [visit(A, 10, 1), visit(A, 20, 1), visit(A, 30, 2), visit(A, 99, 3), visit(A, 150, 3)]
    rows += [visit(B, 10, 1), visit(B, 20, 2), visit(B, 100, 3)]  # the third visit begins at the index date
    rows += [visit(C, 10, 1), visit(C, 20, 2), (C, 30, "X")]  # an event without a visit is none
    made = label(meds, survival(dates(100), {"goal": "GOAL"}, until=400, min_visits=3), rows, visits=True)
    assert [row[0] for row in rows_of(made)] == [A]
    assert dropped(made) == {"with fewer than 3 visits before": 2}


def test_days_are_visits_where_no_column_names_them(meds):
    rows = [(A, 10, "X"), (A, 10.5, "X"), (A, 11, "X"), (B, 10, "X"), (B, 10.5, "X")]
    made = label(meds, survival(dates(100), {"goal": "GOAL"}, until=400, min_visits=2), rows)
    assert [row[0] for row in rows_of(made)] == [A]


def test_visits_and_codes_as_index_dates(meds):
    rows = [(A, 5, "X", None, 1), (A, 10, "IN//1", None, 2), (A, 12, "X", None, 2), (A, 30, "IN//2", None, 3)]
    rows += [(A, 30, "IN//1", None, 3), (A, 40, "GOAL", None, 4)]
    made = label(meds, survival({"codes": "IN//*"}, {"goal": "GOAL"}, until=400), rows, visits=True)
    assert rows_of(made) == [(A, 10, 40, True), (A, 30, 40, True)]
    assert made.matched == {"IN//*": 3, "GOAL": 1}
    made = label(meds, survival({"visits": True}, {"goal": "GOAL"}, until=400), rows, visits=True)
    assert rows_of(made) == [(A, 10, 40, True), (A, 30, 40, True), (A, 40, 400, False)]
    assert dropped(made) == {"with fewer than 1 visits before": 1}


def test_competing_causes(meds):
    """The first comes; the one named first wins a tie; death ends follow-up, also where it is no cause."""
    rows = [(one, 50, "X") for one in (A, B, C, D)]
    rows += [(A, 150, "GOAL"), (A, 160, "MEDS_DEATH"), (B, 150, "MEDS_DEATH"), (B, 170, "GOAL"), (D, 150, "MEDS_DEATH")]
    rows += [(D, 150, "GOAL")]
    made = label(meds, survival(dates(100), {"goal": "GOAL", "death": "MEDS_DEATH"}, until=400), rows)
    expected = [(A, 100, 150, "goal"), (B, 100, 150, "death"), (C, 100, 400, None), (D, 100, 150, "goal")]
    assert rows_of(made) == expected and made.labels.schema["event"] == pl.String
    made = label(meds, survival(dates(100), {"goal": "GOAL"}, until=400), rows)
    expected = [(A, 100, 150, True), (B, 100, 150, False), (C, 100, 400, False), (D, 100, 150, True)]
    assert rows_of(made) == expected


def test_shards_are_put_together(meds):
    first, second = [(B, 50, "X"), (B, 150, "GOAL")], [(A, 50, "X"), (A, None, "SEX")]
    made = label(meds, survival(dates(100, 200), {"goal": "GOAL"}, until=400), first, second)
    assert [row[:2] for row in rows_of(made)] == [(A, 100), (A, 200), (B, 100), (B, 200)]
    assert made.counts["index dates"] == 4 and made.matched == {"GOAL": 1}
    made = label(meds, survival({"codes": "NONE//*"}, {"goal": "GOAL"}, until=400), first, second)
    assert not made.labels.height and made.matched == {"NONE//*": 0, "GOAL": 1}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"index": {"dates": ["soon"]}}, ("time_to_event.index.dates", "'soon'", "2025-12-31")),
        ({"index": {"dates": [], "codes": "X"}}, ("time_to_event.index", "2 kinds", "dates, codes, visits")),
        ({"index": {"day": 3}}, ("time_to_event.index", "no such key: day", "dates, codes, visits")),
        ({"index": None}, ("index is missing",)),
        ({"events": None}, ("events is missing",)),
        ({"events": "MEDS_DEATH"}, ("time_to_event.events", "death: MEDS_DEATH")),
        ({"events": {"death": 3}}, ("time_to_event.events.death", "'3'", "a code or a list")),
        ({"require": {"min_visit": 5}}, ("time_to_event.require", "no such key: min_visit", "min_visits")),
        ({"require": {"min_age": "old"}}, ("time_to_event.require.min_age", "'old'", "a number from 0 on")),
        ({"follow_up": {"last_event": False}}, ("time_to_event.follow_up", "has no end", "until", "last_event")),
        ({"follow_up": {"last_event": 3}}, ("time_to_event.follow_up.last_event", "true or false")),
        ({"follow_up": 3}, ("time_to_event.follow_up", "expected a section")),
        ({"followup": {}}, ("no such key: followup",)),
    ],
)
def test_tasks_that_make_no_sense(tmp_path, change, parts):
    task = survival(dates(100), {"goal": "GOAL"}, until=400)
    task["time_to_event"].update(change)
    with pytest.raises(ValueError) as error:
        load_task(write_task(tmp_path, task))
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in ("task.yaml", *parts))


def test_files_that_are_no_tasks(tmp_path):
    with pytest.raises(ValueError, match="no such task file; expected a YAML file"):
        load_task(tmp_path / "none.yaml")
    (file := tmp_path / "task.yaml").write_text("a: [1\nb")
    with pytest.raises(ValueError, match="not a YAML file"):
        load_task(file)
    file.write_text("")
    with pytest.raises(ValueError, match="holds no keys; expected 'time_to_event'"):
        load_task(file)


# ACES
def aces(label: str = "goal", **metadata) -> dict:
    """The goal within 30 days after an event START, without one before."""
    return {
        "metadata": metadata,
        "predicates": {"start": {"code": "START"}, "goal": {"code": {"regex": "^GOAL"}}},
        "trigger": "start",
        "windows": {
            "past": {"start": None, "end": "trigger", "start_inclusive": True, "end_inclusive": False}
            | {"index_timestamp": "end", "has": {"goal": "(None, 0)"}},
            "target": {"start": "past.end", "end": "start + 30d", "start_inclusive": False, "end_inclusive": True}
            | {"label": label},
        },
    }


STAYS = [(A, None, "SEX"), (A, 0, "MEDS_BIRTH"), (A, 10, "START"), (A, 40, "GOAL//1"), (A, 50, "START")]
MORE = [(B, 10, "START"), (B, 41, "GOAL//2"), (C, 10, "START"), (C, 20, "X"), (D, 5, "GOAL//1"), (D, 10, "START")]


MORE += [(E, 10, "START"), (E, 15, "MEDS_DEATH"), (E, 20, "START")]


def test_labels_of_aces(meds):
    made = label(meds, aces(), STAYS + MORE)
    assert rows_of(made) == [(A, 10, True), (B, 10, False), (C, 10, False), (E, 10, False)]
    assert made.counts == {"patients": 5, "index dates": 7, "patients with index dates": 5}
    assert dropped(made) == {"that fit no windows": 2, "at or after death": 1}
    assert made.details == {"in past: not None <= goal <= 0": 2}
    assert made.matched == {"start": 7, "goal": 3}


def test_two_shards_give_what_one_gives(meds):
    """ACES moves the windows that follow an offset as it runs, so that a second run of the same task would be wrong."""
    task = aces()
    task["windows"]["past"]["end"] = "trigger + 24h"
    once = label(meds, task, STAYS + MORE)
    assert rows_of(once)[:2] == [(A, 11, True), (B, 11, True)]
    twice = label(meds, task, MORE, STAYS)
    assert once.labels.equals(twice.labels) and once[1:] == twice[1:]


def test_negatives_that_are_not_seen_to_the_end_are_censored(meds):
    """Seen are positives, the dead, and those whose record or the data goes on for the whole window."""
    reason = "without the outcome, censored before its window ends"
    made = label(meds, aces(follow_up={"days": 30, "last_event": True}), STAYS + MORE)
    assert rows_of(made) == [(A, 10, True), (B, 10, False), (E, 10, False)]
    assert dropped(made) == {"that fit no windows": 2, "at or after death": 1, reason: 1}
    made = label(meds, aces(follow_up={"days": 30, "until": day(40).date()}), STAYS + MORE)
    assert rows_of(made) == [(A, 10, True), (B, 10, False), (C, 10, False), (E, 10, False)]
    made = label(meds, aces(follow_up={"days": 30, "until": day(39).date()}), STAYS + MORE)
    assert rows_of(made) == [(A, 10, True), (E, 10, False)]


def test_data_without_the_trigger_give_no_labels(meds, caplog):
    made = label(meds, aces(), [(A, 10, "X")], STAYS)
    assert rows_of(made) == [(A, 10, True)] and not caplog.records  # what ACES has to say is in the counts
    assert logging.getLogger("aces").propagate
    made = label(meds, aces(), [(A, 10, "X")], [(B, None, "X"), (B, 10, "X")])
    assert not made.labels.height and made.matched == {"start": 0, "goal": 0}


def test_tasks_that_aces_refuses(tmp_path):
    def refused(task: dict, *parts: str) -> None:
        with pytest.raises(ValueError) as error:
            load_task(write_task(tmp_path, task))
        assert_clear(error, "task.yaml", *parts)

    refused({**aces(), "trigger": "nothing"}, "not a task that ACES reads", "nothing")
    refused({"predicates": {}}, "trigger: 'None'; expected the name of the predicate")
    refused({**aces(), "extra": 1}, "not a task that ACES reads", "extra")
    for missing in ("label", "index_timestamp"):
        task = aces()
        for window in task["windows"].values():
            window.pop(missing, None)
        refused(task, f"no window has '{missing}'")
    refused(aces(follow_up={"days": 30}), "metadata.follow_up", "has no end")
    refused(aces(follow_up={"days": "many", "last_event": True}), "metadata.follow_up.days", "'many'")
    refused(aces(follow_up={"day": 30}), "metadata.follow_up", "no such key: day")


def built_in(name: str, data: Path = BUNDLED):
    return make_labels(load_task(TASKS / f"{name}.yaml"), find_shards(data))


def check_schema(made) -> None:
    """MEDS' own package accepts the labels, and they are sorted."""
    meds.LabelSchema.validate(made.labels.to_arrow())
    assert made.labels.equals(made.labels.sort("subject_id", "prediction_time"))


def test_the_landmark_task_is_the_reference():
    """The reference points of the survival task: patients, index dates, deaths to follow."""
    made = built_in("death")
    counts = made.labels["subject_id"].n_unique(), made.labels.height, made.labels["event"].sum()
    assert counts == (978, 3996, 589)
    assert sum(dropped(made).values()) + made.labels.height == made.counts["index dates"] == 5 * 1151
    assert (made.labels["event_time"] > made.labels["prediction_time"]).all()
    alive = made.labels.filter(~pl.col("event"))
    assert (alive["event_time"] == datetime.datetime(2025, 12, 31)).all()


def test_readmissions_are_those_found_by_hand():
    """A stay within 30 days from a day after a stay's begin, of those alive then and seen to the end."""
    data = pl.scan_parquet(BUNDLED / "data" / "**" / "*.parquet").select("subject_id", "time", "code").collect()
    deaths = dict(data.filter(code="MEDS_DEATH").select("subject_id", "time").iter_rows())
    stays = data.filter(code="ENCOUNTER//inpatient").group_by("subject_id").agg("time")
    expected, end = [], datetime.datetime(2025, 12, 31)
    for subject, times in stays.iter_rows():
        for time in set(times):
            start, stop = time + datetime.timedelta(days=1), time + datetime.timedelta(days=31)
            death = deaths.get(subject)
            positive = any(start <= other <= stop for other in times)
            if (death is None or start < death) and (positive or death or stop <= end):
                expected.append((subject, start, positive))
    made = built_in("readmission")
    assert sorted(expected) == list(made.labels.iter_rows())
    check_schema(made)


@pytest.mark.parametrize("file", sorted(TASKS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_built_in_task_is_read_and_says_what_it_is(file):
    task = load_task(file)
    assert task.description and "\n" not in task.description
    assert file.stem in (ROOT / "docs" / "labels.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file.stem for file in TASKS.glob("diagnosis_*.yaml")))
def test_diagnoses_have_enough_positives_to_learn(name):
    made = built_in(name)
    assert made.labels["boolean_value"].sum() >= 60
    check_schema(made)


def test_a_first_diagnosis_is_within_a_year_and_the_first():
    made = built_in("diagnosis_hypertension")
    data = pl.scan_parquet(BUNDLED / "data" / "**" / "*.parquet")
    first = (
        data.filter(pl.col("code") == "CONDITION//SNOMED//59621000").group_by("subject_id").agg(pl.col("time").min())
    )
    rows = made.labels.join(first.collect(), on="subject_id", how="left")
    days = (rows["time"] - rows["prediction_time"]).dt.total_seconds() / 86_400
    assert (days.drop_nulls() > 0).all()
    assert (rows["boolean_value"] == (days <= 365).fill_null(False)).all()
    assert made.labels["boolean_value"].sum() >= 60


@pytest.mark.skipif(not MIMIC.exists(), reason="the MIMIC-IV demo is not here")
def test_deaths_in_hospital_of_mimic():
    made = built_in("mimic_mortality", MIMIC)
    check_schema(made)
    stays = pl.scan_parquet(MIMIC / "data" / "**" / "*.parquet").select("hadm_id", "time", "code").collect()
    found = {}
    for name, start in (("in", "HOSPITAL_ADMISSION"), ("out", "HOSPITAL_DISCHARGE")):
        found[name] = stays.filter(pl.col("code").str.starts_with(start)).rename({"time": name, "code": f"{name}_code"})
    joined = found["in"].join(found["out"], on="hadm_id")
    long = joined.filter(pl.col("out") - pl.col("in") > datetime.timedelta(hours=24))
    died = long.filter(out_code="HOSPITAL_DISCHARGE//DIED")
    assert died.height > 10  # a death in hospital is a discharge to DIED, of stays longer than a day
    assert made.labels["boolean_value"].sum() == died.height
    assert abs(made.labels.height - long.height) <= 2


@pytest.mark.skipif(not MIMIC.exists(), reason="the MIMIC-IV demo is not here")
@pytest.mark.parametrize("name", ["mimic_readmission", "long_stay"])
def test_other_tasks_of_mimic(name):
    made = built_in(name, MIMIC)
    check_schema(made)
    assert 0 < made.labels["boolean_value"].sum() < made.labels.height
    assert 200 < made.labels.height <= made.counts["index dates"]


def test_who_is_in_hospital_at_the_seventh_day(meds):
    """Two days (A), nine (B), nine with a day at home (C), two and again (D), never recorded to leave (E)."""
    stays = {A: [(10, 12)], B: [(10, 19)], C: [(10, 14), (15, 19)], D: [(10, 12), (30, 32)]}
    codes = ("HOSPITAL_ADMISSION//URGENT", "HOSPITAL_DISCHARGE//HOME")
    rows = [(one, span[i], codes[i]) for one, spans in stays.items() for span in spans for i in (0, 1)]
    rows += [(E, 10, codes[0]), (E, 30, "X")]
    files = [meds.shard("0", table(sorted(rows, key=by_time)))]
    made = make_labels(load_task(TASKS / "long_stay.yaml"), files)
    expected = [(A, 11, False), (B, 11, True), (C, 11, True), (C, 16, False), (D, 11, False), (D, 31, False)]
    assert rows_of(made) == expected
    assert dropped(made) == {"that fit no windows": 1}
