"""Oracle for simulated patients: exact posterior probabilities by forward-backward.

The oracle knows the world's probabilities and sees what a model sees: sex, the months of age of visits, codes, and the
values of measurements, unless `Histories.values` is None. It does not see states, nor when or why observation ended;
predictions from a whole history know that no visit followed. Predictions from the past of a visit are computed row by
row, so that the future cannot change a single bit of them.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import events
from behrt_jax.simulation import world as worlds
from behrt_jax.simulation.world import MAX_MONTHS, Histories, World

_CHUNK = 16  # masked codes processed at a time, so that they stay in a core's cache
_EDGE = 1e-14  # probabilities are kept this far from 0 and 1, whose odds are 0 and infinite


def read_histories(folder: str | Path, subject_ids: Iterable[int]) -> Histories:
    """Reads the observed histories of N patients of a folder that `simulator.write` wrote, but not deaths.

    Returns:
      Histories in the order of the `subject_ids`, which ascend, with the codes of the folder's world.

    Raises:
      ValueError: the folder is not a simulated data set, the ids do not ascend, or a subject has no visit.
    """
    world, subjects = worlds.load_world(folder), np.asarray(list(subject_ids), np.int64)
    if (np.diff(subjects) <= 0).any():
        raise ValueError("subject_ids: not in ascending order; sort them and remove repeats")
    members = pl.DataFrame({"subject_id": subjects, "owner": np.arange(len(subjects))})
    shards = [events.read_shard(shard) for shard in events.find_shards(folder)]
    records = pl.concat([shard.join(members, on="subject_id") for shard in shards]).sort("owner", maintain_order=True)
    columns = pl.DataFrame({"code": world.codes, "column": np.arange(len(world.codes))})
    seconds = (pl.col("time") - events.birth_times(pl.col("time"))).dt.total_seconds()
    code_events = records.with_columns(month=seconds // worlds.SECONDS_PER_MONTH).join(columns, on="code")
    code_events = code_events.sort("owner", "month").with_columns(row=pl.struct("owner", "month").rle_id())
    visits = code_events.unique("row", keep="first").sort("row")
    sexes = records.filter(pl.col("code").is_in([f"GENDER//{sex}" for sex in worlds.SEXES]))
    if visits["owner"].n_unique() != len(subjects) or sexes["owner"].to_list() != list(range(len(subjects))):
        raise ValueError(f"{folder}: not each of the {len(subjects)} subjects has a sex and a visit; correct the ids")
    codes = np.zeros((visits.height, len(world.codes)), bool)
    rows, places = code_events["row"].to_numpy(), code_events["column"].to_numpy()
    codes[rows, places] = True
    values = np.full(codes.shape, np.nan)
    values[rows, places] = code_events["numeric_value"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    sex = (sexes["code"] == f"GENDER//{worlds.SEXES[1]}").to_numpy().astype(np.int64)
    values = values[:, world.measured]
    return Histories(sex, visits["owner"].to_numpy(), visits["month"].to_numpy(), codes, values=values)


def next_visit_probabilities(
    world: World, histories: Histories, targets: np.ndarray, time_known: bool = False
) -> np.ndarray:
    """Returns the probability of each code at the next visit, given sex and the visits so far: (V, C).

    Conditions on a next visit with at least one of the `targets`, (C,) bool. With `time_known`, the month of the next
    visit is known too, as to a model that is given this time; the rows of last visits, which have no next one in the
    histories, are then NaN.

    Raises:
      ValueError: no entry of `targets` is True.
    """
    if not targets.any():
        raise ValueError("targets: found no code; expected one or more to be True")
    any_target = 1 - np.prod(1 - world.emission[:, targets], axis=1)
    joint = np.where(targets, world.emission, world.emission * any_target[:, None])
    if time_known:
        states = np.full((len(histories.owner), len(world.visit)), np.nan)
        with_next = np.setdiff1d(np.arange(len(states)), histories.last_visits())
        states[with_next] = states_before(world, histories)[with_next + 1]
        return _by_row(states, joint) / _by_row(states, any_target[:, None])
    states = _next_visit_states(world, histories)
    visit_chance = _by_row(states, any_target[:, None])
    return np.divide(_by_row(states, joint), visit_chance, out=np.zeros(histories.codes.shape), where=visit_chance > 0)


def masked_probabilities(world: World, histories: Histories, is_masked: np.ndarray) -> np.ndarray:
    """Returns the probability of each code at a mask, given all that is observed of the patient: (V, C).

    `is_masked` is (V, C) bool; visits without a masked code get zeros. The number of masked codes of a visit is known,
    but not which they are. All masks of a visit therefore have the same distribution.

    Raises:
      ValueError: a masked code was not recorded.
    """
    if (is_masked & ~histories.codes).any():
        raise ValueError("is_masked: holds codes that are not in histories.codes; expected a part of those")
    posteriors = _smooth_states(world, histories, visit_likelihoods(world, histories, is_masked))
    probabilities = np.zeros(is_masked.shape)
    for rows, odds, prefix_sums in _behind_masks(world, histories.codes, is_masked):
        suffix_sums = _sums_before(odds[..., ::-1], len(prefix_sums))[::-1, ..., ::-1]
        other_sums = (prefix_sums * suffix_sums).sum(axis=0)  # sums without each code; a division would lose precision
        weights = posteriors[rows] / (odds * prefix_sums[-1]).sum(axis=2) / len(prefix_sums)
        probabilities[rows] = _by_row(weights, odds * other_sums)
    return probabilities


def death_risks(world: World, histories: Histories, months: int) -> np.ndarray:
    """Returns the risk of death within some months of each visit, observed or not, given the visits so far: (V,)."""
    return (filter_states(world, histories) * visit_risks(world, histories, months)).sum(axis=1)


def visit_risks(world: World, histories: Histories, months: int) -> np.ndarray:
    """Returns the risk of death within some months of each visit, given each state: (V, S)."""
    risks = np.zeros((len(world.visit), 2, MAX_MONTHS + 1 + months))
    sex_month = tuple(grid.ravel() for grid in np.indices(risks.shape[1:]))
    dies = world.dies(*sex_month)
    for _ in range(months):
        expected_risks = world.advance(dies + (1 - dies) * risks.reshape(len(risks), -1), *sex_month, backward=True)
        risks[..., :-1] = expected_risks.reshape(risks.shape)[..., 1:]
    return np.moveaxis(risks, 0, -1)[histories.sex[histories.owner], histories.month]


def expected_months(world: World, sex: np.ndarray, month: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Returns the expected number of months for which each of n people can be compared with another: (n,).

    A month counts if the person survives it, weighted by the probability that neither of two people left observation
    before. Its negative is the best score to rank times to death: of two people, the one with fewer months is more
    likely to die first while both are observed. Arguments as for `survival_curves`.
    """
    sexes, both_stay = np.arange(2), (1 - world.leave[0]) ** 2
    expected = np.zeros((len(world.visit), 2, MAX_MONTHS + 1))
    for age in range(MAX_MONTHS, 0, -1):
        sex_month = sexes, np.full(2, age)
        survivor_months = (1 - world.dies(*sex_month)) * (1 + both_stay * expected[..., age])
        expected[..., age - 1] = world.advance(survivor_months, *sex_month, backward=True)
    return (states * np.moveaxis(expected, 0, -1)[sex, month]).sum(axis=1)


def best_concordance(world: World, sex: np.ndarray, month: np.ndarray, states: np.ndarray) -> float:
    """Returns an upper bound on the expected Harrell's C of any score for times to death of n people.

    Follow-up ends at death, on leaving, or at the oldest age. For any two people it is known exactly which one is more
    likely to be observed to die first; no score can do better than to rank each pair accordingly. Arguments as for
    `survival_curves`; memory grows with the square of n.
    """
    months_left = MAX_MONTHS + 1 - month
    curves = survival_curves(world, sex, month, states, int(months_left.max()))
    steps = np.arange(1, curves.shape[1])
    weights = (steps <= months_left[:, None]) * (1 - world.leave[0]) ** (steps - 1)  # through the previous month
    dies_first = (-np.diff(curves, axis=1) * weights) @ (curves[:, 1:] * weights).T  # (n, n): one dies before another
    pairs = np.triu_indices(len(dies_first), 1)
    return float(np.maximum(dies_first, dies_first.T)[pairs].sum() / (dies_first + dies_first.T)[pairs].sum())


def survival_curves(world: World, sex: np.ndarray, month: np.ndarray, states: np.ndarray, months: int) -> np.ndarray:
    """Returns the probability of being alive 0 to `months` months later, observed or not: (n, months + 1).

    Args:
      world: the patients' world.
      sex: (n,) of people alive at a month of age.
      month: (n,) that month of age.
      states: (n, S) distributions of their states in that month.
      months: number of months; beyond the oldest age, the rates of the oldest year apply.
    """
    alive, curves = states.T, np.ones((len(sex), months + 1))
    for step in range(1, months + 1):
        alive = world.advance(alive, sex, month + step) * (1 - world.dies(sex, month + step))
        curves[:, step] = alive.sum(axis=0)
    return curves


def filter_states(world: World, histories: Histories, likelihoods: np.ndarray | None = None) -> np.ndarray:
    """Returns the distribution of the state at each visit given its patient's visits up to and including it: (V, S).

    `likelihoods`, (V, S), are from `visit_likelihoods`; computed if not given.
    """
    return _filter(world, histories, likelihoods)[1]


def states_before(world: World, histories: Histories) -> np.ndarray:
    """Returns the distribution of the state at each visit given all earlier visits and its own month: (V, S).

    It is known that there is a visit, so that the patient is alive and observed; its codes are not known.
    """
    return _filter(world, histories, None)[0]


def _filter(world: World, histories: Histories, likelihoods: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distributions of the state at each visit before and after observing what it holds: (V, S) each."""
    likelihoods = visit_likelihoods(world, histories) if likelihoods is None else likelihoods
    first_months = histories.month[histories.first_visits()]
    states = worlds.state_priors(world)[:, histories.sex, first_months]
    priors, posteriors = np.zeros_like(likelihoods), np.zeros_like(likelihoods)
    for month, visits, active, sex_month in _by_month(histories):
        states[:, active] = world.advance(states[:, active], *sex_month) * world.stays(*sex_month)
        owner = histories.owner[visits]
        joint = states[:, owner] * np.where(first_months[owner] < month, world.visit[:, None], 1.0)
        priors[visits] = _normal(np.ascontiguousarray(joint.T))  # contiguous: row sums do not depend on their number
        posteriors[visits] = _normal(joint.T * likelihoods[visits])
        states[:, active] *= 1 - world.visit[:, None]
        states[:, owner] = posteriors[visits].T
    return priors, posteriors


def visit_likelihoods(world: World, histories: Histories, is_masked: np.ndarray | None = None) -> np.ndarray:
    """Returns the likelihood of each visit's codes and values in each state, up to a factor per visit: (V, S).

    `is_masked`, (V, C) bool, hides codes and their values.
    """
    odds, codes = _odds(world), histories.codes
    is_masked = np.zeros_like(codes) if is_masked is None else is_masked
    log = _by_row(codes & ~is_masked, np.log(odds).T) - np.log1p(odds).sum(axis=1)
    for rows, masked_odds, prefix_sums in _behind_masks(world, codes, is_masked):
        log[rows] += np.log((masked_odds * prefix_sums[-1]).sum(axis=2))
    if histories.values is not None:
        hidden = is_masked[:, world.measured] | np.isnan(histories.values)
        for place, deviation in enumerate(world.value_deviations):
            distance = (histories.values[:, place, None] - world.value_means[:, place]) / deviation
            log -= np.where(hidden[:, place, None], 0.0, 0.5 * distance**2)
    return np.exp(log - log.max(axis=1, keepdims=True))


def _smooth_states(world: World, histories: Histories, likelihoods: np.ndarray) -> np.ndarray:
    """Returns the distribution of the state at each visit given the whole history and that no visit follows: (V, S)."""
    no_visit = np.zeros((len(world.visit), 1))
    silence = np.stack([chance[..., 0] for chance in _expectations(world, no_visit, 1.0)][::-1], axis=2)
    future = silence[:, histories.sex, histories.month[histories.last_visits()]]
    messages = np.zeros_like(likelihoods)
    for _, visits, active, sex_month in _by_month(histories, backward=True):
        owner = histories.owner[visits]
        messages[visits] = _normal(future[:, owner].T)
        future[:, active] *= 1 - world.visit[:, None]
        future[:, owner] = (messages[visits] * likelihoods[visits] * world.visit).T
        future[:, active] = world.advance(future[:, active] * world.stays(*sex_month), *sex_month, backward=True)
    return _normal(filter_states(world, histories, likelihoods) * messages)


def _next_visit_states(world: World, histories: Histories) -> np.ndarray:
    """Returns the joint probability of a next visit and of each state at it: (V, S)."""
    states, sexes = filter_states(world, histories), histories.sex[histories.owner]
    joint = np.zeros_like(states)
    expectations = _expectations(world, np.eye(len(world.visit)), 0.0)
    for (_, visits, *_), chances in zip(_by_month(histories, backward=True), expectations, strict=True):
        for sex in range(2):
            rows = visits[sexes[visits] == sex]
            joint[rows] = _by_row(states[rows], chances[:, sex])
    return joint


def _expectations(world: World, visited: np.ndarray, silent: float) -> Iterator[np.ndarray]:
    """Yields expectations in each state of a month, from the oldest month back: (S, 2, n) by sex.

    Expectations are of (S, n) functions `visited` of the state at the next visit, and of `silent` if no visit follows.
    """
    sexes, visit_chance = np.arange(2), world.visit[:, None, None]
    expected = np.full((len(visited), 2, visited.shape[1]), silent)
    for month in range(MAX_MONTHS, -1, -1):
        yield expected
        stays = world.stays(sexes, np.full(2, month))[..., None]
        expected = stays * (visit_chance * visited[:, None] + (1 - visit_chance) * expected) + (1 - stays) * silent
        sex_month = sexes.repeat(visited.shape[1]), np.full(visited.shape[1] * 2, month)
        expected = world.advance(expected.reshape(len(visited), -1), *sex_month, backward=True).reshape(expected.shape)


def _odds(world: World) -> np.ndarray:
    chances = np.clip(world.emission, _EDGE, 1 - _EDGE)
    return chances / (1 - chances)


def _behind_masks(world: World, codes: np.ndarray, is_masked: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields visits with k masks each, the odds of their codes (n, S, C), 0 if observed, and `_sums_before` of k."""
    odds, counts = _odds(world), is_masked.sum(axis=1)
    for count in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts == count)
        for part in np.array_split(rows, -(-len(rows) * count // _CHUNK)):
            masked_odds = (~codes[part] | is_masked[part])[:, None] * odds
            yield part, masked_odds, _sums_before(masked_odds, count)


def _sums_before(odds: np.ndarray, count: int) -> np.ndarray:
    """Returns elementary symmetric sums, of degree 0 to `count` - 1, of the odds before each code: (count, n, S, C)."""
    sums = np.zeros((count, *odds.shape))
    sums[0] = 1.0
    for size in range(1, count):
        np.cumsum((sums[size - 1] * odds)[..., :-1], axis=-1, out=sums[size, ..., 1:])
    return sums


def _by_month(histories: Histories, backward: bool = False) -> Iterator[tuple]:
    """Yields each month of age, its visits, the patients observed in it, and their sex and the month, repeated.

    Patients are observed after their first visit, up to their last one. Runs from birth on, or backward from the oldest
    age.
    """
    first_months, last_months = histories.month[histories.first_visits()], histories.month[histories.last_visits()]
    order = np.argsort(histories.month, kind="stable")
    bounds = np.searchsorted(histories.month[order], np.arange(MAX_MONTHS + 2))
    for month in range(MAX_MONTHS + 1)[:: -1 if backward else 1]:
        active = np.flatnonzero((first_months < month) & (month <= last_months))
        sex_month = histories.sex[active], np.full(len(active), month)
        yield month, order[bounds[month] : bounds[month + 1]], active, sex_month


def _by_row(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Multiplies (n, S) rows by a matrix, each on its own: one product of all depends on n in the last bits."""
    return np.matmul(rows[:, None, :], matrix)[:, 0]


def _normal(states: np.ndarray) -> np.ndarray:
    return states / states.sum(axis=1, keepdims=True)
