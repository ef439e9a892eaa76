import datetime

import numpy as np
import polars as pl
import pytest

from behrt_jax.data import batches, histories, tokenize
from behrt_jax.data import windows as data_windows
from behrt_jax.data.dataset import TOKEN_FIELDS, Patients
from behrt_jax.data.sexes import sexes
from behrt_jax.data.values import FittedValues
from behrt_jax.data.vocabulary import CLS, MASK, SEP
from tests.data.handmade import START, assert_clear, patients_of, random_patients

DAY = 1440
FIELDS = ("subject_ids", "has_birth", "origins", "offsets", "codes", "visits", "minutes", "microseconds")


def when(minutes: float) -> np.datetime64:
    """So many minutes after the year 2000 begins."""
    return np.datetime64(START + datetime.timedelta(minutes=minutes), "us")


def times(*minutes: float) -> np.ndarray:
    return np.array([when(number) for number in minutes])


def assert_same(first: Patients, second: Patients) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


# Two visits that overlap: the first goes on after the second has begun.
OVERLAPPING = {
    "id": 7,
    "static": [50, 51],
    "visits": [
        [(10, 0), (11, 5 * DAY), (12, 9 * DAY)],
        [(13, 2 * DAY), (14, 2 * DAY), (15, 8 * DAY)],
        [(16, 20 * DAY)],
    ],
}


def history_of(row: int, patients: Patients) -> dict[str, list[int]]:
    own = slice(patients.offsets[row], patients.offsets[row + 1])
    return {name: getattr(patients, name)[own].tolist() for name in TOKEN_FIELDS}


def test_a_history_by_hand():
    patients = patients_of({"id": 3, "visits": [[(9, 0)]]}, {**OVERLAPPING, "origin": 100})
    found, kept, counts = histories.histories_at(patients, np.array([7, 7]), times(100 + 8 * DAY, 100 + 3 * DAY))
    assert history_of(0, found) == {
        "codes": [50, 51, 10, 11, 13, 14],
        "visits": [-1, -1, 0, 0, 1, 1],
        "minutes": [0, 0, 0, 5 * DAY, 2 * DAY, 2 * DAY],
        "microseconds": [0] * 6,
    }
    assert history_of(1, found) == {
        "codes": [50, 51, 10, 13, 14],
        "visits": [-1, -1, 0, 1, 1],
        "minutes": [0, 0, 0, 2 * DAY, 2 * DAY],
        "microseconds": [0] * 5,
    }
    assert found.subject_ids.tolist() == [7, 7] and found.origins.tolist() == [100, 100]
    assert kept.tolist() == [0, 1] and counts == {"without_history": 0}


@pytest.mark.parametrize("origin", [0, -3_000_001, 777])
def test_the_time_of_the_prediction_is_out_and_in_when_asked_for_to_the_microsecond(origin):
    """Nothing recorded a second after the prediction is ever in, nor is anything recorded a second before left out."""
    patients = patients_of({"visits": [[(10, 0)], [(11, 60)], [(12, 60.5)]], "origin": origin})
    second, microsecond = 1 / 60, 1 / 60_000_000
    cases = {60: ([10], [10, 11]), 60 + microsecond: ([10, 11],) * 2, 60.5 - second: ([10, 11],) * 2}
    cases |= {60.5: ([10, 11], [10, 11, 12]), 60.5 + microsecond: ([10, 11, 12],) * 2}
    for minute, expected in cases.items():
        for include_at in (False, True):
            found, _, _ = histories.histories_at(patients, np.array([1]), times(origin + minute), include_at)
            assert found.codes.tolist() == expected[include_at], (minute, include_at)


def test_rows_follow_the_predictions_and_those_without_a_history_are_counted():
    people = [{"id": 10 * number, "static": [50], "visits": [[(10 + number, number * DAY)]]} for number in range(1, 6)]
    patients = patients_of(*people)
    subjects = np.array([40, 20, 20, 50, 10, 30])
    predictions = times(5 * DAY, 2 * DAY, 3 * DAY, 4 * DAY, 2 * DAY, -9 * DAY)
    found, kept, counts = histories.histories_at(patients, subjects, predictions)
    assert kept.tolist() == [0, 2, 4] and counts["without_history"] == 3
    assert found.subject_ids.tolist() == [40, 20, 10]
    assert found.codes.tolist() == [50, 14, 50, 12, 50, 11]
    nobody, kept, counts = histories.histories_at(patients, subjects[:0], predictions[:0])
    assert len(nobody) == len(kept) == 0 and nobody.offsets.tolist() == [0] and counts["without_history"] == 0


def slow_history(patients: Patients, subject: int, minute: int) -> list[tuple[int, int, int, int]]:
    """Tokens of a patient before a minute since 2000 as (code, visit, minute, microsecond), in plain Python."""
    row = patients.subject_ids.tolist().index(subject)
    found, visits = [], {}
    for token in range(patients.offsets[row], patients.offsets[row + 1]):
        visit, when = int(patients.visits[token]), (int(patients.minutes[token]), int(patients.microseconds[token]))
        if visit < 0:
            found.append((int(patients.codes[token]), -1, 0, 0))
        elif int(patients.origins[row]) + int(patients.minutes[token]) < minute:
            found.append((int(patients.codes[token]), visits.setdefault(visit, len(visits)), *when))
    return found if visits else []


@pytest.mark.parametrize("rows", [7, 512])
def test_bundled_histories_are_what_a_loop_finds(bundled_train, rows, monkeypatch):
    monkeypatch.setattr(histories, "ROWS", rows)
    rng = np.random.default_rng(0)
    subjects = rng.choice(bundled_train.subject_ids, 60)
    minutes = rng.integers(-40 * 525_960, 25 * 525_960, 60)
    found, kept, counts = histories.histories_at(bundled_train, subjects, times(*minutes.tolist()))
    expected = [slow_history(bundled_train, *pair) for pair in zip(subjects, minutes.tolist(), strict=True)]
    assert kept.tolist() == [row for row in range(60) if expected[row]] and 5 < len(kept) < 60
    assert counts["without_history"] == 60 - len(kept)
    for place, row in enumerate(kept):
        own = history_of(place, found)
        assert list(zip(*own.values(), strict=True)) == expected[row]
    assert {getattr(found, name).dtype for name in TOKEN_FIELDS} == {np.dtype(np.int32)}


def patients_from(tmp_path, medical_events: list[tuple], meds_config) -> Patients:
    """Takes events (subject, minutes since 2000 or None, code number, visit) the way that prepared data goes."""
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "visit_id": pl.Int64}
    rows = [
        (subject, None if minute is None else START + datetime.timedelta(minutes=minute), code, visit)
        for subject, minute, code, visit in sorted(medical_events, key=lambda row: (row[0], row[1] or -1e9))
    ]
    shard = tmp_path / "shard.parquet"
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(shard)
    members = pl.DataFrame({"subject_id": sorted({row[0] for row in rows})})
    found = tokenize.tokenize(shard, meds_config, FittedValues({}), members, visits_named=True)
    found = found.with_columns(code_id=pl.col("token").str.strip_prefix("C").cast(pl.Int32))
    people = list(tokenize.split_patients(found))
    table = np.concatenate([person["tokens"] for person in people])
    return Patients(
        *(np.array([person[name] for person in people]) for name in ("subject_id", "has_birth", "origin")),
        np.cumsum([0, *(len(person["tokens"]) for person in people)]),
        *table.T.copy(),
    )


@pytest.fixture
def meds_config(bundled_config):
    return bundled_config


def random_events(seed: int, until: int) -> list[tuple]:
    """Events of 12 subjects in visits that overlap, several of them at a time, up to a minute."""
    rng, found = np.random.default_rng(seed), []
    for subject in range(1, 13):
        found.append((subject, None, "C5", None))
        if subject % 3:
            found.append((subject, 0, "MEDS_BIRTH", None))
        for visit in range(1, 7):
            start = int(rng.integers(1, until - 5))
            for minute in np.sort(start + rng.integers(0, until // 3, 5)):
                found += [(subject, int(minute), f"C{code}", visit) for code in rng.integers(10, 40, 3)]
    return [event for event in found if event[1] is None or event[1] < until]


NOW = 3000
FUTURES = {
    "nothing": lambda subject: [],
    "an event in the visit that goes on": lambda subject: [(subject, NOW, "C99", visit) for visit in (1, 3)],
    "events of a visit between others": lambda subject: [(subject, NOW + 3, "C10", 2), (subject, NOW + 4, "C11", 2)],
    "the answer at once": lambda subject: [(subject, NOW, "C98", 90), (subject, NOW, "C97", None)],
    "the answer later": lambda subject: [(subject, NOW + 900_000, "C98", 90)],
    "many visits": lambda subject: [(subject, NOW + 50 * visit, f"C{visit}", visit) for visit in range(5, 60)],
}


def every_batch(found: Patients) -> list[dict[str, np.ndarray]]:
    result = list(batches.evaluation_batches(found, 32, 4))
    index = data_windows.index_visits(found, 32)
    epoch = batches.training_epoch(found, index, seed=3, epoch=2)
    return result + [batches.batch_of(found, index, epoch, number, 4) for number in range(epoch.num_batches(4))]


@pytest.mark.parametrize("future", list(FUTURES)[1:])
@pytest.mark.parametrize("mark", [False, True])
def test_no_bit_depends_on_the_future(tmp_path, meds_config, future, mark):
    """Whatever is added at or after the prediction, moved or removed, histories and batches of them are the same."""
    past = random_events(1, NOW)
    results = []
    for name in ("nothing", future):
        added = [event for subject in range(1, 13) for event in FUTURES[name](subject)]
        patients = patients_from(tmp_path, past + added, meds_config)
        assert len(added) == 0 or (patients.codes >= 41).any() or name.startswith("events") or name == "many visits"
        found, kept, _ = histories.histories_at(patients, np.arange(1, 13).repeat(2), times(*[NOW, NOW - 700] * 12))
        assert len(kept) == 24
        results.append(
            (histories.append_prediction_token(found, times(*[NOW, NOW - 700] * 12), 32) if mark else found, patients)
        )
    (before, source), (after, other) = results
    assert len(source.codes) < len(other.codes)
    assert_same(before, after)
    for first, second in zip(every_batch(before), every_batch(after), strict=True):
        for name in first:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_the_past_matters(tmp_path, meds_config):
    """What the test above asks for would also hold of histories that lack everything."""
    past = random_events(1, NOW)
    found = [
        histories.histories_at(
            patients_from(tmp_path, past + added, meds_config), np.arange(1, 13), times(*[NOW] * 12), include_at
        )[0]
        for added, include_at in (
            ([], False),
            ([(4, NOW - 1, "C99", 3)], False),
            ([(4, NOW, "C99", 3)], True),
        )
    ]
    assert [(patients.codes == 99).sum() for patients in found] == [0, 1, 1]
    assert len(found[0].codes) + 1 == len(found[1].codes) == len(found[2].codes)


@pytest.mark.parametrize(("year", "fraction"), [(0, 0.5), (-30, 0.9)])
def test_seconds_of_birth_do_not_move_events(tmp_path, meds_config, year, fraction):
    birth = year * 525_600 + 40 / 60
    event = birth // 1 + 9000 + fraction
    events = [(1, birth, "MEDS_BIRTH", None), (1, birth + 5, "C9", 1), (1, event, "C10", 2)]
    patients = patients_from(tmp_path, events, meds_config)
    for later, include_at, expected in ((0, False, [9]), (0, True, [9, 10]), (1, False, [9, 10])):
        found, _, _ = histories.histories_at(patients, np.array([1]), times(event + later), include_at)
        assert found.codes.tolist() == expected


@pytest.mark.parametrize("use_sep", [True, False])
@pytest.mark.parametrize("row_length", [16, 64])
def test_the_newest_tokens_give_the_same_windows(bundled_train, row_length, use_sep):
    subjects = bundled_train.subject_ids[:150]
    predictions = times(*[15 * 525_960] * 150)
    whole, kept, _ = histories.histories_at(bundled_train, subjects, predictions)
    cut = histories.newest_visits(whole, row_length)
    np.testing.assert_array_equal(cut.subject_ids, whole.subject_ids)
    assert len(whole.codes) > 2 * len(cut.codes)
    for mark in (False, True):
        columns = []
        for patients in (whole, cut):
            if mark:
                patients = histories.append_prediction_token(patients, predictions[kept], row_length)
            index = data_windows.index_visits(patients, row_length, use_sep)
            windows = data_windows.newest_windows(index)
            columns.append(data_windows.build_columns(patients, index, windows, np.arange(len(kept)), 0))
        for name in columns[0]:
            np.testing.assert_array_equal(columns[0][name], columns[1][name], err_msg=name)


def test_a_visit_longer_than_the_newest_tokens_is_dated_by_the_one_before():
    visits = [[(9, 0)], [(8, DAY)], [(10 + number, 3 * DAY + number) for number in range(30)]]
    patients = patients_of({"static": [50], "visits": visits})
    found = histories.newest_visits(histories.histories_at(patients, np.array([1]), times(9 * DAY))[0], 16)
    assert found.codes.tolist() == [50, 8, *range(10, 40)]
    columns = next(batches.evaluation_batches(found, 16, 1))
    assert set(columns["time_deltas"][0, 2:].tolist()) == {2.0}


@pytest.mark.parametrize("token", [SEP, MASK])
@pytest.mark.parametrize("use_sep", [True, False])
def test_a_marked_history_token_by_token(use_sep, token):
    patients = patients_of({"static": [20], "visits": [[(10, 0)], [(11, 2 * DAY), (12, 3 * DAY)]]})
    now = times(10 * DAY + 0.5)
    found = histories.append_prediction_token(histories.histories_at(patients, np.array([1]), now)[0], now, 32, token)
    index = data_windows.index_visits(found, 32, use_sep)
    columns = data_windows.build_columns(found, index, data_windows.newest_windows(index), np.arange(1), 0)
    end = [SEP] if use_sep else []
    assert columns["codes"].tolist() == [CLS, 20, 10, *end, 11, 12, *end, token, *end]
    last = slice(-1 - use_sep, None)
    assert set(columns["time_deltas"][last].tolist()) == {8.0} and set(columns["visit_ids"][last].tolist()) == {2}
    assert columns["maskable"].tolist() == [code >= 10 and code != 20 for code in columns["codes"]]
    np.testing.assert_allclose(columns["ages"][last] * 365.25, 10, rtol=1e-6)
    np.testing.assert_allclose(columns["dates"][last] * 365.25, 10, rtol=1e-6)


@pytest.mark.parametrize("use_sep", [True, False])
@pytest.mark.parametrize("statics", [0, 2, 9])
def test_a_mark_leaves_the_newest_codes_of_a_long_visit(use_sep, statics):
    long_visit = [(10 + number, number) for number in range(60)]
    person = {"static": list(range(100, 100 + statics)), "visits": [[(9, 0)], long_visit]}
    patients = patients_of({"visits": [[(9, 0)]], "id": 1}, {**person, "id": 2})
    now = times(DAY, DAY)
    found = histories.append_prediction_token(histories.histories_at(patients, np.array([1, 2]), now)[0], now, 16)
    rows = next(batches.evaluation_batches(found, 16, 2, use_sep))
    codes = rows["codes"][rows["patient_ids"] > 0].tolist()
    start = 16 - 1 - min(statics, 7) - 3
    assert [code for code in codes if 9 < code < 100] == list(range(70 - start, 70))
    assert codes.count(9) == 1 + (not use_sep) and (rows["ages"] * 365.25 > 0.99).sum() == 2 + 2 * use_sep
    assert found.subject_ids.tolist() == [1, 2] and np.diff(found.offsets).tolist() == [2, statics + 1 + start + 1]


def test_ages_and_sexes():
    birth = [{"birth": True, "static": [6, 8]}, {"birth": False, "static": [7]}, {"birth": True}, {"static": [5]}]
    patients = patients_of(*[{**person, "visits": [[(5, DAY)]], "origin": 365 * DAY} for person in birth])
    ages = histories.ages_at(patients, times(*[365 * DAY + 2 * 365.25 * DAY] * 4))
    np.testing.assert_allclose(ages, [2, np.nan, 2, 2])
    tokens_ = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "A", "GENDER//F", "GENDER//M", "RACE//white")
    assert sexes(patients, tokens_).tolist() == ["F", "M", "", ""]


def test_predictions_that_cannot_be_are_refused_with_their_count():
    patients = random_patients(0, 5)
    subjects = patients.subject_ids[:3]
    with pytest.raises(ValueError) as error:
        histories.histories_at(patients, subjects + np.array([0, 1, 1000]), times(0, 0, 0))
    assert_clear(error, "subject_id: 2 of 3", "5 patients")
    with pytest.raises(ValueError) as error:
        histories.histories_at(patients, subjects, np.array([when(0), "NaT", "NaT"], "datetime64[us]"))
    assert_clear(error, "prediction_time: missing in 2 of 3")
    with pytest.raises(ValueError) as error:
        histories.histories_at(patients, subjects, np.array(["9999-12-31", "2010-01-01", "2010-01-01"], "M8[us]"))
    assert_clear(error, "prediction_time", "in 1 of 3 rows", "placeholder")


def test_traits_are_shares_of_ages_and_sexes():
    kinds = ({"static": [6]}, {"static": [7]}, {}, {"static": [7], "birth": False})
    patients = patients_of(*({"id": number, "visits": [[(9, 0)]], **kind} for number, kind in enumerate(kinds)))
    names = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "x", "GENDER//F", "GENDER//M", "x", "x")
    years = [43.0, 250.0, 0.5, 43.0]
    found = histories.covariates_at(patients, times(*(365.25 * DAY * each for each in years)), names)
    assert found.shape == (4, histories.NUM_COVARIATES) and found.dtype == np.float32
    shares, sex = np.split(found, [len(histories.AGE_KNOTS)], axis=1)
    assert sex.tolist() == [[1, 0], [0, 1], [0, 0], [0, 1]]
    expected = np.zeros((4, len(histories.AGE_KNOTS)))
    expected[0, 4:6], expected[1, -1], expected[2, :2] = [0.7, 0.3], 1, [0.95, 0.05]
    np.testing.assert_allclose(shares, expected, atol=1e-4)  # none where birth is unknown
