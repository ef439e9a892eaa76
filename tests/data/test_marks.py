"""Marks between visits: nothing else changes, none comes before what it follows, and events count from them."""

import dataclasses

import numpy as np
import pytest

from behrt_jax.data import dataset, event_targets, windows
from behrt_jax.data.prepare import prepare
from behrt_jax.data.vocabulary import SEP
from tests.data.handmade import patients_of, visits_by_patient

DAY = 1440


@pytest.fixture(scope="module")
def by_day(bundled_config):
    """The bundled patients, a day a visit: of the data's own visits one or another nearly always goes on."""
    return dataset.read(prepare(dataclasses.replace(bundled_config, visits="day")).folder, "train")


@pytest.fixture(scope="module")
def marked(by_day):
    return event_targets.insert_query_tokens(by_day, seed=3)


def test_without_marks_patients_are_as_they_were(by_day, marked):
    own = marked.codes != SEP
    assert (~own).any() and (by_day.codes != SEP).all()
    for name in ("codes", "minutes"):
        np.testing.assert_array_equal(getattr(marked, name)[own], getattr(by_day, name))
    np.testing.assert_array_equal(np.bincount(marked.owners[own]), np.diff(by_day.offsets))
    before, after = (windows.index_visits(found, 256) for found in (by_day, marked))
    assert len(after.ends) - len(before.ends) == (~own).sum() == len(marked.codes) - len(by_day.codes)


def test_marks_come_after_all_before_them_and_before_the_next_visit(marked):
    index = windows.index_visits(marked, 256)
    starts, stops = index.starts
    alone = np.flatnonzero(marked.codes[starts] == SEP)
    assert (stops - starts)[alone].max() == 1
    for visit in alone[:: len(alone) // 200]:
        owner = index.owners[visit]
        at = marked.minutes[starts[visit]]
        first = starts[index.first_visit[owner]]
        assert first < starts[visit] and marked.minutes[first : starts[visit]].max() < at
        assert visit + 1 < index.first_visit[owner + 1] and at < marked.minutes[starts[visit + 1]]


def test_long_pauses_all_hold_a_mark_and_short_ones_in_proportion_at_any_time_of_them(by_day, marked):
    before, after = (windows.index_visits(found, 256) for found in (by_day, marked))
    starts, owners = before.starts[0], before.owners
    ends = np.array([by_day.minutes[a:b].max() for a, b in before.starts.T])
    latest = np.array([ends[before.first_visit[owner] : visit + 1].max() for visit, owner in enumerate(owners)])
    pauses = by_day.minutes[starts[1:]] - latest[:-1]
    pauses = pauses[(owners[1:] == owners[:-1]) & (pauses > 1)] / DAY
    alone = np.flatnonzero(marked.codes[after.starts[0]] == SEP)
    where = marked.minutes[after.starts[0][alone]]
    first = after.starts[0][after.first_visit[after.owners[alone]]]
    since = np.array([marked.minutes[a:b].max() for a, b in zip(first, after.starts[0][alone], strict=True)])
    held = (marked.minutes[after.starts[0][alone + 1]] - since) / DAY
    assert (held >= 365.25).sum() == (pauses >= 365.25).sum() > 1000
    for low, high in ((10, 60), (60, 200), (200, 360)):
        expected = pauses[(pauses >= low) & (pauses < high)] / 365.25
        assert abs(((held >= low) & (held < high)).sum() - expected.sum()) < 4 * np.sqrt(expected.sum())
    shares = ((where - since) / DAY / held)[held > 1]  # in pauses of minutes there are few times to choose from
    np.testing.assert_allclose(np.quantile(shares, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.02)


def test_marks_are_of_the_patient_and_the_seed(by_day, marked):
    chosen = np.arange(len(by_day)) % 3 == 1
    few = event_targets.insert_query_tokens(dataset.take(by_day, chosen), seed=3)
    for name in ("codes", "visits", "minutes", "microseconds"):
        np.testing.assert_array_equal(getattr(few, name), getattr(dataset.take(marked, chosen), name))
    other = event_targets.insert_query_tokens(by_day, seed=4)
    assert (other.codes == SEP).sum() != (marked.codes == SEP).sum()


def test_of_visits_that_overlap_the_later_end_counts():
    long = {"static": [7], "visits": [[(9, 0), (9, 40 * DAY)], [(9, 10 * DAY)], [(9, 20 * DAY)], [(20, 60 * DAY)]]}
    found = event_targets.insert_query_tokens(patients_of(long), seed=0, days=20)
    assert found.codes.tolist() == [7, 9, 9, 9, 9, SEP, 20]
    assert found.visits.tolist() == [-1, 0, 0, 1, 2, 3, 4]
    assert 40 * DAY < found.minutes[5] < 60 * DAY


def test_events_count_from_marks():
    found = event_targets.insert_query_tokens(patients_of({"visits": [[(9, 0)], [(20, 10 * DAY)]]}), seed=0, days=10)
    assert len(visits_by_patient(found)[0]) == 3
    times = event_targets.index_events(found, windows.index_visits(found, 64), np.arange(60) == 20)
    days, happened = times.after(np.array([0, 1]))
    assert happened.all() and days[0, 0] == pytest.approx(10)
    assert days[1, 0] == pytest.approx(10 - found.minutes[1] / DAY) and 0 < days[1, 0] < 10
