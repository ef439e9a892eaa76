"""What a perfect model would say of simulated patients: exact posteriors by forward-backward.

The oracle knows the world's probabilities and sees what a model sees: sex, the months of age of visits, and codes. It
does not see states, nor when or why observation ended; what is said of a whole history knows that no visit followed.
Everything that is said of a visit from its past is computed row by row, so that the future cannot change it by a bit.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import events
from behrt_jax.data.world import (
    MAX_MONTHS,
    SECONDS_PER_MONTH,
    SEXES,
    Histories,
    World,
    load_world,
    state_priors,
    years_of,
)

_CHUNK = 128  # visits worked on at a time: what stays in a core's cache
_EDGE = 1e-14  # chances are kept this far from 0 and 1, whose odds are 0 and infinite


def read_histories(folder: str | Path, subject_ids: Iterable[int]) -> Histories:
    """Reads what is seen of some patients of a simulated data set.

    Args:
      folder: what `simulate.write` wrote.
      subject_ids: N ids, ascending; patient i is the i-th of them.

    Returns:
      Their histories, with the codes of the folder's world. Death is not read.

    Raises:
      ValueError: the folder is no simulated data set, the ids do not ascend, or one has no visit in it.
    """
    world, subjects = load_world(folder), np.asarray(list(subject_ids), np.int64)
    if (np.diff(subjects) <= 0).any():
        raise ValueError("subject_ids: not in ascending order; sort them and remove repeats")
    members = pl.DataFrame({"subject_id": subjects, "owner": np.arange(len(subjects))})
    shards = [events.read_shard(shard) for shard in events.find_shards(folder)]
    found = pl.concat([shard.join(members, on="subject_id") for shard in shards]).sort("owner", maintain_order=True)
    columns = pl.DataFrame({"code": world.codes, "column": np.arange(len(world.codes))})
    seconds = (pl.col("time") - events.birth_times(pl.col("time"))).dt.total_seconds()
    coded = found.with_columns(month=seconds // SECONDS_PER_MONTH).join(columns, on="code")
    coded = coded.sort("owner", "month").with_columns(row=pl.struct("owner", "month").rle_id())
    visits = coded.unique("row", keep="first").sort("row")
    sexes = found.filter(pl.col("code").is_in([f"GENDER//{sex}" for sex in SEXES]))
    if visits["owner"].n_unique() != len(subjects) or sexes["owner"].to_list() != list(range(len(subjects))):
        raise ValueError(f"{folder}: not each of the {len(subjects)} subjects has a sex and a visit; correct the ids")
    codes = np.zeros((visits.height, len(world.codes)), bool)
    codes[coded["row"].to_numpy(), coded["column"].to_numpy()] = True
    sex = (sexes["code"] == f"GENDER//{SEXES[1]}").to_numpy().astype(np.int64)
    return Histories(sex, visits["owner"].to_numpy(), visits["month"].to_numpy(), codes)


def next_visit_probabilities(world: World, histories: Histories, targets: np.ndarray) -> np.ndarray:
    """Returns the probability of each code at the next visit, from sex and the visits so far: (V, C).

    Given that there is a next visit and that it has one of the targets or more.

    Args:
      world: the world they live in.
      histories: what is seen.
      targets: (C,) bool.

    Raises:
      ValueError: `targets` has none.
    """
    if not targets.any():
        raise ValueError("targets: found no code; expected one or more to be True")
    some = 1 - np.prod(1 - world.emission[:, targets], axis=1)
    joint = np.where(targets, world.emission, world.emission * some[:, None])
    states = next_visit_states(world, histories, filter_states(world, histories))
    chance = _by_row(states, some[:, None])
    return np.divide(_by_row(states, joint), chance, out=np.zeros(histories.codes.shape), where=chance > 0)


def masked_probabilities(world: World, histories: Histories, hidden: np.ndarray) -> np.ndarray:
    """Returns the probability of each code behind a mask, from all that is seen of the patient: (V, C).

    How many codes of a visit are hidden is seen; which, is not. So all masks of a visit have the same distribution.

    Args:
      world: the world they live in.
      histories: what is seen but for the hidden codes, which are not read.
      hidden: (V, C) bool, codes that are masked; visits without one get zeros.

    Raises:
      ValueError: a code is hidden that was not recorded.
    """
    if (hidden & ~histories.codes).any():
        raise ValueError("hidden: holds codes that are not in histories.codes; expected a part of those")
    smoothed = smooth_states(world, histories, hidden)
    odds = _odds(world)
    found = np.zeros(hidden.shape)
    for rows, count in _by_count(hidden):
        own = _unseen_odds(odds, histories.codes[rows] & ~hidden[rows])
        before = np.zeros((len(own), count, *own.shape[1:]))
        sums = _start(count, own)
        for code, chance in enumerate(own):
            before[code] = sums[:-1]
            sums[1:] += chance * sums[:-1]
        weights = smoothed[rows] / sums[count] / count
        after = _start(count - 1, own)
        for code in range(len(own) - 1, -1, -1):  # no division takes a code out again: that would lose digits
            others = (before[code] * after[::-1]).sum(axis=0)
            found[rows, code] = (weights * own[code] * others).sum(axis=1)
            after[1:] += own[code] * after[:-1]
    return found


def death_risks(world: World, histories: Histories, months: int) -> np.ndarray:
    """Returns the risk of death within some months of each visit, observed or not, from the visits so far: (V,)."""
    return (filter_states(world, histories) * visit_risks(world, histories, months)).sum(axis=1)


def visit_risks(world: World, histories: Histories, months: int) -> np.ndarray:
    """Returns the risk of death within some months of each visit, in each state: (V, S)."""
    risks = np.zeros((len(world.visit), 2, MAX_MONTHS + 1 + months))
    sex, month = (grid.ravel() for grid in np.indices(risks.shape[1:]))
    dies = world.dies(sex, month)
    for _ in range(months):
        within = world.advance(dies + (1 - dies) * risks.reshape(len(risks), -1), sex, month, backward=True)
        risks[..., :-1] = within.reshape(risks.shape)[..., 1:]
    return np.moveaxis(risks, 0, -1)[histories.sex[histories.owner], histories.month]


def filter_states(world: World, histories: Histories, hidden: np.ndarray | None = None) -> np.ndarray:
    """Returns the distribution of the state at each visit given its patient's visits up to and with it: (V, S)."""
    return _filter(world, histories, _likelihoods(world, histories.codes, hidden))


def smooth_states(world: World, histories: Histories, hidden: np.ndarray | None = None) -> np.ndarray:
    """Returns the distribution of the state at each visit given the whole history and its end: (V, S)."""
    likelihoods = _likelihoods(world, histories.codes, hidden)
    last = histories.last_visits()
    begin, end = histories.month[histories.first_visits()], histories.month[last]
    later = _silence(world)[:, histories.sex, end]
    messages = np.zeros_like(likelihoods)
    for month, visits in _by_month(histories, backward=True):
        owner = histories.owner[visits]
        messages[visits] = _normal(later[:, owner].T)
        later[:, np.flatnonzero((begin <= month) & (month < end))] *= 1 - world.visit[:, None]
        later[:, owner] = (messages[visits] * likelihoods[visits] * world.visit).T
        going = np.flatnonzero((begin < month) & (month <= end))
        sex, months = histories.sex[going], np.full(len(going), month)
        later[:, going] = world.advance(later[:, going] * world.stays(sex, months), sex, months, backward=True)
    return _normal(_filter(world, histories, likelihoods) * messages)


def _filter(world: World, histories: Histories, likelihoods: np.ndarray) -> np.ndarray:
    """Runs forward in age with everyone at once: (V, S)."""
    begin, end = histories.month[histories.first_visits()], histories.month[histories.last_visits()]
    states = state_priors(world)[:, histories.sex, begin]
    filtered = np.zeros_like(likelihoods)
    for month, visits in _by_month(histories):
        going = np.flatnonzero((begin < month) & (month <= end))
        sex, months = histories.sex[going], np.full(len(going), month)
        states[:, going] = world.advance(states[:, going], sex, months) * world.stays(sex, months)
        owner = histories.owner[visits]
        came = states[:, owner] * np.where(begin[owner] < month, world.visit[:, None], 1.0)
        states[:, going] *= 1 - world.visit[:, None]
        filtered[visits] = _normal(came.T * likelihoods[visits])
        states[:, owner] = filtered[visits].T
    return filtered


def next_visit_states(world: World, histories: Histories, filtered: np.ndarray) -> np.ndarray:
    """Returns the probability that there is a next visit and finds the patient in a state: (V, S)."""
    size = len(world.visit)
    found = np.zeros_like(filtered)
    sexes = histories.sex[histories.owner]
    reach, steps = np.zeros((2, 2, size, size))  # from each state to that of the next visit; a month on
    for month, visits in _by_month(histories, backward=True):
        for sex in range(2):
            rows = visits[sexes[visits] == sex]
            found[rows] = _by_row(filtered[rows], reach[sex])
            if month == MAX_MONTHS or years_of(month) < years_of(month + 1):
                at = np.full(size, sex), np.full(size, month)
                steps[sex] = (world.advance(np.eye(size), *at) * world.stays(*at)).T
            reach[sex] = steps[sex] * world.visit + (steps[sex] * (1 - world.visit)) @ reach[sex]
    return found


def _silence(world: World) -> np.ndarray:
    """Returns the probability that no visit follows a month, by state: (S, 2, months)."""
    silence = np.ones((len(world.visit), 2, MAX_MONTHS + 1))
    for month in range(MAX_MONTHS, 0, -1):
        at = np.arange(2), np.full(2, month)
        goes_on = world.stays(*at)
        ends = 1 - goes_on + goes_on * (1 - world.visit[:, None]) * silence[..., month]
        silence[..., month - 1] = world.advance(ends, *at, backward=True)
    return silence


def _likelihoods(world: World, codes: np.ndarray, hidden: np.ndarray | None) -> np.ndarray:
    """Returns the probability of what is seen of each visit in each state, up to a factor a visit: (V, S)."""
    odds = _odds(world)
    hidden = np.zeros_like(codes) if hidden is None else hidden
    log = _by_row(codes & ~hidden, np.log(odds).T) - np.log1p(odds).sum(axis=1)
    for rows, count in _by_count(hidden):
        own = _unseen_odds(odds, codes[rows] & ~hidden[rows])
        sums = _start(count, own)
        for chance in own:
            sums[1:] += chance * sums[:-1]
        log[rows] += np.log(sums[count])
    return np.exp(log - log.max(axis=1, keepdims=True))


def _odds(world: World) -> np.ndarray:
    chances = np.clip(world.emission, _EDGE, 1 - _EDGE)
    return chances / (1 - chances)


def _unseen_odds(odds: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Returns the odds of codes that could be behind a mask, 0 for those seen: (C, n, S)."""
    return ~seen.T[:, :, None] * odds.T[:, None, :]


def _start(count: int, own: np.ndarray) -> np.ndarray:
    """Returns sums of products of 0 to `count` odds before any code: (count + 1, n, S)."""
    sums = np.zeros((count + 1, *own.shape[1:]))
    sums[0] = 1.0
    return sums


def _by_count(hidden: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Yields visits with the same number of masks, some at a time."""
    counts = hidden.sum(axis=1)
    for count in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts == count)
        size = max(_CHUNK // int(count), 1)
        for start in range(0, len(rows), size):
            yield rows[start : start + size], int(count)


def _by_month(histories: Histories, backward: bool = False) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each month of age, from birth on or from the oldest back, with the visits in it."""
    order = np.argsort(histories.month, kind="stable")
    bounds = np.searchsorted(histories.month[order], np.arange(MAX_MONTHS + 2))
    months = range(MAX_MONTHS, -1, -1) if backward else range(MAX_MONTHS + 1)
    for month in months:
        yield month, order[bounds[month] : bounds[month + 1]]


def _by_row(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Multiplies (n, S) rows by a matrix, each on its own: one product of all can differ in the last bits with n."""
    return np.matmul(rows[:, None, :], matrix)[:, 0]


def _normal(states: np.ndarray) -> np.ndarray:
    return states / states.sum(axis=1, keepdims=True)
