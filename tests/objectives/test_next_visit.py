"""Next visits: where they begin, what they cost, and that nothing of them is seen before they are predicted."""

import functools
import operator
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from behrt_jax.data import batches as data_batches
from behrt_jax.data.windows import index_visits
from behrt_jax.models.inputs import device_columns, model_arguments
from behrt_jax.models.pretraining import BEHRTForPretraining, CodeQueries
from behrt_jax.objectives import next_visit
from tests import tiny
from tests.data.handmade import random_patients
from tests.models.drawn import parameters

V = tiny.VOCAB_SIZE
IS_TARGET = np.arange(V) >= 8
LENGTH = 24
ENCODERS = ({"rotary": "ages"}, {"encoder": "lstm", "rotary": "none"})
CHANGEABLE = ("codes", "ages", "visit_ids", "positions", "time_deltas", "dates")


pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


def packed(seed: int, use_sep: bool = True, rows: int = 4, length: int = LENGTH) -> dict[str, np.ndarray]:
    """Rows of several patients with some visits each, as training lays them out."""
    patients = random_patients(seed, 30, most_visits=5, most_codes=4, vocabulary=V)
    index = index_visits(patients, length, use_sep)
    epoch = data_batches.training_epoch(patients, index, seed, 0)
    return device_columns(data_batches.batch_of(patients, index, epoch, 0, rows))


def by_loop(batch: dict, use_sep: bool) -> list[list[tuple]]:
    """Returns for each row (end, days, places of the visit, target codes) of each visit that follows another."""
    found = []
    for row, owners in enumerate(batch["patient_ids"]):
        boundaries = []
        for place in range(1, len(owners)):
            visit = batch["visit_ids"][row]
            if owners[place] and owners[place] == owners[place - 1] and visit[place] != visit[place - 1]:
                inside = [p for p in range(len(owners)) if (owners[p], visit[p]) == (owners[place], visit[place])]
                held = {int(batch["codes"][row, p]) for p in inside if IS_TARGET[batch["codes"][row, p]]}
                boundaries.append((place - 1, batch["time_deltas"][row, place], inside, held))
        found.append(boundaries)
    return found


@functools.cache
def finder(use_sep: bool):
    return jax.jit(lambda batch: next_visit.find_boundaries(batch, jnp.asarray(IS_TARGET), use_sep))


def assert_as_by_loop(batch, use_sep):
    found = jax.device_get(finder(use_sep)(batch))
    room = batch["codes"].shape[1] // (2 if use_sep else 1)
    num_targets = np.asarray(found.num_targets)
    total = 0
    for row, boundaries in enumerate(by_loop(batch, use_sep)):
        used = len(boundaries)
        assert found.weights[row].tolist() == [1.0] * used + [0.0] * (room - used)
        assert not found.ends[row, used:].any() and not num_targets[row, used:].any()
        slots = np.full(batch["codes"].shape[1], room)
        for number, (end, days, inside, held) in enumerate(boundaries):
            slots[inside] = number
            assert (found.ends[row, number], found.days[row, number]) == (end, np.float32(days))
            wanted = batch["codes"][row, [place for place in inside if found.wanted[row, place]]].tolist()
            assert sorted(wanted) == sorted(held) and num_targets[row, number] == len(held)
        np.testing.assert_array_equal(found.slots[row], slots)
        assert found.wanted[row].sum() == sum(len(held) for *_, held in boundaries)
        total += used
    return total


def by_hand():
    """A row of two patients: visits [9 10] [9 11 9] [5] after a static code; then [12] [10 13]; and padding."""
    codes = [1, 20, 9, 10, 2, 9, 11, 9, 2, 5, 2, 1, 12, 2, 10, 13, 2, 0]
    visit_ids = [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 0, 0, 0, 1, 1, 1, 0]
    patients = [1] * 11 + [2] * 6 + [0]
    days = [0.0] * 5 + [7.0] * 4 + [30.5] * 2 + [0.0] * 3 + [2.0] * 3 + [0.0]
    batch = {name: np.array([row], np.int32) for name, row in (("codes", codes), ("visit_ids", visit_ids))}
    return {**batch, "patient_ids": np.array([patients], np.int32), "time_deltas": np.array([days], np.float32)}


def test_boundaries_by_hand():
    found = jax.device_get(finder(True)(by_hand()))
    assert found.ends[0].tolist() == [4, 8, 13] + [0] * 6
    assert found.days[0].tolist() == [7.0, 30.5, 2.0] + [0] * 6
    assert found.weights[0].tolist() == [1, 1, 1] + [0] * 6
    assert found.slots[0].tolist() == [9] * 5 + [0] * 4 + [1] * 2 + [9] * 3 + [2] * 3 + [9]
    # Code 5 is no target; 9 stands twice in its visit and is wanted once.
    assert np.flatnonzero(found.wanted[0]).tolist() == [5, 6, 14, 15]
    assert found.num_targets[0].tolist() == [2, 0, 2] + [0] * 6
    assert assert_as_by_loop(by_hand(), True) == 3


@pytest.mark.parametrize("use_sep", [True, False])
def test_boundaries_are_what_a_loop_finds(use_sep):
    assert sum(assert_as_by_loop(packed(seed, use_sep), use_sep) for seed in range(6)) > 60


def test_a_row_full_of_visits_has_room_for_all():
    batch = by_hand()
    batch["codes"][:], batch["patient_ids"][:], batch["visit_ids"][:] = 10, 1, np.arange(18)
    assert assert_as_by_loop(batch, False) == 17
    batch["codes"][0, 1::2], batch["visit_ids"][:] = 2, np.arange(18) // 2
    assert assert_as_by_loop(batch, True) == 8


BIAS = np.linspace(-3, 3, V).astype(np.float32)


def test_the_loss_is_that_of_a_dense_table_of_targets():
    rng = np.random.default_rng(0)
    for batch in (by_hand(), packed(1), packed(2)):
        boundaries = finder(True)(batch)
        logits = (5 * rng.standard_normal((*boundaries.ends.shape, V))).astype(np.float32)
        weights = rng.integers(0, 3, boundaries.ends.shape).astype(np.float32) * boundaries.weights
        queries = CodeQueries(jnp.asarray(logits - BIAS), jnp.asarray(BIAS), jnp.eye(V))
        found = next_visit.next_visit_loss(queries, boundaries, jnp.asarray(IS_TARGET), jnp.asarray(weights))
        table = np.zeros(logits.shape, np.float32)
        for row, expected in enumerate(by_loop(batch, True)):
            for number, (*_, held) in enumerate(expected):
                table[row, number, list(held)] = 1.0
        dense = np.asarray(optax.sigmoid_binary_cross_entropy(logits, table))[..., IS_TARGET].sum(axis=-1)
        np.testing.assert_allclose(found, (dense * weights).sum(), rtol=1e-5)
        assert table.any() and weights.any() and not weights.all()


# What a prediction sees.
@functools.cache
def model_of(number: int):
    model = BEHRTForPretraining(tiny.config(num_layers=2, **ENCODERS[number]), ("next_visit",))
    params = parameters(model)

    @functools.partial(jax.jit, static_argnames="causal")
    def score(batch, ends, causal):
        return next_visit.score_next_visits(model, params, batch, ends, causal)

    return lambda batch, ends, causal=True: jax.device_get(score(batch, ends, causal=causal))


def changed(batch: dict, places: np.ndarray, seed: int) -> dict:
    """Draws everything anew at some places but whose they are and, so that order stays, adds to visit ids."""
    rng, batch = np.random.default_rng(seed), {name: values.copy() for name, values in batch.items()}
    count = int(places.sum())
    batch["codes"][places] = rng.integers(0, V, count)
    batch["visit_ids"][places] += rng.integers(0, 4)
    batch["positions"][places] = rng.integers(0, 2**20, count)
    batch["ages"][places] = rng.choice([np.nan, -1.0, 3e3, 20.0, 71.0], count)
    batch["time_deltas"][places] = rng.choice([-1.0, 3e5, 0.0, 71.0], count)
    batch["dates"][places] = rng.choice([np.nan, -60.0, 0.0, 24.9], count)
    return batch


def assert_sees_the_past_alone(score, batch, few: int):
    """Changes the future, the row-mates and the past of some boundaries in turn."""
    boundaries = jax.device_get(finder(True)(batch))
    ends = boundaries.ends
    before = score(batch, ends)
    moved = 0
    picked = np.argwhere(boundaries.weights > 0)
    for number, (row, slot) in enumerate(picked[:: max(len(picked) // few, 1)]):
        place, own = ends[row, slot], batch["patient_ids"][row, ends[row, slot]]
        everywhere, mine = np.arange(batch["codes"].shape[1]), batch["patient_ids"][row] == own
        for unseen in (mine & (everywhere > place), ~mine):
            places = np.zeros(batch["codes"].shape, bool)
            places[row] = unseen
            places[np.arange(len(places)) != row] = True
            after = score(changed(batch, places, number), ends)
            for old, new in zip(before, after, strict=True):
                np.testing.assert_array_equal(old[row, slot], new[row, slot])
                moved += (old != new).any()
        past = np.zeros(batch["codes"].shape, bool)
        past[row, place - 1] = True  # the last code before the boundary
        code = {**batch, "codes": np.where(past, 5 + (batch["codes"] - 4) % (V - 5), batch["codes"])}
        later = {
            **batch,
            "time_deltas": np.where(past, np.where(batch["time_deltas"] > 5, 0, 400), batch["time_deltas"]),
        }
        for other in (code, later):
            assert (score(other, ends)[0][row, slot] != before[0][row, slot]).any()
            assert score(other, ends)[1][row, slot] != before[1][row, slot]
    assert moved


@pytest.mark.parametrize("number", range(len(ENCODERS)))
def test_a_prediction_sees_the_past_of_its_patient_alone(number):
    """Codes, ages, dates, days and visit ids of later visits, and all of row-mates, change nothing to the bit."""
    assert_sees_the_past_alone(model_of(number), packed(3), 5)


@pytest.mark.parametrize("number", range(len(ENCODERS)))
def test_bundled_patients_are_predicted_from_their_past_alone(number, bundled_train):
    index = index_visits(bundled_train, 128)
    batch = device_columns(
        data_batches.batch_of(bundled_train, index, data_batches.training_epoch(bundled_train, index, 0, 0), 0, 4)
    )
    batch["codes"] = np.where(batch["codes"] < 5, batch["codes"], 5 + batch["codes"] % (V - 5))
    assert_sees_the_past_alone(model_of(number), batch, 4)


# A history cut at random.
@functools.cache
def cutter():
    def cut(key, batch):
        boundaries = next_visit.find_boundaries(batch, jnp.asarray(IS_TARGET), True)
        return next_visit.cut_histories(key, batch, boundaries)

    return jax.jit(cut)


def keys(count: int):
    return [jax.random.fold_in(jax.random.key(0), number) for number in range(count)]


def test_cuts_by_hand_are_spread_evenly_over_the_visits_after_the_first():
    batch, cuts = by_hand(), []
    batch["visit_ids"][0, 11:17] = 0  # the second patient has one visit now, and no prediction
    draw = jax.jit(jax.vmap(cutter(), (0, None)))
    draws = jax.device_get(draw(jax.random.split(jax.random.key(0), 400), batch))
    for number in range(400):
        seen, kept = jax.tree.map(operator.itemgetter(number), draws)
        (slot,) = np.flatnonzero(kept.weights[0])
        place = kept.ends[0, slot] + 1
        visit = batch["visit_ids"][0, place]
        cuts.append(int(visit))
        is_later = (np.arange(18) < 11) & (batch["visit_ids"][0] >= visit)
        np.testing.assert_array_equal(seen["patient_ids"][0], np.where(is_later, 0, batch["patient_ids"][0]))
        assert kept.days[0, slot] == {1: 7.0, 2: 30.5}[visit]
        assert np.flatnonzero(kept.wanted[0]).tolist() == {1: [5, 6], 2: []}[visit]
        assert kept.num_targets[0, slot] == {1: 2, 2: 0}[visit]
        assert all(np.array_equal(seen[name], batch[name]) for name in batch if name != "patient_ids")
    assert set(cuts) == {1, 2} and abs(cuts.count(1) - 200) < 4.5 * 10


def test_every_patient_with_two_visits_is_cut_once_and_row_mates_on_their_own():
    batch = packed(5)
    drawn = set()
    for key in keys(20):
        seen, kept = jax.device_get(cutter()(key, batch))
        for row, owners in enumerate(batch["patient_ids"]):
            places = kept.ends[row, kept.weights[row] > 0]
            expected = [
                own for own in range(1, owners.max() + 1) if batch["visit_ids"][row, owners == own].max(initial=0) > 0
            ]
            assert owners[places].tolist() == expected
            for own in range(1, owners.max() + 1):
                left = np.flatnonzero(seen["patient_ids"][row] == own)
                whole = np.flatnonzero(owners == own)
                last = places[expected.index(own)] if own in expected else whole[-1]
                assert left.tolist() == list(range(whole[0], last + 1))
        drawn.add(tuple(np.flatnonzero(kept.weights)))
    assert len(drawn) > 15


@pytest.mark.parametrize("number", range(len(ENCODERS)))
def test_nothing_from_the_cut_on_is_seen_where_codes_see_each_other_both_ways(number):
    batch, score = packed(6), model_of(number)
    seen, kept = jax.device_get(cutter()(jax.random.key(1), batch))
    hidden, used = (seen["patient_ids"] == 0) & (batch["patient_ids"] != 0), kept.weights > 0
    assert hidden.any() and used.sum() > 3
    before = score(seen, kept.ends, causal=False)
    other = changed(seen, seen["patient_ids"] == 0, 1)
    assert not np.array_equal(other["codes"], seen["codes"])
    for old, new in zip(before, score(other, kept.ends, causal=False), strict=True):
        np.testing.assert_array_equal(old[used], new[used])
    whole = score({**seen, "patient_ids": batch["patient_ids"]}, kept.ends, causal=False)
    assert (whole[0][used] != before[0][used]).any() == (ENCODERS[number].get("encoder") != "lstm")


# The objective.
def scores_as_model(days):
    """A model that gives its parameters as logits, and fixed log-days."""
    return types.SimpleNamespace(
        apply=lambda params, *args, **kwargs: (CodeQueries(params, jnp.zeros(V), jnp.eye(V)), days)
    )


@pytest.mark.parametrize("history", ["every_visit", "random_cut"])
def test_both_losses_are_means_over_their_own_visits(history):
    batch = packed(7)
    # Some visits are without a target.
    batch["codes"] = np.where(batch["codes"] < 20, np.minimum(batch["codes"], 7), batch["codes"])
    rng = np.random.default_rng(0)
    shape = (4, LENGTH // 2)
    logits, days = rng.standard_normal((*shape, V)).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    config = tiny.objective_config(name="next_visit", history=history, time_gap_weight=0.25)
    objective = next_visit.make_objective(scores_as_model(jnp.asarray(days)), config, True, IS_TARGET)
    assert objective.weights == {"next_visit/loss": 1.0, "next_visit/days_loss": 0.25}
    prepared = objective.prepare(batch, jax.random.key(2))
    metrics = jax.device_get(objective.measure(jnp.asarray(logits), prepared, None))
    boundaries = jax.device_get(prepared[1])
    total = squares = known = visits = 0
    for row, expected in enumerate(by_loop(batch, True)):
        for number, (_, gap, _, held) in enumerate(expected):
            if not boundaries.weights[row, number]:
                assert history == "random_cut"
                continue
            visits, known = visits + 1, known + bool(held)
            squares += (days[row, number] - np.log1p(gap)) ** 2
            if held:
                scores = logits[row, number].astype(np.float64)
                total += np.log1p(np.exp(scores))[IS_TARGET].sum() - scores[list(held)].sum()
    assert 0 < known < visits
    np.testing.assert_allclose(metrics["next_visit/loss"], (total, known), rtol=1e-5)
    np.testing.assert_allclose(metrics["next_visit/days_loss"], (squares, visits), rtol=1e-5)
    assert objective.count(prepared) == {"next_visit/loss": known, "next_visit/days_loss": visits}


@pytest.mark.parametrize(("history", "causal"), [("every_visit", True), ("random_cut", False)])
def test_the_model_is_asked_causally_only_where_the_row_goes_on_and_draws_dropout_in_training(history, causal):
    asked = []

    def apply(params, *columns, **arguments):
        asked.append((columns, arguments))
        return CodeQueries(params, jnp.zeros(V), jnp.eye(V)), params[..., 0]

    batch = packed(8)
    objective = next_visit.make_objective(
        types.SimpleNamespace(apply=apply), tiny.objective_config(history=history), True, IS_TARGET
    )
    prepared = objective.prepare(batch, jax.random.key(0))
    for key in (jax.random.key(1), None):
        objective.measure(jnp.zeros((4, LENGTH // 2, V)), prepared, key)
    (columns, training), (_, evaluation) = asked
    assert (training["causal"], training["deterministic"], evaluation["deterministic"]) == (causal, False, True)
    assert training["rngs"]["dropout"] == jax.random.key(1) and evaluation["rngs"] is None
    np.testing.assert_array_equal(columns[3], prepared[0]["patient_ids"])
    assert len(columns) == len(model_arguments(batch)[0])
