"""Nothing recorded at or after the start of a visit reaches its prediction, to the bit, in rows that hold it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax.data import batches, next_visit_targets
from behrt_jax.data.windows import index_visits
from behrt_jax.models.inputs import device_columns
from behrt_jax.models.pretraining import BEHRTForPretraining
from behrt_jax.objectives import next_visit
from tests import tiny
from tests.data.handmade import overlapping_patients
from tests.models.drawn import parameters

V = tiny.VOCAB_SIZE
IS_TARGET = np.arange(V) >= 8
LENGTH = 48
ENCODERS = (
    {"rotary": "ages"},
    {"rotary": "none", "position_encoding": "learned"},
    {"encoder": "lstm", "rotary": "none"},
)

pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


@pytest.fixture(scope="module")
def rows():
    """Packed rows as training lays them out, with times, and what they hold of visits to predict."""
    patients = overlapping_patients(5, 30, V)
    index = index_visits(patients, LENGTH)
    batch = batches.batch_of(patients, index, batches.training_epoch(patients, index, 0, 0), 0, 6)
    find = jax.jit(lambda batch: next_visit.find_boundaries(batch, jnp.asarray(IS_TARGET), True))
    return batch, jax.device_get(find(device_columns(batch)))


@functools.cache
def scorer(number: int):
    model = BEHRTForPretraining(tiny.config(num_layers=2, **ENCODERS[number]), ("next_visit",), 1, True)
    params = parameters(model)
    score = functools.partial(next_visit.score_next_visits, model, params)
    return jax.jit(lambda batch, ends, gaps: score(batch, ends, gaps=gaps))


def test_visits_are_read_at_the_last_token_recorded_before_they_begin(rows):
    batch, found = rows
    overlaps = total = 0
    for row, owners in enumerate(batch["patient_ids"]):
        expected = []
        for place in range(1, LENGTH):
            same = (owners == owners[place]) & (owners > 0)
            visit = same & (batch["visit_ids"][row] == batch["visit_ids"][row, place])
            past = np.flatnonzero(same & (batch["times"][row] < batch["times"][row, place]))
            if owners[place] and np.flatnonzero(visit)[0] == place and (batch["times"][row, past] >= 0).any():
                end = max(past, key=lambda each: (batch["times"][row, each], each))
                expected.append((end, place))
                overlaps += end != place - 1
        used = len(expected)
        assert found.weights[row].tolist() == [1.0] * used + [0.0] * (found.weights.shape[1] - used)
        assert list(zip(found.ends[row, :used], found.starts[row, :used], strict=True)) == expected
        total += used
    assert total > 20 and overlaps > 5


@pytest.mark.parametrize("number", range(len(ENCODERS)))
@pytest.mark.parametrize("time_known", [False, True])
def test_no_token_recorded_later_changes_a_bit(rows, number, time_known):
    batch, found = rows
    columns, score = device_columns(batch), scorer(number)
    gaps = np.asarray(next_visit.days_ahead(columns, found)) if time_known else np.full(found.ends.shape, np.nan)
    before = jax.device_get(score(columns, found.ends, gaps))
    checked = 0
    for row, slot in np.argwhere(found.weights > 0)[::3]:
        start = found.starts[row, slot]
        same = batch["patient_ids"][row] == batch["patient_ids"][row, start]
        later = same & (batch["times"][row] >= batch["times"][row, start])
        earlier = same & ~later & (batch["codes"][row] >= 5)
        for places, changes in ((later, False), (earlier, True)):
            other = {name: values.copy() for name, values in columns.items()}
            other["codes"][row, places] = 5 + (other["codes"][row, places] + 7) % (V - 5)
            after = jax.device_get(score(other, found.ends, gaps))
            equal = all(np.array_equal(old[row, slot], new[row, slot]) for old, new in zip(before, after, strict=True))
            assert equal != changes, (row, slot)
        checked += 1
    assert checked > 5


def test_evaluation_reads_the_states_that_training_reads():
    """Windows that hold whole patients are the same rows for both."""
    patients = overlapping_patients(9, 12, V)
    index = index_visits(patients, 256)
    examples = next_visit_targets.find_next_visits(patients, index, IS_TARGET)
    score = scorer(0)
    checked = 0
    for batch, ends, which, gaps in next_visit_targets.boundary_batches(patients, index, examples, 2):
        columns = device_columns(batch)
        find = jax.jit(lambda batch: next_visit.find_boundaries(batch, jnp.asarray(IS_TARGET), True))
        found = jax.device_get(find(columns))
        theirs = {
            (row, found.ends[row, slot], found.starts[row, slot]): slot for row, slot in np.argwhere(found.weights)
        }
        days = np.asarray(next_visit.days_ahead(columns, found))
        for row, slot in np.argwhere(which >= 0):
            own = batch["patient_ids"][row] == batch["patient_ids"][row, ends[row, slot]]
            visit = (
                batch["window_starts"][row, batch["patient_ids"][row, ends[row, slot]] - 1] + batch["visit_ids"][row]
            )
            start = np.flatnonzero(own & (visit == examples.visits[which[row, slot]]))[0]
            assert (row, ends[row, slot], start) in theirs
            assert days[row, theirs[row, ends[row, slot], start]] == pytest.approx(gaps[row, slot], abs=0.02)
            checked += 1
        assert np.isfinite(score(columns, ends, gaps)[0]).all()
    assert checked == len(examples) > 10


@pytest.mark.slow
def test_a_model_given_no_time_predicts_as_if_it_could_not_be_given_one(rows):
    batch, found = rows
    columns = device_columns(batch)
    model = BEHRTForPretraining(tiny.config(num_layers=2, **ENCODERS[0]), ("next_visit",), 1, True)
    params = parameters(model)
    plain = BEHRTForPretraining(model.config, ("next_visit",), 1)
    without = {"params": {name: value for name, value in params["params"].items() if name != "next_gap"}}
    nothing, known = np.full(found.ends.shape, np.nan), np.full(found.ends.shape, 30.0)
    expected, days = next_visit.score_next_visits(plain, without, columns, found.ends)
    np.testing.assert_array_equal(next_visit.score_next_visits(model, params, columns, found.ends)[0], expected)
    found_logits, found_days = next_visit.score_next_visits(model, params, columns, found.ends, gaps=nothing)
    np.testing.assert_array_equal(found_logits, expected)
    logits, known_days = next_visit.score_next_visits(model, params, columns, found.ends, gaps=known)
    assert (np.asarray(logits) != expected).any()
    np.testing.assert_array_equal(known_days, days)  # the days are never told
    np.testing.assert_array_equal(found_days, days)
