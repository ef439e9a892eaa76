"""What holds of every encoder, for histories that hypothesis draws: isolation, causality, order within a visit."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behrt_jax.models.behrt import BEHRT
from tests import tiny
from tests.models.drawn import apply, parameters

LENGTH = 16
PLAIN = {"visit_bias": False, "rotary": "none"}
MODELS = {
    "reference": {**PLAIN, "time_bins": 53, "time_bin_days": 7.0},
    "positions": {"rotary": "positions"},
    "all of time": {"rotary": "ages", "position_encoding": "sinusoidal"},
    "causal": {"causal": True},
    "causal, months": {"causal": True, "rotary": "ages", "position_encoding": "none"},
    "lstm": {"encoder": "lstm"},
    "values": {"value_encoding": "film"},
    "causal, values": {"causal": True, "value_encoding": "film"},
}
QUICK = ("reference", "causal, months", "causal, values", "lstm")
BLIND = ("causal", "causal, months", "causal, values", "lstm")  # to the future
UNORDERED = {
    "no rotation": {**PLAIN, "position_encoding": "none"},
    "rotated by age": {"position_encoding": "none", "rotary": "ages"},
}

few = settings(max_examples=12, deadline=None, derandomize=True, database=None)


pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


@functools.cache
def model_of(**overrides):
    return BEHRT(tiny.config(**{"num_layers": 2, **overrides}))


def hidden(model, batch):
    return apply(model, batch)


@st.composite
def rows(draw):
    """Lengths of the patients of one row, which may leave padding."""
    lengths, room = [], LENGTH
    for _ in range(draw(st.integers(1, 3))):
        if room >= 3:
            lengths.append(draw(st.integers(3, room)))
            room -= lengths[-1]
    return lengths


@st.composite
def batches(draw):
    """Two packed rows; some ages are unknown and patients stand anywhere among the padding."""
    batch = tiny.packed_batch([draw(rows()), draw(rows())], LENGTH, seed=draw(st.integers(0, 2**16)))
    del batch["patient_index"]
    for row in range(2):
        shift = draw(st.integers(0, int((batch["patient_ids"][row] == 0).sum())))
        batch = {name: values.copy() for name, values in batch.items()}
        for values in batch.values():
            values[row] = np.roll(values[row], shift)
    if draw(st.booleans()):
        batch["ages"][:, draw(st.integers(0, LENGTH - 1))] = np.nan
    return batch


seeds = st.integers(0, 2**16)


def redrawn(batch, places, seed, later=0):
    """Returns the batch with everything at some places drawn anew; visits from number `later` on."""
    rng, count = np.random.default_rng(seed), int(places.sum())
    batch = {name: values.copy() for name, values in batch.items()}
    batch["codes"][places] = (batch["codes"][places] + rng.integers(1, tiny.VOCAB_SIZE, count)) % tiny.VOCAB_SIZE
    batch["ages"][places] = rng.choice([np.nan, -1.0, 20.0, 71.0, 130.0, np.inf], count)
    batch["visit_ids"][places] = later + rng.integers(0, 9, count)
    batch["positions"][places] = rng.integers(0, 99, count)
    batch["time_deltas"][places] = rng.choice([-1.0, 0.0, 71.0, 9e9, np.inf], count)
    batch["dates"][places] = rng.choice([np.nan, -80.0, 3.5, 40.0, -np.inf], count)
    batch["values"][places] = rng.choice([np.nan, -9.0, 0.3, 40.0, -np.inf], count)
    return batch


@pytest.mark.parametrize("name", MODELS)
@few
@given(batch=batches(), seed=seeds, row=st.integers(0, 1))
def test_row_mates_and_padding_change_no_bit(name, batch, seed, row):
    model, ids = model_of(**MODELS[name]), batch["patient_ids"]
    own = np.zeros(ids.shape, bool)
    own[row] = ids[row] == 1 + seed % ids[row].max()
    changed = redrawn(batch, ~own, seed)
    rng = np.random.default_rng(seed)
    strangers = [number for number in range(4) if number != ids[own][0]]
    changed["patient_ids"][~own] = rng.choice(strangers, int((~own).sum()))
    before, after = hidden(model, batch), hidden(model, changed)
    np.testing.assert_array_equal(before[own], after[own])
    assert np.isfinite(after).all()


@pytest.mark.parametrize("name", tiny.slow_but(QUICK, MODELS))
@few
@given(batch=batches(), seed=seeds, row=st.integers(0, 1))
def test_a_code_changes_the_states_of_those_who_see_it_and_no_others(name, batch, seed, row):
    model, ids, visits = model_of(**MODELS[name]), batch["patient_ids"], batch["visit_ids"]
    real = np.flatnonzero(ids[row])
    place = real[seed % len(real)]
    changed = batch | {"codes": batch["codes"].copy()}
    changed["codes"][row, place] = (changed["codes"][row, place] + 1 + seed % 7) % tiny.VOCAB_SIZE
    sees = np.zeros(ids.shape, bool)
    sees[row] = ids[row] == ids[row, place]
    if name == "lstm":
        sees[:, :place] = False
    elif name in BLIND:
        sees[row] &= visits[row] >= visits[row, place]
    moved = (hidden(model, batch) != hidden(model, changed)).any(axis=-1)
    np.testing.assert_array_equal(moved[ids != 0], sees[ids != 0])


@pytest.mark.parametrize("name", MODELS)
@few
@given(batch=batches(), seed=seeds, row=st.integers(0, 1))
def test_later_visits_change_earlier_ones_unless_the_model_is_blind_to_the_future(name, batch, seed, row):
    model, ids, visits = model_of(**MODELS[name]), batch["patient_ids"], batch["visit_ids"]
    own = np.zeros(ids.shape, bool)
    own[row] = ids[row] == 1 + seed % ids[row].max()
    now = np.sort(visits[own])[seed % own.sum()]
    earlier, later = own & (visits <= now), own & (visits > now)
    changed = redrawn(batch, later, seed, later=now + 1)
    same = (hidden(model, batch) == hidden(model, changed))[earlier]
    assert same.all() if name in BLIND or not later.any() else not same.all(axis=-1).any()


@pytest.mark.parametrize("name", UNORDERED)
@few
@given(batch=batches(), seed=seeds)
def test_the_order_of_codes_within_a_visit_says_nothing_without_positions(name, batch, seed):
    model, rng = model_of(**UNORDERED[name]), np.random.default_rng(seed)
    order = np.tile(np.arange(LENGTH), (2, 1))
    for row in range(2):
        for patient, visit in {*zip(batch["patient_ids"][row], batch["visit_ids"][row], strict=True)}:
            here = (batch["patient_ids"][row] == patient) & (batch["visit_ids"][row] == visit)
            for time in ("ages", "dates"):
                batch[time][row, here] = batch[time][row, here][0]  # a visit is at one time
            order[row, here] = rng.permutation(order[row, here])
    shuffled = {name: np.take_along_axis(values, order, axis=1) for name, values in batch.items()}
    shuffled["positions"] = batch["positions"]
    real = batch["patient_ids"] != 0
    expected = np.take_along_axis(hidden(model, batch), order[:, :, None], axis=1)
    np.testing.assert_allclose(hidden(model, shuffled)[real], expected[real], atol=2e-5)


@pytest.mark.parametrize(("name", "overrides"), [("reference", MODELS["reference"]), ("lstm", MODELS["lstm"])])
def test_the_order_of_codes_says_something_with_positions(name, overrides):
    model, batch = model_of(**overrides), tiny.packed_batch([[16], [16]], LENGTH)
    order = np.array([0, 2, 1, *range(3, 16)])
    batch["visit_ids"][:] = 0
    shuffled = batch | {"codes": batch["codes"][:, order]}
    shuffled |= {name: batch[name][:, order] for name in ("ages", "time_deltas", "dates")}
    assert np.abs(hidden(model, shuffled) - hidden(model, batch)[:, order])[:, 5:].max() > 1e-3


@pytest.mark.parametrize("name", tiny.slow_but(("reference", "causal, values"), MODELS))
@settings(few, max_examples=3)
@given(batch=batches())
def test_a_compiled_model_computes_what_the_model_does(name, batch):
    model = model_of(**MODELS[name])
    plain = model.apply(parameters(model), *tiny.columns(batch), **tiny.named(batch))
    real = batch["patient_ids"] != 0
    np.testing.assert_allclose(np.asarray(plain)[real], hidden(model, batch)[real], atol=2e-5)


@functools.cache
def one_by_one(model):
    params = parameters(model)

    def of_one(columns, named):
        columns, named = jax.tree.map(lambda values: values[None], (columns, named))
        return model.apply(params, *columns, **named)[0]

    return jax.jit(jax.vmap(of_one))


@pytest.mark.parametrize("name", tiny.slow_but(QUICK, MODELS))
@few
@given(batch=batches())
def test_vmap_over_rows_equals_a_batch(name, batch):
    model, real = model_of(**MODELS[name]), batch["patient_ids"] != 0
    found = np.asarray(one_by_one(model)(tiny.columns(batch), tiny.named(batch)))
    np.testing.assert_allclose(found[real], hidden(model, batch)[real], atol=1e-5)
