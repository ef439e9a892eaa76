"""Visits that overlap: what is predicted for a time is read from what was recorded before it, to the second."""

import numpy as np
import pytest

from behrt_jax.baselines import next_visit_features
from behrt_jax.data import batches, event_targets, next_visit_targets
from behrt_jax.data import windows as data_windows
from behrt_jax.data.dataset import MICROSECONDS
from behrt_jax.data.vocabulary import NUM_SPECIAL
from tests.data.handmade import overlapping_patients, patients_of, visits_by_patient

VOCAB_SIZE = 60
IS_TARGET = np.isin(np.arange(VOCAB_SIZE), np.arange(20, 40))
DAY = 1440


@pytest.fixture(scope="module")
def made():
    patients = overlapping_patients(0, 80, VOCAB_SIZE)
    index = data_windows.index_visits(patients, 48)
    return patients, index, next_visit_targets.find_next_visits(patients, index, IS_TARGET)


def past_of(patients, owner: int, start: int) -> list[list[int]]:
    """The tokens of each visit of a patient that were recorded before a time; visits without one are left out."""
    times = patients.times
    visits = [[token for token in visit if times[token] < start] for visit in visits_by_patient(patients)[owner]]
    return [visit for visit in visits if visit]


def test_examples_are_the_visits_that_began_after_something_was_recorded(made):
    patients, index, examples = made
    expected, without_past, number = [], 0, 0
    for owner, visits in enumerate(visits_by_patient(patients)):
        had_target = False
        for visit in visits:
            start = int(patients.times[visit[0]])
            held = set(patients.codes[visit][IS_TARGET[patients.codes[visit]]].tolist())
            past = past_of(patients, owner, start)
            without_past += bool(held and had_target and not past)
            if held and had_target and past:
                before = {int(patients.codes[token]) for visit in past for token in visit}
                expected.append((number, owner, start, held, before & set(np.flatnonzero(IS_TARGET).tolist())))
            had_target |= bool(held)
            number += 1
    assert len(expected) > 100 and without_past
    assert examples.visits.tolist() == [each[0] for each in expected]
    assert examples.patients.tolist() == [each[1] for each in expected]
    assert examples.starts.tolist() == [each[2] for each in expected]
    seen = examples.seen_before()
    for row, (*_, held, before) in enumerate(expected):
        assert set(examples.codes[examples.targets[[row]].toarray()[0]].tolist()) == held
        assert set(examples.codes[seen[row]].tolist()) == before


@pytest.mark.parametrize("half_life", [np.inf, 2.0])
def test_histories_of_baselines_hold_what_was_recorded_before(made, half_life):
    patients, index, examples = made
    known = next_visit_features.describe_histories(patients, index, examples, VOCAB_SIZE)
    past = next_visit_features.past_codes(patients, index, examples, VOCAB_SIZE, half_life).toarray()
    counts, last = known.counts.toarray(), known.last.toarray()
    assert examples.late.shape[1] > 100
    for row in range(len(examples)):
        owner, start = examples.patients[row], examples.starts[row]
        visits = past_of(patients, owner, start)
        expected, faded = np.zeros(VOCAB_SIZE), np.zeros(VOCAB_SIZE)
        for ago, visit in enumerate(reversed(visits)):
            held = np.unique(patients.codes[visit])
            held = held[held >= NUM_SPECIAL]
            expected[held] += 1
            faded[held] += 0.5 ** (ago / half_life)
        np.testing.assert_array_equal(counts[row], expected)
        np.testing.assert_allclose(past[row], faded, atol=1e-5)
        held = patients.codes[visits[-1]]
        assert set(np.flatnonzero(last[row]).tolist()) == set(held[held >= NUM_SPECIAL].tolist())
        newest = max(int(patients.times[token]) for visit in visits for token in visit)
        days = MICROSECONDS * DAY
        assert known.visits[row] == len(visits)
        assert known.ahead[row] == pytest.approx((start - newest) / days) and known.ahead[row] > 0
        assert known.since_start[row] == pytest.approx((newest - patients.times[visits[-1][0]]) / days)
        if patients.has_birth[owner]:
            assert known.ages[row] == pytest.approx(newest / days / 365.25)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("row_length", [24, 48, 128])
def test_each_example_is_read_at_the_last_token_recorded_before_it(row_length, cut):
    patients = overlapping_patients(row_length, 60, VOCAB_SIZE)
    index = data_windows.index_visits(patients, row_length)
    examples = next_visit_targets.find_next_visits(patients, index, IS_TARGET)
    seen = np.zeros(len(examples), int)
    for batch, ends, which, gaps in next_visit_targets.boundary_batches(patients, index, examples, 3, cut):
        for row, slot in np.argwhere(which >= 0):
            example, place = which[row, slot], ends[row, slot]
            seen[example] += 1
            owner, start = batch["patient_ids"][row, place], examples.starts[example]
            assert batch["patient_index"][row, owner - 1] == examples.patients[example]
            own = batch["patient_ids"][row] == owner
            past = own & (batch["times"][row] < start)
            assert place == max(np.flatnonzero(past), key=lambda each: (batch["times"][row, each], each))
            assert gaps[row, slot] == pytest.approx((start - batch["times"][row, place]) / MICROSECONDS / DAY, rel=1e-6)
            if cut:
                assert past[own].all()
    np.testing.assert_array_equal(seen, 1)


def test_positions_and_ranks_follow_recording_times(made):
    patients, _, _ = made
    index = data_windows.index_visits(patients, 512)
    whole = batches.one_a_row(patients, 512)
    for row in range(len(patients)):
        own = np.flatnonzero(whole["patient_ids"][row])
        ranks, places = whole["time_ranks"][row, own], whole["positions"][row, own]
        assert sorted(places.tolist()) == list(range(len(own))) and ranks[0] == 0
        in_time = own[np.argsort(places)]
        assert (np.diff(whole["time_ranks"][row, in_time]) >= 0).all()
        codes = whole["codes"][row, in_time]
        tokens = np.arange(patients.offsets[row] + index.static_counts[row], patients.offsets[row + 1])
        by_time = patients.codes[tokens][np.argsort(patients.times[tokens], kind="stable")]
        kept = whole["in_visit"][row, in_time] & (codes != 2)
        times = np.sort(patients.times[tokens])
        for rank in np.unique(whole["time_ranks"][row, in_time[kept]]):
            together = whole["time_ranks"][row, in_time] == rank
            assert sorted(codes[kept & together].tolist()) == sorted(
                by_time[times == np.unique(times)[rank - 1]].tolist()
            )


def test_windows_of_one_patient_side_by_side_keep_their_own_codes():
    """Two windows that hold the same visit are not shuffled into each other."""
    visit = [(code, 0.0) for code in range(20, 30)]
    patients = patients_of({"visits": [visit, [(40, 500.0)], [(41, 600.0)]]})
    index = data_windows.index_visits(patients, 64)
    windows = data_windows.windows_until(index, np.array([1, 2]), np.zeros(2, int))
    columns = data_windows.build_columns(patients, index, windows, np.arange(2), 3)
    first, second = np.split(columns["codes"], [windows.lengths[0]])
    assert sorted(first.tolist()) == [1, 2, *range(20, 30)]
    assert sorted(second.tolist()) == [1, 2, 2, *range(20, 30), 40]


@pytest.mark.parametrize("first", [False, True])
def test_time_to_event_targets_begin_after_all_that_was_recorded_by_the_end_of_a_visit(made, first):
    patients, index, _ = made
    times = event_targets.index_events(patients, index, IS_TARGET, first)
    recorded = patients.times
    days, happened = times.after(np.arange(len(index.owners)))
    number = 0
    for visits in visits_by_patient(patients):
        tokens = [token for visit in visits for token in visit]
        last = max(int(patients.minutes[token]) for token in tokens)
        for visit in visits:
            end = recorded[visit[-1]]
            for column, code in enumerate(np.flatnonzero(IS_TARGET)):
                own = [token for token in tokens if patients.codes[token] == code]
                later = [int(patients.minutes[token]) for token in own if recorded[token] > end]
                had = len(later) < len(own)
                if first and had:
                    assert not happened[number, column] and days[number, column] == 0
                    continue
                assert happened[number, column] == bool(later)
                until = min(later) if later else last
                expected = max((until - int(patients.minutes[visit[-1]])) / DAY, 1 / DAY)
                assert days[number, column] == pytest.approx(expected, rel=1e-5)
            number += 1
