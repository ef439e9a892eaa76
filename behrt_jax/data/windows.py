"""Windows of whole visits: selects a window of each patient and lays it out as columns of tokens."""

import dataclasses

import numpy as np

from behrt_jax.data.dataset import MICROSECONDS, Patients
from behrt_jax.data.hashing import hash_fraction, hash_integers
from behrt_jax.data.vocabulary import CLS, NUM_SPECIAL, SEP

MINUTES_PER_DAY = 24 * 60
MINUTES_PER_YEAR = 365.25 * MINUTES_PER_DAY
EVALUATION_SALT = 0
COLUMNS = {  # of tokens, in sequences of one window
    "codes": np.int32,
    "ages": np.float32,  # years; NaN where birth is unknown
    "dates": np.float32,  # years since 1 January 2000, negative before
    "visit_ids": np.int32,  # from 0
    "positions": np.int32,  # from 0 by recording time, not by visit, so that none depends on a later record
    "time_deltas": np.float32,  # days since the start of the previous visit
    "time_ranks": np.int32,  # of recording times: from 1, equal for equal times; 0 for [CLS] and static tokens
    "maskable": np.bool_,  # whether it is a code of a visit that the vocabulary knows
}


@dataclasses.dataclass(frozen=True)
class VisitIndex:
    """Index of the visits in the tokens of a split, built once by `index_visits`.

    Attributes:
      starts: (2, visits) index of each visit's first token, and the index after its last one.
      first_visit: (N + 1,) index of each patient's first visit.
      static_counts: (N,) number of static tokens used per patient.
      statics_cut: (N,) number of further static tokens, left out for lack of room.
      budgets: (N,) tokens of a row left for visits, after `[CLS]` and the static tokens.
      ends: (visits + 1,) cumulative count of visit tokens, including one `[SEP]` per visit with `use_sep`.
      row_length: L.
      use_sep: whether `[SEP]` ends each visit.
    """

    starts: np.ndarray
    first_visit: np.ndarray
    static_counts: np.ndarray
    statics_cut: np.ndarray
    budgets: np.ndarray
    ends: np.ndarray
    row_length: int
    use_sep: bool

    @property
    def owners(self) -> np.ndarray:
        """(visits,) the patient of each visit."""
        return np.repeat(np.arange(len(self.budgets)), np.diff(self.first_visit))

    @property
    def token_visits(self) -> np.ndarray:
        """(timed tokens,) the visit of each token that is not static, in the order of `Patients`."""
        starts, stops = self.starts
        return np.repeat(np.arange(len(starts)), stops - starts)


@dataclasses.dataclass(frozen=True)
class Windows:
    """W windows, each a range of consecutive visits of one patient.

    Attributes:
      patients: (W,) the patient of each window.
      start: (W,) index of the first visit.
      stop: (W,) index after the last visit.
      skipped: (W,) number of oldest codes left out of a visit that is longer than a row (0 for all others).
      lengths: (W,) tokens of the sequence, including `[CLS]`, static tokens and any `[SEP]`.
    """

    patients: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    skipped: np.ndarray
    lengths: np.ndarray


def index_visits(patients: Patients, row_length: int, use_sep: bool = True) -> VisitIndex:
    """Indexes the visits of all patients of a split; static tokens take at most half a row of `row_length` tokens.

    With `use_sep`, `[SEP]` ends each visit; otherwise windows use its room for codes.
    """
    owners = patients.owners
    timed = np.flatnonzero(patients.visits >= 0)
    changes = np.diff(patients.visits[timed], prepend=-1) != 0
    changes |= np.diff(owners[timed], prepend=-1) != 0
    starts = timed[changes]
    first_visit = np.searchsorted(owners[starts], np.arange(len(patients) + 1))
    # A visit ends where the next one starts, or before the next patient's static tokens.
    stops = np.append(starts[1:], len(patients.codes))
    stops = np.minimum(stops, patients.offsets[owners[starts] + 1])
    statics = starts[first_visit[:-1]] - patients.offsets[:-1]
    static_counts = np.minimum(statics, row_length // 2 - 1)
    return VisitIndex(
        starts=np.stack([starts, stops]),
        first_visit=first_visit,
        static_counts=static_counts,
        statics_cut=statics - static_counts,
        budgets=row_length - 1 - static_counts,
        ends=np.concatenate([[0], np.cumsum(stops - starts + use_sep)]),
        row_length=row_length,
        use_sep=use_sep,
    )


def newest_windows(index: VisitIndex) -> Windows:
    """Returns each patient's newest whole visits that fit in a row; of a visit longer than a row, its newest codes."""
    return windows_until(index, index.first_visit[1:].copy())


def random_windows(index: VisitIndex, subject_ids: np.ndarray, salt: int, weights: np.ndarray | None = None) -> Windows:
    """Samples a window of whole visits for each patient, as a function of (salt, subject).

    One visit of the window is sampled uniformly, or in proportion to `weights`, (visits,) of 0 or more. The window
    extends from it to newer visits, then to older ones.
    """
    first, last = index.first_visit[:-1], index.first_visit[1:]
    if weights is None:
        visits = first + np.floor(hash_fraction(salt, subject_ids) * (last - first)).astype(np.int64)
    else:
        cumulative = np.append(0.0, np.cumsum(weights))
        targets = cumulative[first] + hash_fraction(salt, subject_ids) * (cumulative[last] - cumulative[first])
        visits = np.clip(np.searchsorted(cumulative, targets, side="right") - 1, first, last - 1)
    reach = index.ends[visits] + index.budgets
    stop = np.searchsorted(index.ends, reach, side="right") - 1
    return windows_until(index, np.clip(stop, visits + 1, last))


def windows_until(index: VisitIndex, stop: np.ndarray, patients: np.ndarray | None = None) -> Windows:
    """Returns W windows that end before the (W,) visits `stop` and extend to as many older visits as fit in a row.

    `patients` are (W,) the patient of each window; if not given, there is one window per patient, in order.
    """
    patients = np.arange(len(index.budgets)) if patients is None else patients
    first, budgets = index.first_visit[patients], index.budgets[patients]
    start = np.searchsorted(index.ends, index.ends[stop] - budgets, side="left")
    start = np.clip(start, first, stop - 1)
    tokens = index.ends[stop] - index.ends[start]
    skipped = np.maximum(tokens - budgets, 0)
    return Windows(patients, start, stop, skipped, 1 + index.static_counts[patients] + tokens - skipped)


def covering_windows(index: VisitIndex) -> tuple[Windows, np.ndarray]:
    """Returns windows that together cover every visit, each with about half a row of past if there is that much.

    Each window ends about half a row after the one before it. The other half of its row thus holds the past of the
    visits that it adds, up to the one older visit that no longer fits. Patients without visits have no window.

    Returns:
      The windows, and (W,) the index of the first visit that each adds; every visit is added by exactly one window.
    """
    all_patients = np.arange(len(index.budgets))
    next_visit, last = index.first_visit[:-1].copy(), index.first_visit[1:]
    patients, first_added, stops = [], [], []
    active = all_patients[next_visit < last]
    while active.size:
        reach = index.ends[next_visit[active]] + np.where(
            next_visit[active] == index.first_visit[active], index.budgets[active], index.budgets[active] // 2
        )
        stop = np.searchsorted(index.ends, reach, side="right") - 1
        first_added.append(next_visit[active].copy())
        next_visit[active] = np.clip(stop, next_visit[active] + 1, last[active])
        patients.append(active)
        stops.append(next_visit[active].copy())
        active = active[next_visit[active] < last[active]]
    if not stops:
        return windows_until(index, all_patients[:0], all_patients[:0]), all_patients[:0]
    return windows_until(index, np.concatenate(stops), np.concatenate(patients)), np.concatenate(first_added)


def window_report(index: VisitIndex, windows: Windows) -> dict[str, int]:
    """Counts truncated patients, and the visits, codes of visits longer than a row and static codes left out."""
    total_visits = np.diff(index.first_visit)[windows.patients]
    num_visits = windows.stop - windows.start
    return {
        "patients": len(num_visits),
        "patients_cut": int(((num_visits < total_visits) | (windows.skipped > 0)).sum()),
        "visits_cut": int((total_visits - num_visits).sum()),
        "visits": int(total_visits.sum()),
        "codes_cut_in_long_visits": int(windows.skipped.sum()),
        "static_codes_cut": int(index.statics_cut.sum()),
    }


def ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Concatenates `arange(start, start + size)` over all pairs."""
    return np.arange(sizes.sum()) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)


def build_columns(patients: Patients, index: VisitIndex, windows: Windows, members: np.ndarray, salt: int):
    """Lays out the sequences of the windows `members`, (n,), one after the other.

    A sequence is `[CLS]`, the static tokens, then each visit's codes and, with `index.use_sep`, `[SEP]`. Codes of one
    visit that share a time are ordered by a hash of (salt, subject, time, code), since a fixed order would leak the
    masked codes; `salt` is `EVALUATION_SALT` or a function of (seed, epoch).

    Returns:
      `COLUMNS`, `times`, int64 as `Patients.times` (-1 for `[CLS]` and static tokens), and `values` if the patients
      have any, float32, NaN where a token has none; all 1-D. `[CLS]` and static tokens have the age and date of the
      window's first visit, `[SEP]` the age, date and time of its visit's last code.
    """
    owners, lengths = windows.patients[members], windows.lengths[members]
    offsets = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(members)), lengths)
    columns: dict[str, np.ndarray] = {name: np.zeros(lengths.sum(), kind) for name, kind in COLUMNS.items()}
    columns["codes"][offsets] = CLS
    statics = index.static_counts[owners]
    columns["codes"][ranges(offsets + 1, statics)] = patients.codes[ranges(patients.offsets[:-1][owners], statics)]

    # First come arrays with one entry per visit of a window, then arrays with one entry per token.
    num_visits = windows.stop[members] - windows.start[members]
    visit_owner = np.repeat(np.arange(len(members)), num_visits)
    visit_ids = ranges(np.zeros_like(num_visits), num_visits)
    visit = windows.start[members][visit_owner] + visit_ids
    start, end = index.starts[0][visit], index.starts[1][visit]
    previous = np.maximum(visit - 1, index.first_visit[owners][visit_owner])
    gaps = (patients.minutes[start] - patients.minutes[index.starts[0][previous]]) / MINUTES_PER_DAY
    begin = start + np.where(visit_ids == 0, windows.skipped[members][visit_owner], 0)
    sizes = end - begin

    source = _shuffled(patients, ranges(begin, sizes), np.repeat(visit_owner, sizes), owners, salt)
    costs = sizes + index.use_sep
    visit_offset = np.cumsum(costs) - costs
    first_visit = visit_offset[np.cumsum(num_visits) - num_visits]
    visit_offset += (offsets + 1 + statics - first_visit)[visit_owner]
    target = ranges(visit_offset, sizes)

    columns["codes"][target] = patients.codes[source]
    if patients.values is not None:
        columns["values"] = np.full(len(owner), np.nan, np.float32)
        columns["values"][target] = patients.values[source]
    columns["maskable"][target] = patients.codes[source] >= NUM_SPECIAL
    columns["visit_ids"][target] = np.repeat(visit_ids, sizes)
    columns["time_deltas"][target] = np.repeat(gaps, sizes)
    # For [CLS] and static tokens, which are not set below; time -1 ranks them first.
    minutes = np.repeat(patients.minutes[index.starts[0][windows.start[members]]], lengths)
    minutes[target] = patients.minutes[source]
    times = columns["times"] = np.full(len(owner), -1, np.int64)
    times[target] = _times(patients, source)
    if index.use_sep:
        sep_positions = visit_offset + sizes
        columns["codes"][sep_positions] = SEP
        columns["visit_ids"][sep_positions] = visit_ids
        columns["time_deltas"][sep_positions] = gaps
        minutes[sep_positions] = patients.minutes[end - 1]
        times[sep_positions] = _times(patients, end - 1)
    columns["positions"], columns["time_ranks"] = _rank(owner, offsets, times)
    columns["ages"], columns["dates"] = _years(patients, owners[owner], minutes)
    return columns


def _years(patients: Patients, owners: np.ndarray, minutes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 ages, NaN where birth is unknown, and dates of tokens, both in years."""
    ages = np.where(patients.has_birth[owners], minutes / MINUTES_PER_YEAR, np.nan)
    dates = (patients.origins[owners].astype(np.int64) + minutes) / MINUTES_PER_YEAR  # two int32 may overflow int32
    return ages.astype(np.float32), dates.astype(np.float32)


def _shuffled(patients: Patients, source: np.ndarray, member: np.ndarray, owners: np.ndarray, salt: int) -> np.ndarray:
    """Shuffles the tokens of each visit that share a time, by hash; `source` lists tokens window by window."""
    times = _times(patients, source)
    keys = hash_integers(salt, patients.subject_ids[owners[member]], times, patients.codes[source])
    is_new_group = np.diff(times, prepend=-2) != 0
    is_new_group |= (np.diff(member, prepend=-1) != 0) | (np.diff(patients.visits[source], prepend=-1) != 0)
    return source[np.lexsort((keys, np.cumsum(is_new_group)))]


def _times(patients: Patients, tokens: np.ndarray) -> np.ndarray:
    """Returns the recording times of tokens, none of them static, as `Patients.times`."""
    return patients.minutes[tokens].astype(np.int64) * MICROSECONDS + patients.microseconds[tokens]


def _rank(owner: np.ndarray, offsets: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each token's position in its sequence by time, ties in their order, and the rank of its time from 0."""
    order = np.lexsort((times, owner))
    positions = np.empty(len(owner), np.int32)
    positions[order] = np.arange(len(owner)) - offsets[owner[order]]
    is_later = (np.diff(times[order], prepend=-1) != 0) & (np.diff(owner[order], prepend=-1) == 0)
    running = np.cumsum(is_later)
    ranks = np.empty(len(owner), np.int32)
    ranks[order] = running - running[offsets][owner[order]]
    return positions, ranks
