"""Task files that make no sense end in one line that names the file and the key, whichever library finds out."""

import copy
import datetime
import math
import random

import polars as pl
import pytest
from ruamel.yaml import YAML

from behrt_jax.labels.labels import read_labels
from behrt_jax.labels.tasks import load_task, make_labels
from experiments.labels import label
from tests.data.handmade import SUBJECTS, MedsFolder, assert_clear, table

A, B, C = SUBJECTS[:3]
EVENTS = [(A, None, "SEX"), (A, 0, "MEDS_BIRTH"), (A, 10, "START", 1.0, 1), (A, 20, "GOAL", 5.0, 1), (B, 10, "START")]


EVENTS += [(B, 50, "GOAL", 7.0, 2), (C, 10, "START", None, 3), (C, 90, "OTHER", 2.0, 3)]


ACES = """
description: a goal within 30 days
metadata: {follow_up: {days: 30, last_event: true}}
predicates:
  start: {code: START}
  goal: {code: GOAL}
  other: {code: {any: [OTHER, GOAL]}}
  either: {expr: "or(goal, other)"}
trigger: start
windows:
  past: {start: null, end: trigger, start_inclusive: true, end_inclusive: false, index_timestamp: end}
  target:
    start: past.end
    end: start + 30d
    start_inclusive: false
    end_inclusive: true
    label: goal
    has: {either: "(None, 9)"}
"""
TIME_TO_EVENT = """
description: a goal
time_to_event:
  index: {codes: [START]}
  require: {min_visits: 0, min_age: 0, none_before: [NOTHING]}
  events: {goal: GOAL, death: [MEDS_DEATH]}
  follow_up: {until: 2000-12-31, last_event: true}
"""


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return MedsFolder(tmp_path_factory.mktemp("data")).shard("0", table(EVENTS, "visit_id"))


def run(folder, text: str, shard, name: str = "task.yaml"):
    (folder / name).write_text(text, encoding="utf-8")
    return make_labels(load_task(folder / name), [shard])


def test_the_tasks_that_are_damaged_below_are_sound(tmp_path, shard):
    assert run(tmp_path, ACES, shard).labels["boolean_value"].to_list() == [True, False, False]
    assert run(tmp_path, TIME_TO_EVENT, shard).labels["event"].to_list() == ["goal", "goal", None]


START, EXPR, END, FIRST = "{code: START}", '"or(goal, other)"', "end: trigger", "past: {start: null"
STAMP, LAST, INDEX, EVENT = (
    "index_timestamp: end",
    "end: start + 30d",
    "codes: [START]",
    "{goal: GOAL, death: [MEDS_DEATH]}",
)
DAYS, UNTIL, TEXT = (
    "{days: 30, last_event: true}",
    "{until: 2000-12-31, last_event: true}",
    "description: a goal within 30 days",
)
BAD = [
    # the trigger, and other keys of the file
    ("trigger: start\n", "trigger: nothing\n", "'nothing'"),
    ("trigger: start\n", "trigger: [start]\n", "trigger: '['start']'; expected the name"),
    ("trigger: start\n", "trigger: null\n", "trigger: 'None'"),
    ("trigger: start\n", "trigger: 3\n", "trigger: '3'"),
    ("trigger: start\n", "\n", "trigger: 'None'"),
    ("trigger: start\n", "trigger: start\ntriggers: 1\n", "triggers"),
    ("trigger: start\n", "trigger: start\ntrigger: goal\n", "not a YAML file"),
    ("predicates:", "predicate:", "'predicate'"),
    ("predicates:", "predicates: null\nolds:", "predicates: 'None'"),
    ("predicates:", "predicates: [start]\nolds:", "predicates: '['start']'"),
    ("windows:", "window:", "'window'"),
    ("windows:", "windows: past\nolds:", "windows: 'past'"),
    # predicates
    (START, "START", "predicates.start: 'START'; expected settings"),
    (START, "null", "predicates.start: 'None'"),
    (START, "[START]", "predicates.start: '['START']'"),
    (START, "{}", "predicates.start: has no code"),
    (START, "{cod: START}", "predicates.start: has no code (found cod)"),
    (START, "{code: 3}", "predicates.start.code: '3'"),
    (START, "{code: null}", "predicates.start.code: 'None'"),
    (START, "{code: [START]}", "predicates.start.code"),
    (START, "{code: {any: START}}", "predicates.start.code"),
    (START, "{code: {any: []}}", "predicates.start.code"),
    (START, "{code: {any: [1, 2]}}", "predicates.start.code"),
    (START, "{code: {any: [START, null]}}", "predicates.start.code"),
    (START, "{code: {any: [START], regex: S}}", "predicates.start.code"),
    (START, "{code: {glob: S*}}", "predicates.start.code"),
    (START, "{code: {regex: 3}}", "predicates.start.code"),
    (START, '{code: {regex: "("}}', "predicates.start.code.regex: '(' is no pattern"),
    (START, '{code: {regex: "(?=S)"}}', "predicates.start.code.regex: '(?=S)' is no pattern"),
    (START, "{code: START, value_min: low}", "predicates.start.value_min: 'low'; expected a number"),
    (START, "{code: START, value_max: true}", "predicates.start.value_max: 'True'"),
    (START, "{code: START, value_max: .nan}", "predicates.start.value_max: 'nan'"),
    (
        START,
        "{code: START, value_min: 0, value_min_inclusive: no}",
        "value_min_inclusive: 'no'; expected true or false",
    ),
    (START, "{code: START, static: no}", "predicates.start.static: 'no'"),
    (START, "{code: START, vlaue_min: 3}", "predicates read the column 'vlaue_min'"),
    (START, "{code: START, visit_id: one}", "cannot compare string with numeric"),
    (START, "{code: START, visit_id: null}", "predicates.start.visit_id: 'None'"),
    (START, "{code: START, visit_id: [1]}", "predicates.start.visit_id: '[1]'"),
    (START, "{code: START, visit_id: {a: 1}}", "predicates.start.visit_id"),
    (START, "{code: START, time: yesterday}", '"time"'),
    (START, "{code: START, 3: 4}", "predicates.start"),
    (START, '{code: START, "": 4}', "predicates.start"),
    (START, "{code: START, other_cols: {visit_id: 1}}", "other_cols"),
    (START, '{code: START, expr: "or(goal, other)"}', "unexpected keyword argument 'code'"),
    ("  goal: {", "  a goal: {", "predicates: 'a goal'; expected a name of letters"),
    ("  goal: {", "  3: {", "predicates: '3'"),
    (EXPR, '"or(code, other)"}\n  code: {code: GOAL', "predicates.code: a column has this name"),
    # expressions
    (EXPR, '"or(either, other)"', "predicates.either: is made of itself"),
    (EXPR, '"or(loop, other)"}\n  loop: {expr: "and(either, goal)"', "is made of itself"),
    (EXPR, '"goal or other"', "must start with 'and(' or 'or('"),
    (EXPR, '"or(goal)"', "at least two"),
    (EXPR, '"or(goal, nothing)"', "'nothing'"),
    (EXPR, '"or(goal,)"', "Predicate ''"),
    (EXPR, '"and(or(goal, other), start)"', "'other)'"),
    (EXPR, '"not(goal, other)"', "must start with"),
    (EXPR, '""', "non-empty expression"),
    (EXPR, "3", "predicates.either.expr: '3'"),
    (EXPR, "null", "predicates.either.expr: 'None'"),
    (EXPR, "[goal, other]", "predicates.either.expr"),
    (EXPR, '"or(goal, other)", extra: 3', "'extra'"),
    (EXPR, '"or(goal, other)", static: yes', "predicates.either.static: 'yes'"),
    # windows
    ("  past: {", "  the past: {", "windows: 'the past'"),
    ("  past: {", "  3: {", "windows: '3'"),
    (FIRST, "past: {start: never", "Exactly one of the start or end"),
    (FIRST, "past: {start: 3", "windows.past.start: '3'"),
    (FIRST, "past: {begin: null", "'begin'"),
    (END, "end: null", "start of the record to the end"),
    (END, "end: trigger - 24", "'-24'"),
    (END, "end: trigger - 24 parsecs", "'-24 parsecs'"),
    (END, "end: trigger - 1y", "'-1y'"),
    (END, "end: trigger + 99999999999d", "not a task that ACES reads"),
    (END, "end: trigger - 9999999d", "windows.past: is longer than 365,250 days"),
    (END, "end: trigger + 1d + 2d", "not a task that ACES reads"),
    (END, "end: trigger + 1d - 2d", "'+' and '-'"),
    (END, "end: trigger -> nothing", "'nothing'"),
    (END, "end: trigger ->", "windows.past.end: 'trigger ->'; expected a predicate after the arrow"),
    (END, "end: trigger -> goal <- goal", "'->' and '<-'"),
    (END, "end: trigger.end", "undefined window 'trigger'"),
    (END, "end: target.start", "ancestor of itself"),
    (END, "end: past.end", "parent of itself"),
    (END, "end: a.b.c", "'a.b.c'"),
    (END, "end: true", "windows.past.end: 'True'"),
    ("start_inclusive: true, end", "start_inclusive: no, end", "windows.past.start_inclusive: 'no'"),
    ("start_inclusive: true, end", "start_inclusive: null, end", "windows.past.start_inclusive: 'None'"),
    ("start_inclusive: true, end_inclusive: false", "start_inclusive: true", "windows.past.end_inclusive: 'None'"),
    (STAMP, "index_timestamp: middle", "middle"),
    (STAMP, "index_timestamp: [end]", "windows.past.index_timestamp: '['end']'; expected start or end"),
    (STAMP, "extra: end", "'extra'"),
    (STAMP, "has: {goal: '(None, 0)'}", "no window has 'index_timestamp'"),
    (STAMP, "index_timestamp: end, label: goal", "Only one window can be labeled"),
    (STAMP, "index_timestamp: end, has: {goal: '(1, 0)'}", "windows.past.has.goal: '(1, 0)'"),
    (STAMP, "index_timestamp: end, has: {goal: '(None, None)'}", "windows.past.has.goal: '(None, None)'"),
    (STAMP, "index_timestamp: end, has: {goal: '(1)'}", "windows.past.has.goal: '(1)'"),
    (STAMP, "index_timestamp: end, has: {goal: [0, 1]}", "windows.past.has.goal: '[0, 1]'"),
    (STAMP, "index_timestamp: end, has: {goal: 3}", "windows.past.has.goal: '3'"),
    (STAMP, "index_timestamp: end, has: {goal: '(1.5, None)'}", "windows.past.has.goal"),
    (STAMP, "index_timestamp: end, has: {nothing: '(None, 0)'}", "'nothing'"),
    (STAMP, "index_timestamp: end, has: null", "windows.past.has: 'None'"),
    (STAMP, "index_timestamp: end, has: [goal]", "windows.past.has: '['goal']'"),
    ("start: past.end", "start: future.end", "'future'"),
    ("start: past.end", "start: null", "Exactly one of the start or end"),
    (LAST, "end: start - 30d", "Window start will not occur before window end"),
    (LAST, "end: start", "windows.target.end: the window with 'label' has no length"),
    (LAST, "end: start + 0d", "windows.target.end: the window with 'label' has no length"),
    (LAST, "end: start -> _RECORD_START", "_RECORD_START"),
    (LAST, "end: past.end + 30d", "Exactly one of the start or end"),
    ("label: goal", "label: nothing", "'nothing'"),
    ("label: goal", "label: [goal]", "windows.target.label: '['goal']'"),
    ("label: goal", "label: _ANY_EVENT", "_ANY_EVENT"),
    ("label: goal", "labels: goal", "'labels'"),
    # what we read beside ACES
    ("metadata: ", "metadata: text #", "metadata: expected keys"),
    (DAYS, "soon", "metadata.follow_up: expected a section"),
    (DAYS, "{days: .nan, last_event: true}", "metadata.follow_up.days: 'nan'"),
    (DAYS, "{days: .inf, last_event: true}", "metadata.follow_up.days: 'inf'"),
    (DAYS, "{days: true, last_event: true}", "metadata.follow_up.days: 'True'"),
    (DAYS, "{days: 1e300, last_event: true}", "metadata.follow_up.days"),
    (DAYS, "{days: 30, last_event: yes}", "metadata.follow_up.last_event: 'yes'"),
    (DAYS, "{days: 30, until: 31/12/2000}", "metadata.follow_up.until: '31/12/2000'"),
    (DAYS, "{days: 30, until: 2000-12-31T00:00:00+02:00}", "metadata.follow_up.until"),
    # YAML
    (TEXT, "description: !!int x", "not a YAML file"),
    (TEXT, "description: !!float x", "not a YAML file"),
    (TEXT, "description: !!timestamp x", "not a YAML file"),
    (TEXT, "description: !!python/object:os.system x", "not a YAML file"),
    (TEXT, "description: 2024-13-45", "not a YAML file"),
    (TEXT, "description: *goal", "not a YAML file"),
    (TEXT, "---\na: 1\n---", "not a YAML file"),
    (TEXT, "? {a: b}\n: 1", "not a YAML file"),
    (TEXT, "? [a, b]\n: 1", "not a task that ACES reads"),
    (TEXT, "\tdescription: x", "not a YAML file"),
    (TEXT, "%YAML 9.9\n---", "not a YAML file"),
    (TEXT, "description: \0", "not a YAML file"),
    # time to event
    (INDEX, "codes: []", "time_to_event.index"),
    (INDEX, "codes: [3]", "time_to_event.index.codes: '[3]'"),
    (INDEX, "visits: yes", "time_to_event.index.visits: 'yes'; expected true"),
    (INDEX, "visits: false", "time_to_event.index"),
    (INDEX, "dates: 2000-01-05T00:00:00Z", "time_to_event.index.dates"),
    (INDEX, "dates: [[2000-01-05]]", "time_to_event.index.dates"),
    ("index: {codes: [START]}", "index: false", "time_to_event.index: expected a section"),
    ("min_visits: 0", "min_visits: 1.5", "time_to_event.require.min_visits: '1.5'; expected a whole number"),
    ("min_visits: 0", "min_visits: .inf", "time_to_event.require.min_visits: 'inf'"),
    ("min_visits: 0", "min_visits: 1" + "0" * 30, "time_to_event.require.min_visits"),
    ("min_age: 0", "min_age: .nan", "time_to_event.require.min_age: 'nan'"),
    ("min_age: 0", "min_age: .inf", "time_to_event.require.min_age: 'inf'"),
    (EVENT, "{goal: []}", "time_to_event.events.goal: no code"),
    (EVENT, "{goal: null}", "time_to_event.events.goal: 'None'"),
    (EVENT, "{1: GOAL, 2: MEDS_DEATH}", "time_to_event.events: '1'"),
    (EVENT, '{"": GOAL, death: MEDS_DEATH}', "time_to_event.events: ''"),
    (EVENT, "{none: GOAL, death: MEDS_DEATH}", "time_to_event.events: 'none'"),
    (EVENT, '{"true": GOAL, death: MEDS_DEATH}', "time_to_event.events: 'true'"),
    (UNTIL, "{until: soon}", "time_to_event.follow_up.until: 'soon'"),
    ("time_to_event:", "time_to_event: [1]\nolds:", "olds"),
]


@pytest.mark.parametrize(("old", "new", "part"), BAD, ids=[new.replace("\n", "|") or "gone" for _, new, _ in BAD])
def test_a_task_that_makes_no_sense_is_one_line(tmp_path, shard, old, new, part):
    text = next(text for text in (ACES, TIME_TO_EVENT) if old in text)
    with pytest.raises(ValueError) as error:
        run(tmp_path, text.replace(old, new, 1), shard)
    # A value of the task file may be repeated, a date among them, but nothing of the data.
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    assert part in str(error.value) and str(tmp_path / "task.yaml") in str(error.value)
    assert "Traceback" not in str(error.value) and not any(str(subject) in str(error.value) for subject in SUBJECTS)


TYPES = {
    "categorical code": {"code": pl.Categorical},
    "enum code": {"code": pl.Enum(sorted({row[2] for row in EVENTS}))},
    "nanoseconds": {"time": pl.Datetime("ns")},
    "milliseconds": {"time": pl.Datetime("ms")},
    "small ids": {"subject_id": pl.Int32},
    "unsigned ids": {"subject_id": pl.UInt32},
    "float64 values": {"numeric_value": pl.Float64},
    "integer values": {"numeric_value": pl.Int64},
    "a visit as text": {"visit_id": pl.String},
}


def variants():
    events = table(EVENTS, "visit_id")
    yield from ((name, "0.parquet", events.cast(kinds)) for name, kinds in TYPES.items())
    yield "no values", "0.parquet", events.drop("numeric_value")
    yield "values of no type", "0.parquet", events.with_columns(numeric_value=pl.lit(None))
    yield "a column named timestamp", "0.parquet", events.with_columns(timestamp=pl.lit("x"))
    yield "a column named like a predicate", "0.parquet", events.with_columns(start=pl.lit("x"), label=pl.lit(1))
    yield "a nested column", "0.parquet", events.with_columns(more=pl.struct("code", "visit_id"))
    yield "columns in another order", "0.parquet", events.select(reversed(events.columns))
    yield "a folder named like a value", "subject_id=1/code=x/0.parquet", events
    yield "a folder named like a file", "0.parquet/part-0.parquet", events
    yield "a name that is a pattern", "a[1]*.parquet", events
    yield "another ending", "0.PARQUET", events


@pytest.mark.parametrize(("name", "file", "events"), list(variants()), ids=[variant[0] for variant in variants()])
def test_aces_gets_whatever_our_reader_takes(tmp_path, shard, name, file, events):
    expected = run(tmp_path, ACES, shard)
    path = tmp_path / "data" / file
    path.parent.mkdir(parents=True)
    events.write_parquet(path)
    made = run(tmp_path, ACES, path)
    assert made.labels.equals(expected.labels) and made[1:] == expected[1:]


def test_a_predicate_reads_further_columns(tmp_path, shard):
    made = run(tmp_path, ACES.replace(START, "{code: START, visit_id: 3}"), shard)
    assert made.labels["subject_id"].to_list() == [C]
    empty = MedsFolder(tmp_path).shard("none", table(EVENTS[:0]))  # without the column, and without a row
    assert make_labels(load_task(tmp_path / "task.yaml"), [shard, empty]).labels.equals(made.labels)


def test_a_task_may_end_in_yml_and_change_while_it_runs(tmp_path, shard):
    expected = run(tmp_path, ACES, shard)
    (tmp_path / "task.yml").write_text(ACES + "# é\n", encoding="utf-8")
    task = load_task(tmp_path / "task.yml")
    (tmp_path / "task.yml").write_text("")
    assert make_labels(task, [shard]).labels.equals(expected.labels)


def test_prediction_times_that_windows_share(tmp_path):
    """Both triggers lead to one prediction time: rows that agree are one, others no labels."""
    rows = [(A, 10, "START"), (A, 12, "START"), (A, 20, "GOAL"), (A, 25, "OTHER")]
    shard = MedsFolder(tmp_path).shard("0", table(rows))
    shared = ACES.replace(END, "end: start -> goal").replace(FIRST, "past: {start: trigger").replace(DAYS, "null")
    made = run(tmp_path, shared.replace("label: goal", "label: other"), shard)
    assert made.labels.height == 1 and made.dropped["that share their prediction time and label with another"] == 1
    assert sum(made.dropped.values()) + made.labels.height == made.counts["index dates"] == 2
    both = ACES.replace(END, "end: start -> goal").replace(FIRST, "past: {start: trigger").replace(DAYS, "null")
    both = both.replace("start: past.end", "start: trigger").replace(LAST, "end: start + 9d")
    with pytest.raises(ValueError) as error:
        run(tmp_path, both, shard)
    assert_clear(error, "task.yaml", "2 rows of", "share subject and prediction time, but not the label")


VALUES = [None, True, False, 0, -1, 3, 1.5, math.nan, math.inf, 10**30, "", "x", "trigger", "goal", "start", "or(goal)"]


VALUES += ["(1, None)", "start -> goal", "trigger - 5d", "past.end", "a\nb", "*", [], ["goal"], {}, {"code": "GOAL"}]


VALUES += [datetime.date(2000, 1, 5), [None], {"goal": None}, {"any": ["GOAL"]}, "é" * 2000]


def damage(task: object, rng: random.Random) -> object:
    """Replaces, removes, renames, repeats or swaps a value somewhere in a task."""
    places = []

    def walk(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(task)
    node, key = rng.choice(places)
    other, elsewhere = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0:
        node[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 1:
        del node[key]
    elif kind == 2 and isinstance(node, dict):
        node[rng.choice(["x", 3, "goal", "code", "expr", "label", "subject_id", "any"])] = node.pop(key)
    elif kind == 3:
        node[key] = copy.deepcopy(other[elsewhere])
    else:
        node[key] = [node[key]] if rng.random() < 0.5 else {"code": node[key]}
    return task


def check_random_tasks(folder, shard, seeds) -> dict[str, int]:
    """Damages tasks; each ends in labels whose index dates are all counted, or in one line that names the file."""
    ends = {"labels": 0, "one line": 0}
    yaml = YAML(typ="safe", pure=True)
    for seed in seeds:
        rng = random.Random(seed)
        task = yaml.load(ACES if seed % 3 else TIME_TO_EVENT)
        for _ in range(rng.choice([1, 1, 2])):
            task = damage(task, rng)
        with (folder / "task.yaml").open("w", encoding="utf-8") as file:
            try:
                yaml.dump(task, file)
            except Exception:  # keys of several types, which YAML does not sort: no file
                continue
        try:
            made = make_labels(load_task(folder / "task.yaml"), [shard])
        except ValueError as error:
            message = str(error)
            assert "\n" not in message and "task.yaml" in message and len(message) < 1000, (seed, message)
            assert not any(str(subject) in message for subject in SUBJECTS), (seed, message)
            ends["one line"] += 1
        else:
            assert made.labels.height + sum(made.dropped.values()) == made.counts["index dates"], (seed, task)
            assert not made.labels.select("subject_id", "prediction_time").null_count().sum_horizontal().item(), seed
            if made.labels.height:  # what the command writes can be read
                label(str(folder / "task.yaml"), str(shard.parents[1]), folder / "labels.parquet")
                assert len(read_labels([folder / "labels.parquet"])) == made.labels.height
            ends["labels"] += 1
    return ends


def test_some_randomly_damaged_tasks(tmp_path, shard):
    ends = check_random_tasks(tmp_path, shard, range(60))
    assert ends["labels"] > 5 and ends["one line"] > 20


@pytest.mark.slow
def test_many_randomly_damaged_tasks(tmp_path, shard):
    ends = check_random_tasks(tmp_path, shard, range(100, 1100))
    assert ends["labels"] > 100 and ends["one line"] > 400
