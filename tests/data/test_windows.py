import collections
import datetime

import numpy as np
import pytest

from behrt_jax.data import windows as data_windows
from behrt_jax.data.dataset import MICROSECONDS
from behrt_jax.data.hashing import hash_fraction
from behrt_jax.data.vocabulary import CLS, SEP, UNK
from tests.data.handmade import only, patients_of, random_patients, visits_by_patient

DAY = 1440
YEAR = 365.25 * DAY


def minutes_since_2000(moment: datetime.datetime) -> int:
    return round((moment - datetime.datetime(2000, 1, 1)) / datetime.timedelta(minutes=1))


def newest(
    patients, row_length: int, salt: int = data_windows.EVALUATION_SALT, use_sep: bool = True
) -> dict[str, np.ndarray]:
    """The columns of all patients' newest windows."""
    index = data_windows.index_visits(patients, row_length, use_sep)
    windows = data_windows.newest_windows(index)
    return data_windows.build_columns(patients, index, windows, np.arange(len(patients)), salt)


def static_counts(patients) -> np.ndarray:
    return np.add.reduceat(patients.visits < 0, patients.offsets[:-1])


def grow(costs: list[int], budget: int, chosen: int) -> tuple[int, int]:
    """Extends a window from one visit to newer ones, then to older ones, while the budget lasts."""
    start, stop, left = chosen, chosen + 1, budget - costs[chosen]
    while stop < len(costs) and costs[stop] <= left:
        left -= costs[stop]
        stop += 1
    while start > 0 and costs[start - 1] <= left:
        left -= costs[start - 1]
        start -= 1
    return start, stop


def test_a_patient_token_by_token():
    visits = [[(10, 0)], [(11, 2 * DAY), (UNK, 2 * DAY + 60)], [(12, 10 * DAY)]]
    found = newest(patients_of({"static": [20, 21], "visits": visits}), 32)
    assert found["codes"].tolist() == [CLS, 20, 21, 10, SEP, 11, UNK, SEP, 12, SEP]
    assert found["visit_ids"].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert found["positions"].tolist() == list(range(10))
    assert found["time_deltas"].tolist() == [0, 0, 0, 0, 0, 2, 2, 2, 8, 8]
    assert found["maskable"].tolist() == [token in (10, 11, 12) for token in found["codes"]]
    minutes = [0, 0, 0, 0, 0, 2 * DAY, 2 * DAY + 60, 2 * DAY + 60, 10 * DAY, 10 * DAY]
    np.testing.assert_allclose(found["ages"], np.array(minutes) / YEAR, rtol=1e-6)
    assert found["time_ranks"].tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert found.pop("times").tolist() == [-1, -1, -1, *(minute * MICROSECONDS for minute in minutes[3:])]
    assert {name: column.dtype for name, column in found.items()} == data_windows.COLUMNS


def test_a_window_that_begins_late_counts_visits_from_0_and_time_from_the_visit_before():
    visits = [[(10, 5 * DAY), (11, 6 * DAY)], [(12, 9 * DAY)], [(13, 9 * DAY + 720)]]
    # 8 tokens: [CLS], one static code, two visits of two tokens; the first would take three more.
    found = newest(patients_of({"static": [20], "visits": visits}), 8)
    assert found["codes"].tolist() == [CLS, 20, 12, SEP, 13, SEP]
    assert found["visit_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    assert found["positions"].tolist() == list(range(6))
    assert found["time_deltas"].tolist() == [0, 0, 4, 4, 0.5, 0.5]
    np.testing.assert_allclose(found["ages"] * YEAR / DAY, [9, 9, 9, 9, 9.5, 9.5], rtol=1e-6)


def test_ages_are_unknown_without_a_birth():
    people = [{"visits": [[(10, YEAR)]]}, {"visits": [[(10, YEAR)]], "birth": False}]
    found = newest(patients_of(*people), 8)["ages"]
    assert found[:3].tolist() == [1, 1, 1] and np.isnan(found[3:]).all() and len(found) == 6


@pytest.mark.parametrize("use_sep", [True, False])
@pytest.mark.parametrize("birth", [True, False])
def test_dates_are_years_since_2000_with_or_without_a_birth(birth, use_sep):
    origin = datetime.datetime(1999, 11, 3, 7, 30)
    first, second, third = (origin + datetime.timedelta(minutes=minutes) for minutes in (0, 90 * DAY, 90 * DAY + 45))
    person = {"static": [20], "visits": [[(10, 0)], [(11, 90 * DAY), (12, 90 * DAY + 45)]], "birth": birth}
    patients = patients_of({**person, "origin": minutes_since_2000(origin)})
    found = newest(patients, 16, use_sep=use_sep)
    moments = [first, first, first, first, second, third, third]
    kept = [True, True, True, use_sep, True, True, use_sep]
    expected = [minutes_since_2000(moment) for moment, keep in zip(moments, kept, strict=True) if keep]
    assert expected[0] < 0 < expected[-1]
    np.testing.assert_allclose(found["dates"] * YEAR, expected, atol=0.5)

    # A window that begins with the second visit: [CLS] and the static token take its start.
    found = newest(patients_of({**person, "visits": [[(9, 0)] * 6, person["visits"][1]], "origin": 0}), 8)
    np.testing.assert_allclose(found["dates"] * YEAR / DAY, [90] * 3 + [90 + 45 / DAY] * 2, atol=1e-3)


def test_dates_beyond_int32():
    origin = 2**31 - 1
    found = newest(patients_of({"visits": [[(10, 600 * YEAR)]], "origin": origin}), 8)
    np.testing.assert_allclose(found["dates"], origin / YEAR + 600, rtol=1e-6)


@pytest.mark.parametrize("row_length", [8, 13, 24, 100])
def test_newest_windows_are_what_a_loop_finds(row_length):
    patients = random_patients(1, 200)
    index = data_windows.index_visits(patients, row_length)
    windows = data_windows.newest_windows(index)
    statics = np.minimum(static_counts(patients), row_length // 2 - 1)
    for i, visits in enumerate(visits_by_patient(patients)):
        costs = [len(visit) + 1 for visit in visits]
        budget = row_length - 1 - statics[i]
        start, stop = grow(costs, budget, len(visits) - 1)
        assert (windows.start[i], windows.stop[i]) == (index.first_visit[i] + start, index.first_visit[i] + stop)
        cut = max(costs[-1] - budget, 0)
        assert windows.skipped[i] == cut
        assert windows.lengths[i] == 1 + statics[i] + sum(costs[start:stop]) - cut <= row_length


@pytest.mark.parametrize("row_length", [8, 13, 24])
def test_random_windows_are_what_a_loop_finds(row_length):
    patients = random_patients(2, 200)
    index = data_windows.index_visits(patients, row_length)
    for salt in (1, 2, 3):
        windows = data_windows.random_windows(index, patients.subject_ids, salt)
        for i, visits in enumerate(visits_by_patient(patients)):
            chosen = int(hash_fraction(salt, patients.subject_ids[i]) * len(visits))
            start, stop = grow([len(visit) + 1 for visit in visits], index.budgets[i], chosen)
            assert (windows.start[i], windows.stop[i]) == (index.first_visit[i] + start, index.first_visit[i] + stop)
        assert 1 <= windows.lengths.min() and windows.lengths.max() <= row_length


@pytest.mark.parametrize("use_sep", [True, False])
@pytest.mark.parametrize("row_length", [8, 13, 24, 60])
def test_covering_windows_hold_every_visit_with_a_past(row_length, use_sep):
    """Each visit is added by one window; before it lies half a row, save a visit that did not fit, or all there is."""
    patients = random_patients(8, 120, most_visits=25, most_codes=9)
    index = data_windows.index_visits(patients, row_length, use_sep)
    windows, added = data_windows.covering_windows(index)
    owners = windows.patients
    assert (index.first_visit[owners] <= windows.start).all() and (windows.stop <= index.first_visit[owners + 1]).all()
    assert (windows.start <= added).all() and (added < windows.stop).all() and windows.lengths.max() <= row_length
    everything = np.concatenate([np.arange(*part) for part in zip(added, windows.stop, strict=True)])
    assert sorted(everything) == list(range(index.first_visit[-1]))
    costs = np.diff(index.ends)
    long_visits = several = 0
    for window in range(len(owners)):
        budget, start, first = index.budgets[owners[window]], windows.start[window], added[window]
        seen = costs[start : windows.stop[window]]
        assert windows.skipped[window] == max(seen.sum() - budget, 0) and (
            not windows.skipped[window] or seen.size == 1
        )
        is_first = first == index.first_visit[owners[window]]
        new = costs[first : windows.stop[window]]
        room = budget if is_first else budget // 2
        assert new.size == 1 or new.sum() <= room
        if windows.stop[window] < index.first_visit[owners[window] + 1]:  # no room is wasted
            assert new.sum() + costs[windows.stop[window]] > room
        past = np.concatenate([costs[start:first], new[:1]]).sum()
        assert start == index.first_visit[owners[window]] or past + costs[start - 1] > budget // 2
        long_visits += bool(windows.skipped[window])
        several += not is_first
    assert several > 100 and (long_visits > 10 or row_length > 8)


def test_covering_windows_by_hand():
    """Row of 9, so 8 for visits of 2 tokens: four, then two more at a time with the two before them; then another."""
    visits = [[(10 + number, number * DAY)] for number in range(7)]
    index = data_windows.index_visits(patients_of({"visits": visits}, {"visits": visits[:2]}), 9)
    windows, added = data_windows.covering_windows(index)
    found = zip(windows.patients, windows.start, added, windows.stop, strict=True)
    assert sorted(tuple(map(int, window)) for window in found) == [
        (0, 0, 0, 4),
        (0, 2, 4, 6),
        (0, 3, 6, 7),
        (1, 7, 7, 9),
    ]


def test_windows_until_are_of_the_patients_named():
    patients = random_patients(9, 40, most_visits=12)
    index = data_windows.index_visits(patients, 16)
    by_patient = visits_by_patient(patients)
    rng = np.random.default_rng(0)
    owners = rng.integers(0, 40, 200)
    stops = np.array([rng.integers(index.first_visit[i], index.first_visit[i + 1]) + 1 for i in owners])
    windows = data_windows.windows_until(index, stops, owners)
    for window, (i, stop) in enumerate(zip(owners, stops - index.first_visit[owners], strict=True)):
        costs = [len(visit) + 1 for visit in by_patient[i][:stop]]
        start, _ = grow(costs, index.budgets[i], len(costs) - 1)
        assert windows.start[window] == index.first_visit[i] + start and windows.patients[window] == i
        kept = min(sum(costs[start:]), index.budgets[i])
        assert windows.lengths[window] == 1 + index.static_counts[i] + kept


@pytest.mark.parametrize("row_length", [8, 13, 24])
def test_windows_without_separators_use_the_room(row_length):
    patients = random_patients(2, 200, most_codes=12)
    index = data_windows.index_visits(patients, row_length, use_sep=False)
    by_patient = visits_by_patient(patients)
    found = [(data_windows.newest_windows(index), [len(visits) - 1 for visits in by_patient], 0)]
    for salt in (1, 2, 3):
        fractions = hash_fraction(salt, patients.subject_ids)
        chosen = [int(fraction * len(visits)) for fraction, visits in zip(fractions, by_patient, strict=True)]
        found.append((data_windows.random_windows(index, patients.subject_ids, salt), chosen, salt))
    cut = 0
    for windows, chosen, salt in found:
        columns = data_windows.build_columns(patients, index, windows, np.arange(len(patients)), salt)
        assert SEP not in columns["codes"] and windows.lengths.sum() == len(columns["codes"])
        assert windows.lengths.max() <= row_length
        ends = np.cumsum(windows.lengths)
        for i, visits in enumerate(by_patient):
            start, stop = grow([len(visit) for visit in visits], index.budgets[i], chosen[i])
            assert (windows.start[i], windows.stop[i]) == (index.first_visit[i] + start, index.first_visit[i] + stop)
            seen = slice(ends[i] - windows.lengths[i], ends[i])
            assert columns["positions"][seen].tolist() == list(range(windows.lengths[i]))
            assert columns["codes"][seen][0] == CLS
            skipped = windows.skipped[i]
            assert skipped == max(len(visits[start]) - index.budgets[i], 0) and (not skipped or stop == start + 1)
            cut += skipped > 0
            expected = [token for visit in visits[start:stop] for token in visit][skipped:]
            inside = slice(seen.start + 1 + index.static_counts[i], seen.stop)
            assert sorted(columns["codes"][inside]) == sorted(patients.codes[expected])
            visit_ids = patients.visits[expected] - patients.visits[expected[0]]
            assert columns["visit_ids"][inside].tolist() == visit_ids.tolist()
            np.testing.assert_allclose(
                columns["dates"][inside] * YEAR, patients.origins[i] + patients.minutes[expected], atol=5
            )
    assert cut > 20 or row_length > 13


def test_a_patient_without_separators_token_by_token():
    visits = [[(10, 0)], [(11, 2 * DAY), (UNK, 2 * DAY + 60)], [(12, 10 * DAY), (13, 10 * DAY + 5)]]
    patients = patients_of({"static": [20, 21], "visits": visits})
    # 8 tokens: [CLS], two static codes and five others, which just fit; three [SEP] do not.
    found = newest(patients, 8, use_sep=False)
    assert found["codes"].tolist() == [CLS, 20, 21, 10, 11, UNK, 12, 13]
    assert found["visit_ids"].tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert found["positions"].tolist() == list(range(8))
    assert found["time_deltas"].tolist() == [0, 0, 0, 0, 2, 2, 8, 8]
    assert found["maskable"].tolist() == [token in (10, 11, 12, 13) for token in found["codes"]]
    np.testing.assert_allclose(found["ages"] * YEAR / DAY, [0, 0, 0, 0, 2, 2 + 1 / 24, 10, 10 + 5 / DAY], rtol=1e-5)
    assert newest(patients, 8)["codes"].tolist() == [CLS, 20, 21, 12, 13, SEP]


def test_windows_hold_whole_visits_but_for_the_oldest_codes_of_a_long_one():
    patients = random_patients(3, 100, most_codes=20)
    index = data_windows.index_visits(patients, 16)
    by_patient = visits_by_patient(patients)
    cut = 0
    for salt in range(1, 6):
        windows = data_windows.random_windows(index, patients.subject_ids, salt)
        columns = data_windows.build_columns(patients, index, windows, np.arange(len(patients)), salt)
        ends = np.cumsum(windows.lengths)
        for i, end in enumerate(ends):
            codes = columns["codes"][end - windows.lengths[i] : end]
            seen = [visit.tolist() for visit in np.split(codes, np.flatnonzero(codes == SEP) + 1)[:-1]]
            seen[0] = seen[0][1 + index.static_counts[i] :]
            whole = by_patient[i][windows.start[i] - index.first_visit[i] : windows.stop[i] - index.first_visit[i]]
            if windows.skipped[i]:
                assert len(whole) == 1
                whole = [whole[0][windows.skipped[i] :]]
                cut += 1
            expected = [sorted(patients.codes[visit].tolist()) for visit in whole]
            assert [sorted(visit[:-1]) for visit in seen] == expected
    assert cut > 20


def test_a_visit_longer_than_a_row_keeps_its_newest_codes():
    visits = [[(9, 0)], [(10 + number, DAY + number) for number in range(40)]]
    patients = patients_of({"static": [50], "visits": visits})
    found = newest(patients, 16)
    assert found["codes"].tolist() == [CLS, 50, *range(10 + 40 - 13, 50), SEP]
    assert set(found["time_deltas"][2:].tolist()) == {1.0}


def test_every_visit_of_a_long_patient_is_drawn_sooner_or_later():
    visits = [[(10 + number, number * DAY), (100, number * DAY)] for number in range(60)]
    patients = patients_of({"visits": visits})
    index = data_windows.index_visits(patients, 16)
    seen = collections.Counter()
    for salt in range(1, 1000):
        windows = data_windows.random_windows(index, patients.subject_ids, salt)
        seen.update(range(windows.start[0], windows.stop[0]))
    assert set(seen) == set(range(60))
    # The first visit is in a window only when it is drawn itself; those that follow others also come along with them.
    assert min(seen.values()) == seen[0] > 5


def test_windows_and_order_depend_on_seed_epoch_and_patient_alone():
    patients = random_patients(4, 60)
    index = data_windows.index_visits(patients, 16)
    windows = data_windows.random_windows(index, patients.subject_ids, 77)
    mine = np.arange(5, 60, 7)
    some = only(patients, mine)
    few = data_windows.index_visits(some, 16)
    alone = data_windows.random_windows(few, some.subject_ids, 77)
    assert (alone.start - few.first_visit[:-1]).tolist() == (windows.start - index.first_visit[:-1])[mine].tolist()
    among = data_windows.build_columns(patients, index, windows, mine, 77)
    apart = data_windows.build_columns(some, few, alone, np.arange(len(mine)), 77)
    for name in data_windows.COLUMNS:
        np.testing.assert_array_equal(among[name], apart[name])


def test_windows_differ_by_epoch_and_by_patient():
    visits = [[(10, number * DAY)] for number in range(100)]
    patients = patients_of(*[{"id": 1000 + number, "visits": visits} for number in range(50)])
    index = data_windows.index_visits(patients, 16)
    starts = [
        data_windows.random_windows(index, patients.subject_ids, salt).start - index.first_visit[:-1] for salt in (1, 2)
    ]
    assert len(set(starts[0].tolist())) > 20
    assert (starts[0] != starts[1]).mean() > 0.8


def test_windows_hold_visits_as_often_as_they_weigh():
    """Rows hold one visit here; one of weight 0 is never drawn, one of weight 3 three times as often as one of 1."""
    patients = patients_of({"visits": [[(10 + number, number * DAY)] * 13 for number in range(4)]})
    index = data_windows.index_visits(patients, 16)
    weights = np.array([1.0, 0.0, 3.0, 1.0])
    drawn = [data_windows.random_windows(index, patients.subject_ids, salt, weights).start[0] for salt in range(2000)]
    counts = np.bincount(drawn, minlength=4)
    assert counts[1] == 0 and abs(counts - 400 * weights).max() < 4.5 * np.sqrt(2000 * 0.6 * 0.4)
    nothing = data_windows.random_windows(index, patients.subject_ids, 0, np.zeros(4))
    assert nothing.lengths[0] > 1 and 0 <= nothing.start[0] < nothing.stop[0] <= 4


def moment_codes(salt: int, codes=range(10, 22), subject: int = 1) -> list[int]:
    patients = patients_of({"id": subject, "visits": [[(code, DAY) for code in codes]]})
    return newest(patients, 32, salt)["codes"].tolist()[1:-1]


def test_codes_of_a_moment_are_shuffled_by_epoch_and_patient():
    assert moment_codes(5) == moment_codes(5)
    orders = {tuple(moment_codes(salt)) for salt in range(20)}
    assert len(orders) == 20
    assert all(sorted(order) == list(range(10, 22)) for order in orders)
    assert tuple(range(10, 22)) not in orders
    assert moment_codes(5, subject=2) != moment_codes(5)


def test_evaluation_has_one_order_that_does_not_depend_on_the_files():
    first = moment_codes(data_windows.EVALUATION_SALT)
    assert first != sorted(first) and first != sorted(first, reverse=True)
    assert moment_codes(data_windows.EVALUATION_SALT, codes=range(21, 9, -1)) == first


def test_each_place_in_a_moment_is_as_likely():
    places = np.array([moment_codes(salt).index(10) for salt in range(1, 1201)])
    counts = np.bincount(places, minlength=12)
    # Chi-squared with 11 degrees of freedom, here below its 0.1% point.
    assert ((counts - 100) ** 2 / 100).sum() < 31.3


def test_codes_of_different_moments_keep_their_order():
    visits = [[(10, 0), (11, 0), (12, 0), (13, 5), (14, 5), (15, 9)], [(16, 9), (17, 9), (18, 10)]]
    orders = set()
    for salt in range(30):
        codes = newest(patients_of({"visits": visits}), 16, salt)["codes"].tolist()
        parts = [codes[1:4], codes[4:6], codes[6:7], codes[7:8], codes[8:10], codes[10:]]
        assert [set(part) for part in parts] == [{10, 11, 12}, {13, 14}, {15}, {SEP}, {16, 17}, {18, SEP}]
        orders.add(tuple(codes))
    assert len(orders) > 10


def test_times_stay_with_their_codes_when_shuffled():
    patients = random_patients(6, 80)
    found = newest(patients, 100, salt=3)
    ages = collections.defaultdict(set)
    for i, visits in enumerate(visits_by_patient(patients)):
        for visit in visits:
            ages[i].update((patients.codes[token], np.float32(patients.minutes[token] / YEAR)) for token in visit)
    starts = np.flatnonzero(found["codes"] == CLS)
    statics = static_counts(patients)
    for i, (start, stop) in enumerate(zip(starts, [*starts[1:], len(found["codes"])], strict=True)):
        inside = slice(start + 1 + statics[i], stop)
        pairs = zip(found["codes"][inside], found["ages"][inside], strict=True)
        pairs = {(code, age) for code, age in pairs if code != SEP}
        if patients.has_birth[i]:
            assert pairs == ages[i]


def test_only_known_codes_of_visits_are_maskable():
    patients = random_patients(5, 100)
    found = newest(patients, 24)
    special = np.isin(found["codes"], (CLS, SEP, UNK))
    assert special.sum() > 300 and not found["maskable"][special].any()
    statics = np.minimum(static_counts(patients), 11)
    starts = np.flatnonzero(found["codes"] == CLS)
    static = np.concatenate([np.arange(start + 1, start + 1 + n) for start, n in zip(starts, statics, strict=True)])
    assert not found["maskable"][static].any()
    rest = np.ones(len(special), bool)
    rest[static] = False
    assert found["maskable"][rest & ~special].all()


def test_many_static_codes_are_cut_to_half_a_row_and_counted():
    many = {"static": list(range(100, 130)), "visits": [[(10, 0)], [(11, 1)], [(12, 2)]]}
    few = {"static": [100], "visits": [[(10, 0)]]}
    patients = patients_of(many, few)
    found = newest(patients, 16)
    assert found["codes"].tolist() == [CLS, *range(100, 107), 10, SEP, 11, SEP, 12, SEP, CLS, 100, 10, SEP]
    index = data_windows.index_visits(patients, 16)
    assert data_windows.window_report(index, data_windows.newest_windows(index))["static_codes_cut"] == 23


def test_report_of_what_is_cut():
    whole = {"visits": [[(10, 0)], [(11, 1)]]}
    shortened = {"visits": [[(10, day * DAY)] for day in range(10)]}
    long_visit = {"visits": [[(10, 0)], [(10 + number, number) for number in range(1, 21)]]}
    index = data_windows.index_visits(patients_of(whole, shortened, long_visit), 8)
    # Seven tokens beside [CLS]: three visits of one code; or six codes of the long visit and its [SEP].
    assert data_windows.window_report(index, data_windows.newest_windows(index)) == {
        "patients": 3,
        "patients_cut": 2,
        "visits_cut": 7 + 1,
        "visits": 14,
        "codes_cut_in_long_visits": 14,
        "static_codes_cut": 0,
    }


def test_bundled_patients_in_sequence(bundled_train):
    """Each token but [CLS] and [SEP] is the patient's own, and at most a row of them."""
    index = data_windows.index_visits(bundled_train, 256)
    windows = data_windows.newest_windows(index)
    found = data_windows.build_columns(bundled_train, index, windows, np.arange(len(bundled_train)), 0)
    assert windows.lengths.max() <= 256 and windows.lengths.sum() == len(found["codes"])
    assert (found["codes"] == CLS).sum() == len(bundled_train)
    assert (found["codes"] == SEP).sum() == (windows.stop - windows.start).sum()
    assert (found["time_deltas"] >= 0).all() and (found["ages"] >= 0).all() and found["ages"].max() < 120
    births = (found["dates"] - found["ages"]).astype(np.float64)
    owners = np.repeat(np.arange(len(bundled_train)), windows.lengths)
    np.testing.assert_allclose(births * YEAR, bundled_train.origins[owners], atol=10)  # float32 at a hundred years
