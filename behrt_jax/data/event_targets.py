"""Time-to-event targets: days from a visit to the next event of each target code, or to censoring."""

import dataclasses

import numpy as np

from behrt_jax.data.batches import number_in_rows, visit_ends
from behrt_jax.data.dataset import TOKEN_FIELDS, Patients
from behrt_jax.data.hashing import hash_fraction, hash_integers
from behrt_jax.data.histories import age_shares
from behrt_jax.data.vocabulary import SEP, round_edge
from behrt_jax.data.windows import MINUTES_PER_DAY, MINUTES_PER_YEAR, VisitIndex, index_visits

YEAR = MINUTES_PER_YEAR / MINUTES_PER_DAY  # days
PRIOR = 2.0  # pseudo-events that shrink rates by age to the rate over all ages
SHORTEST = 1.0 / MINUTES_PER_DAY  # days; events in the same minute count as one minute away


@dataclasses.dataclass(frozen=True)
class EventTimes:
    """Target events of a split, sorted so that binary search finds the next event of a code.

    Recording times of all patients are ranked together, by patient and time.

    Attributes:
      codes: (T,) ids of the target codes.
      keys: (E,) ascending, one per event: its code and the rank of its time as one number.
      minutes: (E,) the time of each event.
      first_ranks: (patients + 1,) the rank of each patient's first time.
      end_ranks: (visits,) the rank of the time of each visit's last token.
      ends: (visits,) the minute of each visit's last token.
      last: (patients,) the minute at which each patient's record ends.
      owners: (visits,) the patient of each visit.
      ages: (visits,) years at the end of each visit; NaN where birth is unknown.
      weights: (visits,) the training weight of each visit.
      first: whether only the first event of each code counts.
    """

    codes: np.ndarray
    keys: np.ndarray
    minutes: np.ndarray
    first_ranks: np.ndarray
    end_ranks: np.ndarray
    ends: np.ndarray
    last: np.ndarray
    owners: np.ndarray
    ages: np.ndarray
    weights: np.ndarray
    first: bool

    def after(self, visits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (n, T) float32 days from the ends of visits to each code's next event, and (n, T) bool, if it occurs.

        Events recorded by the end of a visit are in its past, even if they belong to another visit. If a code does not
        occur, days run to the end of the patient's record. Days are above 0, except with `first` for a code that the
        patient already had: 0 days, so that it adds nothing to training.
        """
        owners, targets = self.owners[visits], np.arange(len(self.codes))[None, :]
        next_event = np.searchsorted(self.keys, self._key(targets, self.end_ranks[visits][:, None] + 1))
        happened = next_event < np.searchsorted(self.keys, self._key(targets, self.first_ranks[owners + 1][:, None]))
        minutes = np.broadcast_to(self.last[owners][:, None], happened.shape).copy()
        minutes[happened] = self.minutes[next_event[happened]]
        days = np.maximum((minutes - self.ends[visits][:, None]) / MINUTES_PER_DAY, SHORTEST)
        if self.first:
            has_prior = next_event > np.searchsorted(self.keys, self._key(targets, self.first_ranks[owners][:, None]))
            days[has_prior], happened[has_prior] = 0.0, False
        return days.astype(np.float32), happened

    def spread(self, count: int) -> np.ndarray:
        """Returns at most `count` visits, evenly spaced by cumulative weight."""
        cumulative = np.cumsum(self.weights)
        levels = np.linspace(0, len(cumulative) - 1, count) * (cumulative[-1] / len(cumulative))
        return np.unique(np.minimum(np.searchsorted(cumulative, levels, side="right"), len(cumulative) - 1))

    def _key(self, codes, ranks):
        return codes * (self.first_ranks[-1] + 1) + ranks

    def add(self, batch: dict[str, np.ndarray], num_visits: int, salt: int) -> dict[str, np.ndarray]:
        """Adds time-to-event targets to packed rows, for up to K = `num_visits` visits per row, by a hash with `salt`.

        Returns:
          The batch with `event_ends` (B, K) int32, the column of each visit's last token, `event_weights` (B, K)
          float32, the weights of visits and 0 for unused slots, `event_days` (B, K, T) float32 and `event_happened` (B,
          K, T) bool, both from `after`.
        """
        rows, columns, visits = visit_ends(batch)
        order = np.lexsort((hash_integers(salt, visits), rows))
        rows, columns, visits = rows[order], columns[order], visits[order]
        slots = number_in_rows(rows)
        rows, columns, visits, slots = (values[slots < num_visits] for values in (rows, columns, visits, slots))
        shape = (len(batch["codes"]), num_visits)
        ends, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        days = np.ones((*shape, len(self.codes)), np.float32)
        happened = np.zeros(days.shape, bool)
        ends[rows, slots], weights[rows, slots] = columns, self.weights[visits]
        days[rows, slots], happened[rows, slots] = self.after(visits)
        targets = {"event_ends": ends, "event_weights": weights, "event_days": days, "event_happened": happened}
        return {**batch, **targets}


def index_events(
    patients: Patients, index: VisitIndex, is_target: np.ndarray, first: bool = False, by_time: bool = False
) -> EventTimes:
    """Sorts the target events of a split.

    Args:
      patients: the split.
      index: its visits.
      is_target: (V,) bool.
      first: whether only the first event of each code counts.
      by_time: whether a visit's training weight is the years until the next one, at most 1; else all weights are equal.
    """
    owners = index.owners
    timed = np.flatnonzero(patients.visits >= 0)
    ends = patients.minutes[index.starts[1] - 1].astype(np.int64)
    order = np.lexsort((patients.times[timed], patients.owners[timed]))
    sorted_owners, sorted_times = patients.owners[timed][order], patients.times[timed][order]
    changes = (np.diff(sorted_owners, prepend=-1) != 0) | (np.diff(sorted_times, prepend=-1) != 0)
    ranks = np.empty(len(timed), np.int64)
    ranks[order] = np.cumsum(changes) - 1
    first_ranks = np.searchsorted(sorted_owners[changes], np.arange(len(patients) + 1))
    timed_index = np.cumsum(patients.visits >= 0) - 1  # index of each token among the timed ones
    end_ranks = ranks[timed_index[index.starts[1] - 1]]
    record_ends = np.zeros(len(patients), np.int64)
    np.maximum.at(record_ends, owners, ends)
    is_event = is_target[patients.codes[timed]]
    minutes = patients.minutes[timed][is_event].astype(np.int64)
    target_index = np.cumsum(is_target) - 1
    ages = np.where(patients.has_birth[owners], ends / MINUTES_PER_YEAR, np.nan)
    weights = np.ones(len(ends))
    if by_time:
        next_ends = np.append(ends[1:], 0) * np.append(owners[1:] == owners[:-1], False)
        weights = np.clip((next_ends - ends) / MINUTES_PER_YEAR, 0.0, 1.0)
    codes, keys = np.flatnonzero(is_target), np.zeros(0, np.int64)
    times = EventTimes(codes, keys, minutes, first_ranks, end_ranks, ends, record_ends, owners, ages, weights, first)
    keys = times._key(target_index[patients.codes[timed][is_event]], ranks[is_event])
    order = np.argsort(keys, kind="stable")
    return dataclasses.replace(times, keys=keys[order], minutes=minutes[order])


def fit_edges(times: EventTimes, num_bins: int, sample: int = 2000, digits: int = 0) -> tuple[float, ...]:
    """Fits inner bin edges (days) so that bins hold about equally many events after `sample` visits of train.

    Edges are rounded to `digits` significant digits, so that none is a patient's exact time; 0 keeps three decimals.
    """
    days, happened = times.after(times.spread(sample))
    edges = np.quantile(days[happened], np.arange(1, num_bins) / num_bins) if happened.any() else np.zeros(0)
    rounded = [round_edge(edge, digits) for edge in edges] if digits else np.round(edges, 3)
    return tuple(float(edge) for edge in np.unique(rounded) if edge > 0)


def log_rates(times: EventTimes, vocab_size: int, sample: int = 2000) -> np.ndarray:
    """Returns the log of each code's event rate per day after a sample of visits, (V,) float32.

    Codes that are not targets get the rate of a code without events.
    """
    days, happened = times.after(times.spread(sample))
    longest = days.sum(axis=0).max()
    rates = np.full(vocab_size, 0.5 / longest, np.float64)
    # A code that every patient already had has almost no time at risk left.
    rates[times.codes] = (happened.sum(axis=0) + 0.5) / np.maximum(days.sum(axis=0), longest / 100)
    return np.log(rates).astype(np.float32)


def age_rates(times: EventTimes, vocab_size: int, sample: int = 10_000) -> np.ndarray:
    """Returns each code's log rate in the year after `sample` visits of train, by age, minus that over all ages.

    Returns:
      (knots, V) float32 at each of `histories.AGE_KNOTS`, shrunk to 0 by `PRIOR` pseudo-events; 0 for non-targets.
    """
    visits = times.spread(sample)
    days, happened = times.after(visits)
    happened &= days <= YEAR
    days, shares = np.minimum(days, YEAR), age_shares(times.ages[visits]).astype(np.float32)
    expected = shares.T @ days * (happened.sum(axis=0) / np.maximum(days.sum(axis=0), YEAR))
    log_ratios = np.zeros((shares.shape[1], vocab_size), np.float32)
    log_ratios[:, times.codes] = np.log((shares.T @ happened.astype(np.float32) + PRIOR) / (expected + PRIOR))
    return log_ratios


def insert_query_tokens(patients: Patients, seed: int, days: float = 365.25) -> Patients:
    """Inserts query tokens between visits, each a visit of one `[SEP]` like that of `append_prediction_token`.

    Pauses of `days` or longer always get one, shorter ones with a probability in proportion. The seed, the patient's id
    and the visit before determine which pauses do, and the time, which is uniform over the pause.

    Returns:
      The patients with renumbered visits. A query token comes after all earlier events, even where visits overlap, and
      before the next visit.
    """
    index = index_visits(patients, 1)
    starts, owners = index.starts[0], index.owners
    begins, ends = (patients.minutes[places].astype(np.int64) for places in (starts, index.starts[1] - 1))
    ends = np.maximum.accumulate(ends + owners * (1 << 40)) - owners * (1 << 40)  # latest end of any visit so far
    pauses = np.flatnonzero((owners[1:] == owners[:-1]) & (begins[1:] > ends[:-1] + 1))
    keys = hash_integers(patients.subject_ids[owners[pauses]], patients.visits[starts[pauses]])
    has_query = hash_fraction(keys, seed, 0) * days * MINUTES_PER_DAY < begins[pauses + 1] - ends[pauses]
    pauses, keys = pauses[has_query], keys[has_query]
    minutes = (
        ends[pauses] + 1 + (hash_fraction(keys, seed, 1) * (begins[pauses + 1] - ends[pauses] - 1)).astype(np.int64)
    )

    next_tokens = starts[pauses + 1]  # the token that follows each query token
    query_counts = np.bincount(next_tokens, minlength=len(patients.codes))
    shifts = np.cumsum(query_counts)
    # Each query token raises the visit numbers of its patient's later tokens by one. Static tokens keep -1.
    shifts = np.where(patients.visits >= 0, shifts - np.append(0, shifts)[patients.offsets[patients.owners]], 0)
    visits = patients.visits + shifts
    query = {"codes": SEP, "visits": visits[next_tokens] - 1, "minutes": minutes, "microseconds": 0, "values": np.nan}
    kinds = {**dict.fromkeys(TOKEN_FIELDS, np.int32), "values": np.float32}
    columns = {
        name: np.insert(column, next_tokens, query[name]).astype(kinds[name])
        for name, column in {**patients.columns, "visits": visits}.items()
    }
    num_queries = np.bincount(owners[pauses], minlength=len(patients))
    return dataclasses.replace(patients, offsets=patients.offsets + np.append(0, np.cumsum(num_queries)), **columns)
