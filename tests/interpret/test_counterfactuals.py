"""Histories with codes and visits taken out and put in: what is left is what data preparation would have made."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax.data import batches, dataset
from behrt_jax.data import histories as data_histories
from behrt_jax.data import windows as data_windows
from behrt_jax.data.vocabulary import CLS, SEP, UNK
from behrt_jax.interpret import counterfactuals

LENGTH = 128


@pytest.fixture(scope="module")
def patients(bundled_train):
    """Thirty patients; histories longer than a row, and with several visits; half of the codes of visits have a value.

    Repeats of a code in a visit share their value, as of several it is not clear which goes.
    """
    found = dataset.take(bundled_train, np.arange(len(bundled_train)) < 30)
    has_value = (found.visits >= 0) & (found.codes % 2 == 0)
    return dataclasses.replace(found, values=np.where(has_value, found.codes, np.nan).astype(np.float32))


@pytest.fixture(scope="module")
def columns(patients):
    return batches.one_a_row(patients, LENGTH)


remove = jax.jit(counterfactuals.remove_tokens)


def rebuilt(patients, row: int, kept: np.ndarray) -> dict:
    """The row of one patient as data preparation lays it out without some tokens, no older visit moving in."""
    before = data_windows.index_visits(patients, LENGTH)
    first = data_windows.newest_windows(before).start[row] - before.first_visit[row]
    own = dataset.take(patients, np.arange(len(patients)) == row)
    columns = {name: column[kept] for name, column in own.columns.items()}
    new = dataclasses.replace(own, offsets=np.array([0, kept.sum()]), **columns)
    index = data_windows.index_visits(new, LENGTH)
    skipped = data_windows.newest_windows(before).skipped[row]
    length = 1 + index.static_counts[0] + index.ends[-1] - index.ends[first] - skipped
    ends = (np.array([value]) for value in (0, first, len(index.ends) - 1, skipped, length))
    return batches.one_a_row(new, LENGTH, windows=data_windows.Windows(*ends))


def tokens_of(patients, columns, row: int, removed: np.ndarray) -> np.ndarray:
    """Which tokens of a patient are kept where some of its row, (L,), are removed; None if that is not clear."""
    index = data_windows.index_visits(patients, LENGTH)
    start, owned = data_windows.newest_windows(index).start[row], slice(*patients.offsets[row : row + 2])
    kept = np.ones(patients.offsets[row + 1] - patients.offsets[row], bool)
    for place in np.flatnonzero(removed & (columns["codes"][row] != SEP)):
        visit = patients.visits[index.starts[0][start + columns["visit_ids"][row, place]]]
        same = (patients.codes[owned] == columns["codes"][row, place]) & (patients.visits[owned] == visit)
        kept[np.flatnonzero(same & kept)[0]] = False
    return kept


def starts_of_visits(columns, row: int) -> np.ndarray:
    visits = np.where(columns["in_visit"][row], columns["visit_ids"][row], -1)
    return columns["in_visit"][row] & (visits != np.pad(visits[:-1], (1, 0), constant_values=-1))


def test_removing_nothing_changes_nothing(columns):
    for name, values in remove(columns, np.zeros_like(columns["in_visit"])).items():
        np.testing.assert_array_equal(values, columns[name], err_msg=name)
        assert values.dtype == columns[name].dtype


def test_removing_codes_is_what_preparation_makes_without_them(patients, columns):
    rng, compared = np.random.default_rng(0), 0
    lasting = columns["in_visit"] & (columns["codes"] > UNK)  # of several [UNK] in a visit it is not clear which goes
    for _ in range(4):
        # The first code of a visit says when it starts; what follows from that is left as it was.
        removed = lasting & (rng.random(lasting.shape) < 0.1)
        removed &= ~np.stack([starts_of_visits(columns, row) for row in range(len(removed))])
        found = remove(columns, removed)
        for row in range(len(removed)):
            expected = rebuilt(patients, row, tokens_of(patients, columns, row, removed[row]))
            for name, values in expected.items():
                np.testing.assert_array_equal(np.asarray(found[name])[row], values[0], err_msg=name)
            compared += 1
    assert compared == 4 * len(patients)


def test_removing_visits_is_what_preparation_makes_without_them(patients, columns):
    rng = np.random.default_rng(1)
    drawn = rng.random((len(patients), LENGTH)) < 0.3
    removed = np.take_along_axis(drawn, columns["visit_ids"], axis=1) & columns["in_visit"]
    some_left = (columns["in_visit"] & ~removed).any(axis=1)
    # A row cannot tell a patient's first visit from one that began at the minute of the one before it.
    windows = data_windows.newest_windows(data_windows.index_visits(patients, LENGTH))
    older = windows.start > data_windows.index_visits(patients, LENGTH).first_visit[:-1]
    begins = np.argmax(columns["in_visit"], axis=1)
    some_left &= ~(older & (columns["time_deltas"][np.arange(len(begins)), begins] == 0))
    found = remove(columns, removed)
    for row in np.flatnonzero(some_left):
        expected = rebuilt(patients, row, tokens_of(patients, columns, row, removed[row]))
        for name, values in expected.items():
            if name == "time_deltas":
                np.testing.assert_allclose(np.asarray(found[name])[row], values[0], rtol=1e-5, err_msg=name)
            else:
                np.testing.assert_array_equal(np.asarray(found[name])[row], values[0], err_msg=name)
    assert some_left.sum() > 20 and removed[some_left].any(axis=1).sum() > 10


def test_a_visit_without_codes_is_gone_and_a_mark_stays(patients):
    times = np.full(len(patients), np.datetime64("2030-01-01", "us"))
    histories, _, _ = data_histories.histories_at(patients, patients.subject_ids, times)
    columns = batches.one_a_row(data_histories.append_prediction_token(histories, times, LENGTH), LENGTH)
    codes = columns["in_visit"] & (columns["codes"] >= UNK)
    found = jax.device_get(remove(columns, codes))
    assert (found["in_visit"].sum(axis=1) == 2).all()  # the mark and its [SEP]
    assert (found["codes"][:, 0] == CLS).all() and (found["visit_ids"] == 0).all()
    last = np.take_along_axis(columns["ages"], columns["patient_ids"].sum(axis=1, keepdims=True) - 1, axis=1)
    np.testing.assert_array_equal(found["ages"][:, :1], last)


def test_what_is_added_and_removed_again_leaves_no_trace(columns):
    row = int(np.argmin(columns["patient_ids"].sum(axis=1)))  # with room
    history = {name: values[row : row + 1] for name, values in columns.items()} | {"covariates": np.ones((1, 13))}
    visit = int(history["visit_ids"].max() // 2)
    codes = [UNK + 7, UNK + 9]
    wider = counterfactuals.add_codes(history, codes, visit)
    assert (wider["patient_ids"].sum() - history["patient_ids"].sum()) == 2
    added = wider["in_visit"] & (wider["visit_ids"] == visit)
    assert wider["codes"][added].tolist()[-3:] == [*codes, SEP]
    assert np.isnan(wider["values"][added][-3:]).all() and (~np.isnan(history["values"])).any()
    places = np.flatnonzero(added)[-3:-1]
    removed = np.zeros_like(added)
    removed[0, places] = True
    for name, values in counterfactuals.remove_tokens(wider, removed).items():
        np.testing.assert_array_equal(values, history[name], err_msg=name)
    longer = counterfactuals.add_visit(history, codes, days=30.0)
    assert longer["visit_ids"].max() == history["visit_ids"].max() + 1
    last = np.flatnonzero(longer["patient_ids"][0])[-3:]
    assert longer["codes"][0, last].tolist() == [*codes, SEP] and (longer["time_deltas"][0, last] == 30).all()
    np.testing.assert_allclose(longer["ages"][0, last] - history["ages"][0].max(), 30 / 365.25, atol=0.1)
    for name, values in counterfactuals.remove_visit(longer, int(longer["visit_ids"].max())).items():
        np.testing.assert_array_equal(values, history[name], err_msg=name)


def test_a_visit_is_added_before_the_mark(patients):
    row = int(np.argmin(np.diff(patients.offsets)))
    own = dataset.take(patients, np.arange(len(patients)) == row)
    last = own.minutes.max() / (60 * 24)
    births = np.datetime64("2000-01-01", "us") + np.timedelta64(int(own.origins[0]), "m")
    times = np.array([births + np.timedelta64(int(last) + 100, "D")])
    marked = batches.one_a_row(data_histories.append_prediction_token(own, times, LENGTH), LENGTH)
    found = counterfactuals.add_visit(marked, [UNK + 3], days=40.0)
    inside = np.flatnonzero(found["in_visit"][0])
    assert found["codes"][0, inside[-4:]].tolist() == [UNK + 3, SEP, SEP, SEP]
    assert found["visit_ids"][0, inside[-4:]].tolist() == [
        int(marked["visit_ids"].max()) + step for step in (0, 0, 1, 1)
    ]
    total = marked["time_deltas"][0, inside[-3]]
    np.testing.assert_allclose(found["time_deltas"][0, inside[-4:]], [40, 40, total - 40, total - 40], rtol=1e-5)
    with pytest.raises(ValueError, match="^days: found 200; expected more than 0 and at most"):
        counterfactuals.add_visit(marked, [UNK + 3], days=200.0)


def test_what_cannot_be_done_is_told(columns):
    history = {name: values[:1] for name, values in columns.items()}
    with pytest.raises(ValueError, match="^visit: found 99; expected a visit of the row, 0 to"):
        counterfactuals.add_codes(history, [UNK], 99)
    with pytest.raises(ValueError, match="^columns: found 1 rows, .* places taken; expected one row with room for 500"):
        counterfactuals.add_codes(history, [UNK] * 500, 0)
    with pytest.raises(ValueError, match="^columns: found 30 rows"):
        counterfactuals.add_codes(columns, [UNK], 0)


def test_removing_a_code_or_visit_by_name(columns):
    code = int(columns["codes"][0][columns["maskable"][0]][0])
    assert code not in np.asarray(counterfactuals.remove_code(columns, code)["codes"])
    fewer = counterfactuals.remove_visit(columns, 1)
    several = columns["visit_ids"].max(axis=1) >= 1
    visits = jnp.asarray(fewer["visit_ids"]).max(axis=1)
    np.testing.assert_array_equal(visits[several], columns["visit_ids"].max(axis=1)[several] - 1)
