"""Events ahead: as a loop over the tokens finds them, and in rows at the ends of visits."""

import numpy as np
import pytest

from behrt_jax.data import batches, event_targets, windows
from tests.data.handmade import only, patients_of, random_patients, visits_by_patient

DAY = 1440
VOCAB_SIZE = 60
IS_TARGET = np.isin(np.arange(VOCAB_SIZE), np.arange(20, 40))


def by_loop(patients, codes) -> tuple[np.ndarray, np.ndarray]:
    """Returns (visits, T) minutes to each code's next visit, or to the end, and whether it comes."""
    minutes, happened, times = [], [], patients.times
    for visits in visits_by_patient(patients):
        ends = [max(patients.minutes[visit]) for visit in visits]
        own = [token for visit in visits for token in visit]
        for visit, end in zip(visits, ends, strict=True):
            row, comes, last = [], [], max(times[visit])
            for code in codes:
                later = [token for token in own if patients.codes[token] == code and times[token] > last]
                until = min((int(patients.minutes[token]) for token in later), default=None)
                comes.append(until is not None)
                row.append((max(ends) if until is None else until) - end)
            minutes.append(row)
            happened.append(comes)
    return np.array(minutes), np.array(happened)


def assert_as_by_loop(patients, is_target, row_length=64):
    index = windows.index_visits(patients, row_length)
    times = event_targets.index_events(patients, index, is_target)
    np.testing.assert_array_equal(times.codes, np.flatnonzero(is_target))
    days, happened = times.after(np.arange(len(times.ends)))
    minutes, comes = by_loop(patients, times.codes)
    np.testing.assert_array_equal(happened, comes)
    np.testing.assert_allclose(days, np.maximum(minutes, 1) / DAY, rtol=1e-6)
    assert days.dtype == np.float32 and (days > 0).all()
    order = np.random.default_rng(0).integers(0, len(times.ends), 50)
    for found, expected in zip(times.after(order), (days[order], happened[order]), strict=True):
        np.testing.assert_array_equal(found, expected)
    return happened


@pytest.mark.parametrize("seed", [0, 1])
def test_events_are_what_a_loop_finds(seed):
    happened = assert_as_by_loop(random_patients(seed, 60, most_visits=12, vocabulary=VOCAB_SIZE), IS_TARGET)
    assert 0.05 < happened.mean() < 0.95


@pytest.mark.slow
def test_events_of_bundled_patients_are_what_a_loop_finds(bundled, bundled_train):
    sizes = np.diff(bundled_train.offsets)
    few = only(bundled_train, np.argsort(sizes)[len(sizes) // 2 :][:20])
    is_target = np.zeros(len(bundled.vocabulary), bool)
    is_target[5:65] = True
    assert assert_as_by_loop(few, is_target, 256).any()


@pytest.mark.parametrize("seed", [0, 1])
def test_only_first_events_count_where_they_alone_are_asked_for(seed):
    """A code that was had by then has no day at risk; of the others, the next is the first."""
    patients = random_patients(seed, 60, most_visits=12, vocabulary=VOCAB_SIZE)
    index = windows.index_visits(patients, 64)
    later, first = (event_targets.index_events(patients, index, IS_TARGET, first) for first in (False, True))
    every = np.arange(len(later.ends))
    (days, happened), (first_days, first_happened) = later.after(every), first.after(every)
    had = []
    for visits in visits_by_patient(patients):
        for number in range(len(visits)):
            before = {patients.codes[token] for visit in visits[: number + 1] for token in visit}
            had.append([code in before for code in later.codes])
    had = np.array(had)
    assert 0.05 < had.mean() < 0.95 and (had & happened).any()
    np.testing.assert_array_equal(first_days, np.where(had, 0, days))
    np.testing.assert_array_equal(first_happened, happened & ~had)


def small():
    """One patient: code 20 after 10 days and 21 after 20; then one without events, and one with 20 a minute later."""
    return patients_of(
        {"visits": [[(9, 0)], [(20, 10 * DAY)], [(21, 20 * DAY)]]},
        {"visits": [[(9, 0)], [(9, 4 * DAY)]]},
        {"visits": [[(9, 7), (20, 9)], [(20, 10)]]},
    )


def hand_times(patients=None):
    patients = small() if patients is None else patients
    is_target = np.isin(np.arange(30), (20, 21))
    return event_targets.index_events(patients, windows.index_visits(patients, 16), is_target)


def test_events_by_hand():
    days, happened = hand_times().after(np.array([0, 1, 2, 3, 4, 5, 6]))
    least = 1 / DAY
    expected = [[10, 20], [10, 10], [least, least], [4, 4], [least, least], [least, least], [least, least]]
    np.testing.assert_allclose(days, expected, rtol=1e-6)
    assert happened.tolist() == [[1, 1], [0, 1], [0, 0], [0, 0], [0, 0], [1, 0], [0, 0]]


def test_a_split_without_an_event():
    days, happened = hand_times(patients_of({"visits": [[(9, 0)], [(9, DAY)]]})).after(np.array([0, 1]))
    assert not happened.any()
    np.testing.assert_allclose(days, [[1, 1], [1 / DAY] * 2], rtol=1e-6)


@pytest.mark.parametrize("num_visits", [1, 4, 30])
def test_rows_name_the_ends_of_visits_and_what_comes_after_them(num_visits):
    patients = random_patients(4, 60, most_visits=10, vocabulary=VOCAB_SIZE)
    index = windows.index_visits(patients, 48)
    times = event_targets.index_events(patients, index, IS_TARGET)
    batch = batches.batch_of(patients, index, batches.training_epoch(patients, index, 0, 0), 0, 6)
    found = times.add(batch, num_visits, 7)
    assert found.keys() - batch.keys() == {"event_ends", "event_weights", "event_days", "event_happened"}
    assert all(found[name] is values for name, values in batch.items())
    shape = (6, num_visits)
    assert found["event_ends"].shape == found["event_weights"].shape == shape
    assert found["event_days"].shape == found["event_happened"].shape == (*shape, 20)
    rows, places, visits = batches.visit_ends(batch)
    for row in range(6):
        drawn = found["event_weights"][row] == 1
        known = dict(zip(places[rows == row], visits[rows == row], strict=True))
        ends = found["event_ends"][row, drawn].tolist()
        assert drawn.sum() == len(set(ends)) == min(num_visits, len(known)) and set(ends) <= set(known)
        assert (found["event_weights"][row, ~drawn] == 0).all() and (found["event_days"][row, ~drawn] == 1).all()
        days, happened = times.after(np.array([known[end] for end in ends]))
        np.testing.assert_array_equal(found["event_days"][row, drawn], days)
        np.testing.assert_array_equal(found["event_happened"][row, drawn], happened)


def test_visits_of_a_row_are_drawn_anew_with_each_salt_and_each_is_as_likely():
    visits = [[(9 + number, number * DAY)] for number in range(10)]
    patients = patients_of({"visits": visits})
    index = windows.index_visits(patients, 32)
    times = event_targets.index_events(patients, index, IS_TARGET)
    batch = batches.batch_of(patients, index, batches.evaluation_epoch(index), 0, 1)
    drawn = [times.add(batch, 3, salt)["event_ends"][0] for salt in range(600)]
    np.testing.assert_array_equal(times.add(batch, 3, 5)["event_ends"][0], drawn[5])
    places, counts = np.unique(np.concatenate(drawn), return_counts=True)
    np.testing.assert_array_equal(places, np.arange(2, 21, 2))  # [CLS], then a code and [SEP] a visit
    assert abs(counts - 180).max() < 4.5 * np.sqrt(600 * 0.3 * 0.7)


def test_edges_by_hand():
    """The events lie 10, 20 and 10 days ahead; a patient without any gives no edge; a minute is 0.001 days."""
    times = hand_times(only(small(), np.array([0])))
    assert event_targets.fit_edges(times, 1) == ()
    assert event_targets.fit_edges(times, 2) == (10.0,)
    assert event_targets.fit_edges(times, 4) == (10.0, 15.0)
    assert event_targets.fit_edges(times, 3) == (10.0, 13.333)
    assert event_targets.fit_edges(times, 3, digits=2) == (10.0, 13.0)
    assert event_targets.fit_edges(hand_times(only(small(), np.array([1]))), 4) == ()
    assert event_targets.fit_edges(hand_times(only(small(), np.array([2]))), 4) == (0.001,)


def test_edges_part_bundled_events_into_even_bins(bundled, bundled_train):
    index = windows.index_visits(bundled_train, 256)
    is_target = np.zeros(len(bundled.vocabulary), bool)
    is_target[5:25] = True
    times = event_targets.index_events(bundled_train, index, is_target)
    edges = event_targets.fit_edges(times, 8)
    assert len(edges) == 7 and list(edges) == sorted(edges) and edges[0] > 0
    days, happened = times.after(np.random.default_rng(0).integers(0, len(times.ends), 3000))
    shares = np.bincount(np.searchsorted(edges, days[happened]), minlength=8) / happened.sum()
    assert 0.08 < shares.min() and shares.max() < 0.17


def test_rates_by_hand():
    """Half an event is added to each: 1 of 20 in 20 days and a minute, 2 of 21 in 30; the others as if 0 in 30."""
    found = event_targets.log_rates(hand_times(only(small(), np.array([0]))), 30)
    minute = 1 / DAY
    expected = np.full(30, 0.5 / (30 + minute))
    expected[20], expected[21] = 1.5 / (20 + minute), 2.5 / (30 + minute)
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-5)
    assert found.dtype == np.float32


def test_rates_by_age_are_those_of_the_data():
    """Twice as many events a year at 60 as at 20, of a code that everyone may have; none of a code without events."""
    rng, people = np.random.default_rng(0), []
    for age, rate in ((20, 0.3), (60, 0.6)):
        for _ in range(800):
            until = rng.exponential(365.25 / rate)
            last = [(20, int(until * DAY))] if until < 2 * 365 else [(9, 2 * 365 * DAY)]
            people.append({"visits": [[(9, 0)], last], "age": age})
    begin = [round(each.pop("age") * 365.25 * DAY) for each in people]
    aged = [
        {"visits": [[(code, start + minutes) for code, minutes in visit] for visit in each["visits"]]}
        for each, start in zip(people, begin, strict=True)
    ]
    patients = patients_of(*aged)
    times = event_targets.index_events(patients, windows.index_visits(patients, 16), np.isin(np.arange(30), (20, 21)))
    found = event_targets.age_rates(times, 30)
    assert found.shape == (11, 30) and found.dtype == np.float32
    assert found[6, 20] - found[2, 20] == pytest.approx(np.log(2), abs=0.2) and found[6, 20] > 0 > found[2, 20]
    assert abs(found[:, np.arange(30) != 20]).max() == 0  # 21 among them, without events
    np.testing.assert_allclose(found[[0, 9], 20], 0, atol=1e-6)  # nobody of that age: nothing but the prior


def test_unknown_ages_have_the_rate_of_all_ages():
    patients = patients_of({"visits": [[(9, 0)], [(20, 10 * DAY)]], "birth": False})
    times = event_targets.index_events(patients, windows.index_visits(patients, 16), np.isin(np.arange(30), (20, 21)))
    assert np.isnan(times.ages).all()
    np.testing.assert_array_equal(event_targets.age_rates(times, 30), 0)


def test_by_time_visits_count_for_the_years_until_the_next():
    year = 365.25
    visits = [[(9, 0)], [(9, int(0.5 * year * DAY))], [(20, int(3 * year * DAY))]]
    patients = patients_of({"visits": visits}, {"visits": visits[:2]})
    index = windows.index_visits(patients, 16)
    times = event_targets.index_events(patients, index, np.isin(np.arange(30), (20, 21)), by_time=True)
    np.testing.assert_allclose(times.weights, [0.5, 1, 0, 0.5, 0], atol=1e-5)
    batch = times.add(batches.batch_of(patients, index, batches.evaluation_epoch(index), 0, 1), 8, 0)
    np.testing.assert_allclose(np.sort(batch["event_weights"][0]), [0, 0, 0, 0, 0, 0.5, 0.5, 1], atol=1e-5)
    assert times.spread(200).tolist() == [0, 1, 3]
