"""The oracle against enumeration of every path and code set in tiny worlds, and against simulated patients."""

import dataclasses
import itertools
import math

import numpy as np
import polars as pl
import pytest
import scipy.stats
from sklearn.metrics import average_precision_score

from behrt_jax.simulation import oracle
from behrt_jax.simulation import world as worlds
from behrt_jax.simulation.simulator import Simulated, select, simulate, write
from tests.data.handmade import assert_clear

WORLD = worlds.make_world(0)
PATIENTS = simulate(WORLD, 800, 0)
TARGETS = np.arange(len(WORLD.codes)) > 0
NUM_CODES = 5
SETS = np.array(list(itertools.product([False, True], repeat=NUM_CODES)))


# Enumeration. A year has two months here, and nobody is seen after the month `last`.
def tiny_world(diseases: int, seed: int, measurements: int) -> worlds.World:
    rng = np.random.default_rng(seed)
    states, years = 3**diseases, worlds.MAX_YEARS
    moves = np.moveaxis(rng.dirichlet(np.ones(3), (diseases, 3, 2, years)), -1, 2)
    emission = rng.uniform(0.05, 0.95, (states, NUM_CODES))
    emission[:, 0], emission[0, 1], emission[1, 2] = 1.0, 1e-4, 1 - 1e-6
    rest = rng.uniform(0, 0.3, (states, 2, years)), np.array([0.1]), rng.uniform(0.2, 0.8, states)
    values = 3 * rng.normal(size=(states, measurements)), rng.uniform(1, 3, measurements)
    return worlds.World(("x",) * diseases, tuple("abcde"), moves, *rest, emission, *values)


def tiny_histories(last: int, seed: int, measurements: int) -> worlds.Histories:
    months = [[0, 1, last], [2], [1, last - 1], [0], [last], list(range(last))]
    owner = np.repeat(np.arange(len(months)), [len(found) for found in months])
    rng = np.random.default_rng(seed)
    codes = rng.random((len(owner), NUM_CODES)) < 0.5
    codes[:, 0] = True
    values = np.where(codes, 3 * rng.normal(size=codes.shape), np.nan)[:, NUM_CODES - measurements :]
    return worlds.Histories(np.array([0, 1, 1, 0, 1, 0]), owner, np.concatenate(months), codes, values=values)


class Enumeration:
    """Every path of states from birth to the month `last`, with the probability of what is seen along it."""

    def __init__(self, world, sex: int, last: int):
        self.world, self.last = world, last
        size = len(world.visit)
        matrices = [np.ones((1, 1)) for _ in range(last + 1)]
        for moves in world.moves:
            matrices = [np.kron(matrix, moves[:, :, sex, m // 2]) for m, matrix in enumerate(matrices)]
        self.paths = np.array(list(itertools.product(range(size), repeat=last)), np.int8).reshape(-1, last)
        self.paths = np.concatenate([np.zeros((len(self.paths), 1), np.int8), self.paths], axis=1)
        self.chance = np.ones(len(self.paths))
        for month in range(1, last + 1):
            self.chance *= matrices[month][self.paths[:, month - 1], self.paths[:, month]]
        self.lives = [1 - world.death[self.paths[:, m], sex, m // 2] for m in range(last + 1)]
        self.stays = [lives * (1 - world.leave[0]) for lives in self.lives]
        self.visits = [world.visit[self.paths[:, m]] for m in range(last + 1)]

    def seen(self, months, chances) -> np.ndarray:
        """The joint probability of each path and visits in these months, with (S,) chances of what each recorded."""
        joint = self.chance.copy()
        for month in range(1, months[-1] + 1):
            if month <= months[0]:
                joint *= self.lives[month]
            else:
                came = self.visits[month]
                joint *= self.stays[month] * (came if month in months else 1 - came)
        for month, chance in zip(months, chances, strict=True):
            joint *= chance[self.paths[:, month]]
        return joint

    def silent_after(self, month: int) -> np.ndarray:
        silent = np.ones(len(self.paths))
        for later in range(self.last, month, -1):
            stays = self.stays[later]
            silent = 1 - stays + stays * (1 - self.visits[later]) * silent
        return silent

    def next_state(self, joint, month: int) -> np.ndarray:
        """The probability that the next visit after `month` is in a state: (S,)."""
        found, quiet = np.zeros(len(self.world.visit)), joint.copy()
        for later in range(month + 1, self.last + 1):
            comes = quiet * self.stays[later] * self.visits[later]
            found += np.bincount(self.paths[:, later], comes, len(found))
            quiet = quiet * self.stays[later] * (1 - self.visits[later])
        return found


def set_chances(world) -> np.ndarray:
    """The probability of each set of codes in each state: (S, 32)."""
    emission = world.emission[:, None, :]
    return np.where(SETS, emission, 1 - emission).prod(axis=2)


def recorded(world, histories, chances, visit: int) -> np.ndarray:
    """The likelihood of the codes and values of a visit in each state: (S,)."""
    same = (SETS == histories.codes[visit]).all(axis=1).argmax()
    return chances[:, same] * density(world, histories, visit, np.zeros(NUM_CODES, bool))


def density(world, histories, visit: int, hidden: np.ndarray) -> np.ndarray:
    """The density of a visit's values in each state, without those of hidden codes: (S,)."""
    found = np.ones(len(world.visit))
    for place, code in enumerate(range(NUM_CODES)[world.measured]):
        if histories.codes[visit, code] and not hidden[code]:
            spread = world.value_deviations[place]
            found *= scipy.stats.norm.pdf(histories.values[visit, place], world.value_means[:, place], spread)
    return found


CASES = {"one disease": (1, 9, 0), "two diseases": (2, 5, 0), "one disease, measured": (1, 9, 2)}
CASES |= {"two diseases, measured": (2, 5, 2)}


@pytest.fixture(params=CASES.values(), ids=CASES)
def tiny(request, monkeypatch):
    diseases, last, measurements = request.param
    monkeypatch.setattr(worlds, "MONTHS_PER_YEAR", 2)
    monkeypatch.setattr(oracle, "MAX_MONTHS", last)
    world, histories = tiny_world(diseases, 3, measurements), tiny_histories(last, 4, measurements)
    return world, histories, [Enumeration(world, sex, last) for sex in range(2)]


def visits_of(histories):
    """Yields each visit with its patient's sex and visits."""
    for visit, owner in enumerate(histories.owner):
        yield visit, histories.sex[owner], np.flatnonzero(histories.owner == owner)


def test_next_visits_equal_those_of_enumeration(tiny):
    world, histories, paths = tiny
    chances, targets = set_chances(world), np.array([False, True, False, True, False])
    found = oracle.next_visit_probabilities(world, histories, targets)
    hit = SETS[:, targets].any(axis=1)
    compared = 0
    for visit, sex, visits in visits_of(histories):
        past = visits[visits <= visit]
        joint = paths[sex].seen(
            histories.month[past].tolist(), [recorded(world, histories, chances, row) for row in past]
        )
        sets = (paths[sex].next_state(joint, histories.month[visit]) @ chances) * hit
        if sets.sum() > 0:
            np.testing.assert_allclose(found[visit], sets @ SETS / sets.sum(), rtol=1e-9, atol=1e-12)
            compared += 1
        else:
            assert histories.month[visit] == paths[sex].last and not found[visit].any()
    assert compared >= 8


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_masked_codes_equal_those_of_enumeration(tiny, rate):
    world, histories, paths = tiny
    chances = set_chances(world)
    hidden = histories.codes & (np.random.default_rng(5).random(histories.codes.shape) < rate)
    found = oracle.masked_probabilities(world, histories, hidden)
    seen, counts = histories.codes & ~hidden, hidden.sum(axis=1)
    sizes = histories.codes.sum(axis=1)
    possible = [
        (SETS & row == row).all(axis=1) & (SETS.sum(axis=1) == size) for row, size in zip(seen, sizes, strict=True)
    ]
    compared = 0
    for visit, sex, visits in visits_of(histories):
        if not counts[visit]:
            assert not found[visit].any()
            continue
        others = [chances[:, possible[row]].sum(axis=1) if row != visit else np.ones(len(chances)) for row in visits]
        others = [own * density(world, histories, row, hidden[row]) for own, row in zip(others, visits, strict=True)]
        months = histories.month[visits].tolist()
        joint = paths[sex].seen(months, others) * paths[sex].silent_after(months[-1])
        states = np.bincount(paths[sex].paths[:, histories.month[visit]], joint, len(chances))
        sets = (states @ chances) * possible[visit]
        expected = sets @ (SETS & ~seen[visit]) / sets.sum() / counts[visit]
        np.testing.assert_allclose(found[visit], expected, rtol=1e-9, atol=1e-11)
        compared += 1
    assert compared >= 5


def test_death_risks_equal_those_of_enumeration(tiny):
    world, histories, paths = tiny
    chances, horizon = set_chances(world), 2
    found = oracle.death_risks(world, histories, horizon)
    compared = 0
    for visit, sex, visits in visits_of(histories):
        past, month = visits[visits <= visit], histories.month[visit]
        if month + horizon > paths[sex].last:
            continue
        joint = paths[sex].seen(
            histories.month[past].tolist(), [recorded(world, histories, chances, row) for row in past]
        )
        lives = math.prod(paths[sex].lives[month + 1 : month + 1 + horizon])
        np.testing.assert_allclose(found[visit], 1 - (joint * lives).sum() / joint.sum(), rtol=1e-9)
        compared += 1
    assert compared >= 5


def test_what_is_known_at_a_visit_before_its_codes_are_read_equals_enumeration(tiny):
    """Its state, the months that are left, and as the next visit at a known time its codes."""
    world, histories, paths = tiny
    chances, targets = set_chances(world), np.array([False, True, False, True, False])
    before = oracle.states_before(world, histories)
    months = oracle.expected_months(world, histories.sex[histories.owner], histories.month, before)
    found = oracle.next_visit_probabilities(world, histories, targets, time_known=True)
    compared = 0
    for visit, sex, visits in visits_of(histories):
        past, month, own = visits[visits < visit], histories.month[visit], paths[sex]
        seen = [*(recorded(world, histories, chances, row) for row in past), np.ones(len(chances))]
        joint = own.seen([*histories.month[past].tolist(), month], seen)
        states = np.bincount(own.paths[:, month], joint, len(chances))
        np.testing.assert_allclose(before[visit], states / states.sum(), rtol=1e-9)
        alive, expected = joint.copy(), 0.0
        for later in range(month + 1, own.last + 1):
            alive *= own.lives[later]
            expected += alive.sum() * (1 - world.leave[0]) ** (2 * (later - month - 1))
        assert months[visit] == pytest.approx(expected / joint.sum(), rel=1e-9)
        if len(past):
            sets = (states @ chances) * SETS[:, targets].any(axis=1)
            np.testing.assert_allclose(found[visit - 1], sets @ SETS / sets.sum(), rtol=1e-9)
            compared += 1
    assert compared >= 5 and np.isnan(found[histories.last_visits()]).all()


# Simulated patients. The sum of what was found less what was expected has mean 0 if the oracle is exact; its spread is
# estimated from independent (or martingale) parts.
EDGES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.01)
STRICT = 4.0  # standard errors; for some dozens of statistics with fixed seeds


def z_scores(expected: np.ndarray, happened: np.ndarray, groups: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """One z a group, over (n, C) or (n,) predictions; the rows of equal `parts` are added up first."""
    scores = []
    for group in np.unique(groups):
        surplus = np.where(groups == group, happened - expected, 0.0).reshape(len(parts), -1).sum(axis=1)
        totals = np.bincount(parts, surplus)
        if (totals != 0).sum() > 100:
            scores.append(totals.sum() / np.sqrt((totals**2).sum()))
    return np.array(scores)


@pytest.fixture(scope="module")
def next_visit():
    """Predictions for the next visits, those visits' codes, and the predicting visits."""
    found = oracle.next_visit_probabilities(WORLD, PATIENTS, TARGETS)
    visits = np.flatnonzero(PATIENTS.owner[1:] == PATIENTS.owner[:-1])
    visits = visits[PATIENTS.codes[visits + 1][:, TARGETS].any(axis=1)]
    return found[visits], PATIENTS.codes[visits + 1], visits


def test_next_visits_come_as_often_as_predicted(next_visit):
    found, truth, visits = next_visit
    np.testing.assert_allclose(found[:, 0], 1.0, atol=1e-9)
    parts = np.arange(len(visits))  # a prediction's error has mean 0 given all before: martingale differences
    bins = np.digitize(found, EDGES)
    kind = np.arange(len(WORLD.codes)) % 20 * np.ones_like(bins)
    age = PATIENTS.month[visits] // 120 + 20 * PATIENTS.sex[PATIENTS.owner[visits]]
    for groups in (bins, kind, age[:, None] * np.ones_like(bins)):
        scores = z_scores(found, truth, groups, parts)
        assert len(scores) >= 7 and np.abs(scores).max() < STRICT


def test_next_visits_at_a_known_time_come_as_often_as_predicted(next_visit):
    without, truth, visits = next_visit
    found = oracle.next_visit_probabilities(WORLD, PATIENTS, TARGETS, time_known=True)[visits]
    bins, parts = np.digitize(found, EDGES), np.arange(len(visits))
    scores = z_scores(found, truth, bins, parts)
    assert len(scores) >= 7 and np.abs(scores).max() < STRICT
    chances = [np.where(truth, part, 1 - part)[:, TARGETS] for part in (found, without)]
    assert np.log(chances[0]).sum() > np.log(chances[1]).sum()  # the time of a visit tells of the state


def test_survival_is_that_of_the_risks_within_a_year():
    some = np.flatnonzero(PATIENTS.month <= worlds.MAX_MONTHS - 12)[:500]
    who = PATIENTS.sex[PATIENTS.owner[some]], PATIENTS.month[some]
    curves = oracle.survival_curves(WORLD, *who, oracle.filter_states(WORLD, PATIENTS)[some], 12)
    np.testing.assert_allclose(1 - curves[:, 12], oracle.death_risks(WORLD, PATIENTS, 12)[some], rtol=1e-9)
    assert (curves[:, 0] == 1).all() and (np.diff(curves, axis=1) < 0).all()


def test_next_visits_beat_counting_and_repeating(next_visit):
    found, truth, visits = (part[:8000] for part in next_visit)
    frequencies = np.broadcast_to(PATIENTS.codes.mean(axis=0), found.shape)
    best, counting, repeating = (
        average_precision_score(truth[:, TARGETS].ravel(), scores[:, TARGETS].ravel())
        for scores in (found, frequencies, PATIENTS.codes[visits])
    )
    assert 0.45 < best < 0.65 and counting < 0.25 and repeating < best - 0.2


@pytest.fixture(scope="module")
def masked():
    """Posteriors at visits with masks, their masked codes, and the visits."""
    some = select(PATIENTS, np.arange(400))
    hidden = some.codes & (np.random.default_rng(0).random(some.codes.shape) < 0.15)
    found = oracle.masked_probabilities(WORLD, some, hidden)
    visits = np.flatnonzero(hidden.any(axis=1))
    return found[visits], hidden[visits], visits


def test_masked_codes_are_found_as_often_as_predicted(masked):
    found, hidden, visits = masked
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-9)
    counts = hidden.sum(axis=1, keepdims=True)
    bins = np.digitize(found, EDGES)
    last = np.isin(visits, PATIENTS.last_visits())[:, None]
    kind = np.arange(len(WORLD.codes)) % 20 * np.ones_like(bins)
    for groups in (bins, bins + 100 * last, np.minimum(counts, 3) * 100 + bins, kind):
        scores = z_scores(counts * found, hidden, groups, PATIENTS.owner[visits])
        assert len(scores) >= 7 and np.abs(scores).max() < STRICT


def test_masked_codes_beat_counting(masked):
    found, hidden, _ = masked
    rows, columns = np.nonzero(hidden)
    frequencies = PATIENTS.codes.mean(axis=0)
    assert 0.35 < (found[rows].argmax(axis=1) == columns).mean() < 0.5
    assert (frequencies.argmax() == columns).mean() < 0.2
    counted = np.log(frequencies[columns] / frequencies.sum()).mean()
    assert np.log(found[rows, columns]).mean() > counted + 1.0


def test_deaths_come_as_often_as_predicted():
    stayers = dataclasses.replace(WORLD, leave=np.zeros(1))
    patients = simulate(stayers, 1200, 1)
    risks = oracle.death_risks(stayers, patients, 12)
    died = patients.died[patients.owner] & (patients.end[patients.owner] - patients.month <= 12)
    scores = z_scores(risks, died, np.digitize(risks, EDGES), patients.owner)
    assert len(scores) >= 4 and np.abs(scores).max() < STRICT
    assert risks[died].mean() > 3 * risks[~died].mean()


# What the past says does not know the future.
def cut(histories: Simulated, keep: np.ndarray) -> worlds.Histories:
    return worlds.Histories(histories.sex, histories.owner[keep], histories.month[keep], histories.codes[keep])


@pytest.mark.slow
def test_the_future_changes_nothing_of_the_past():
    some = select(PATIENTS, np.arange(60))
    numbers = np.arange(len(some.owner)) - some.first_visits()[some.owner]
    past = numbers <= (np.bincount(some.owner) // 2)[some.owner]
    rng = np.random.default_rng(0)
    codes = np.where(past[:, None], some.codes, rng.random(some.codes.shape) < 0.1)
    changed = dataclasses.replace(some, codes=codes, month=some.month + ~past)
    for what in (
        lambda histories: oracle.next_visit_probabilities(WORLD, histories, TARGETS),
        lambda histories: oracle.death_risks(WORLD, histories, 12),
        lambda histories: oracle.states_before(WORLD, histories),
    ):
        whole = what(some)
        np.testing.assert_array_equal(what(cut(some, past)), whole[past])
        altered = what(changed)
        np.testing.assert_array_equal(altered[past], whole[past])
        assert not np.array_equal(altered[~past], whole[~past])
        one = select(some, np.array([7]))
        np.testing.assert_array_equal(what(one), whole[some.owner == 7])


def test_hidden_codes_are_not_read():
    """Another code behind the mask changes nothing, as long as it is one code."""
    some = select(PATIENTS, np.arange(20))
    hidden = some.codes & (np.random.default_rng(1).random(some.codes.shape) < 0.2)
    swapped, moved = some.codes & ~hidden, np.zeros_like(hidden)
    for row in np.flatnonzero(hidden.any(axis=1)):
        moved[row, np.flatnonzero(~swapped[row])[-hidden[row].sum() :]] = True
    other = dataclasses.replace(some, codes=swapped | moved)
    assert (hidden != moved).any()
    np.testing.assert_array_equal(
        oracle.masked_probabilities(WORLD, some, hidden), oracle.masked_probabilities(WORLD, other, moved)
    )


def test_bad_arguments():
    with pytest.raises(ValueError) as error:
        oracle.next_visit_probabilities(WORLD, PATIENTS, ~np.ones_like(TARGETS))
    assert_clear(error, "targets: found no code")
    with pytest.raises(ValueError) as error:
        oracle.masked_probabilities(WORLD, PATIENTS, ~PATIENTS.codes)
    assert_clear(error, "is_masked: holds codes that are not in histories.codes")


# Files.
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("simulated")
    write(where, WORLD, select(PATIENTS, np.arange(90)), seed=0)
    return where


@pytest.mark.parametrize("places", [np.arange(90), np.array([3, 4, 17, 60, 88])])
def test_histories_are_read_as_they_were_simulated(folder, places):
    found, expected = oracle.read_histories(folder, (places + 1).tolist()), select(PATIENTS, places)
    for name in ("sex", "owner", "month", "codes", "values"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_what_cannot_be_read(folder, tmp_path):
    for ids, message in (
        ([2, 1], "subject_ids: not in ascending order"),
        ([1, 10_000], "not each of the 2 subjects has a sex and a visit"),
    ):
        with pytest.raises(ValueError) as error:
            oracle.read_histories(folder, ids)
        assert_clear(error, message)
    with pytest.raises(ValueError) as error:
        oracle.read_histories(tmp_path, [1])
    assert_clear(error, "world.npz: no such file")


def test_the_written_truth_is_the_oracles(folder):
    truth = pl.read_parquet(folder / "truth.parquet")
    found = oracle.read_histories(folder, np.arange(1, 91))
    np.testing.assert_allclose(truth["death_risk_seen"], oracle.death_risks(WORLD, found, 12), rtol=1e-12)
