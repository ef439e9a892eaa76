"""Next-visit prediction targets: the visits to predict from earlier ones, and the target codes of each."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import scipy.sparse

from behrt_jax.data import batches, events
from behrt_jax.data.code_counts import visit_codes
from behrt_jax.data.dataset import MICROSECONDS, Patients
from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary
from behrt_jax.data.windows import MINUTES_PER_DAY, VisitIndex, covering_windows, ranges, windows_until

CHUNK = 4096  # examples processed at once
NEVER = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class NextVisits:
    """N visits to predict: every visit with a target code, except each patient's first such visit.

    A visit that starts at time T is predicted from the tokens recorded before T, even where visits overlap. Visits that
    start with the patient's first recorded code have no past and are left out.

    Attributes:
      codes: (T,) ids of the target codes.
      visits: (N,) index of each visit in the `VisitIndex`, ascending.
      patients: (N,) the patient of each visit, as a row of `Patients`.
      starts: (N,) int64 start of each visit, as `Patients.times`.
      known: (N,) index after the patient's last visit that started earlier.
      late: (2, M) int64: the row of an example here, and a token of its known visits that was recorded at the example's
        start or later, so must not be used; only the first if a code repeats in a visit.
      targets: (N, T) sparse bool, the target codes of each visit.
      first_times: (patients, T) int64 when each code was first recorded; `NEVER` if it was not.
    """

    codes: np.ndarray
    visits: np.ndarray
    patients: np.ndarray
    starts: np.ndarray
    known: np.ndarray
    late: np.ndarray
    targets: scipy.sparse.csr_array
    first_times: np.ndarray

    def __len__(self) -> int:
        return len(self.visits)

    def seen_before(self) -> np.ndarray:
        """Returns which codes were recorded before each visit started, (N, T) bool; others are new if they occur."""
        return self.first_times[self.patients] < self.starts[:, None]

    def take(self, rows: np.ndarray) -> "NextVisits":
        """Returns the examples at `rows`, which are ascending."""
        places = np.full(len(self), -1)
        places[rows] = np.arange(len(rows))
        late = self.late[:, places[self.late[0]] >= 0]
        columns = {name: getattr(self, name)[rows] for name in ("visits", "patients", "starts", "known", "targets")}
        return dataclasses.replace(self, late=np.stack([places[late[0]], late[1]]), **columns)


def target_codes(vocabulary: Vocabulary, patterns: tuple[str, ...], min_patients: int) -> np.ndarray:
    """Returns which tokens are prediction targets, (V,) bool: those of a shell pattern, frequent in train.

    Raises:
      ValueError: no token is a target.
    """
    matches = set(events.matching_codes(list(vocabulary.codes), patterns, ()))
    is_target = np.zeros(len(vocabulary), bool)
    is_target[NUM_SPECIAL:] = np.array(vocabulary.patients) >= min_patients
    is_target[NUM_SPECIAL:] &= [code in matches for code in vocabulary.codes]
    if not is_target.any():
        examples = ", ".join(vocabulary.codes[:3])
        raise ValueError(
            f"objective.targets: none of the {len(vocabulary.codes)} codes in the vocabulary (such as {examples}) "
            f"matches {patterns} in {min_patients} train patients or more; name patterns of your data's codes"
        )
    return is_target


def find_next_visits(patients: Patients, index: VisitIndex, is_target: np.ndarray) -> NextVisits:
    """Finds every visit of a split to predict; `is_target`, (V,) bool, is from `target_codes`."""
    owners, times = index.owners, patients.times
    codes = np.flatnonzero(is_target)
    visit_targets = visit_codes(patients, index, len(is_target))[:, codes]
    first_times = np.full((len(patients), len(codes)), NEVER)
    tokens = np.flatnonzero((patients.visits >= 0) & is_target[patients.codes])
    columns = np.cumsum(is_target) - 1
    np.minimum.at(first_times, (patients.owners[tokens], columns[patients.codes[tokens]]), times[tokens])
    visits = np.flatnonzero(np.diff(visit_targets.indptr) > 0)
    visits = visits[np.diff(owners[visits], prepend=-1) == 0]
    starts = times[index.starts[0]]
    # Visits are sorted by start, so earlier ones end where the first visit with the same start is.
    is_later = (np.diff(starts, prepend=-1) != 0) | (np.diff(owners, prepend=-1) != 0)
    known = np.maximum.accumulate(np.where(is_later, np.arange(len(starts)), 0))[visits]
    has_past = known > index.first_visit[owners[visits]]
    visits, known = visits[has_past], known[has_past]
    late = _late_tokens(patients, index, times, starts[visits], index.first_visit[owners[visits]], known)
    return NextVisits(codes, visits, owners[visits], starts[visits], known, late, visit_targets[visits], first_times)


def _late_tokens(
    patients: Patients, index: VisitIndex, times: np.ndarray, until: np.ndarray, first: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """Returns which tokens of visits `first` to `known` were recorded at (N,) `until` or later: (2, M)."""
    timed = np.flatnonzero(patients.visits >= 0)
    _, positions = np.unique(np.stack([index.token_visits, patients.codes[timed]]), axis=1, return_index=True)
    tokens = timed[np.sort(positions)]  # the first of each code in each visit
    token_starts = np.searchsorted(tokens, index.starts[0])
    ends = times[index.starts[1] - 1]
    parts = [np.zeros((2, 0), np.int64)]
    for start in range(0, len(until), CHUNK):
        chunk = slice(start, start + CHUNK)
        sizes = known[chunk] - first[chunk]
        row = np.repeat(np.arange(start, start + len(sizes)), sizes)
        visit = ranges(first[chunk], sizes)
        overlaps = ends[visit] >= until[row]
        row, visit = row[overlaps], visit[overlaps]
        sizes = np.append(token_starts, len(tokens))[visit + 1] - token_starts[visit]
        row, token = np.repeat(row, sizes), tokens[ranges(token_starts[visit], sizes)]
        parts.append(np.stack([row, token])[:, times[token] >= until[row]])
    return np.concatenate(parts, axis=1)


def boundary_batches(
    patients: Patients, index: VisitIndex, examples: NextVisits, batch_size: int, cut: bool = False
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]]:
    """Yields packed rows in which each example is predicted once, from the last token recorded before it.

    With `cut`, each example has a separate window, in which all tokens recorded since the visit's start are masked, as
    bidirectional models need; otherwise rows contain these tokens, which a causal model does not attend to, and an
    example is in the row that holds more of its past.

    Yields:
      The columns of packed rows; (B, K) columns of the last tokens recorded before visits to predict, 0 for unused
      slots; (B, K) the index of each example, -1 for none; (B, K) float32 days from that token to the visit's start.
    """
    visits = examples.visits
    if not len(visits):
        return
    if cut:
        windows, first_added = windows_until(index, visits, examples.patients), visits - 1
    else:
        windows, first_added = covering_windows(index)
    epoch = batches.evaluation_epoch(index, windows)
    shape = (batch_size, index.row_length // (2 if index.use_sep else 1))
    for number in range(epoch.num_batches(batch_size)):
        batch = batches.batch_of(patients, index, epoch, number, batch_size)
        rows, slots = np.nonzero(batch["window_index"] >= 0)
        window = batch["window_index"][rows, slots]
        # A window predicts the visits that follow those it adds.
        first, last = (np.searchsorted(visits, visit + 1) for visit in (first_added[window], windows.stop[window]))
        example = ranges(first, last - first)
        row, owner = np.repeat(rows, last - first), np.repeat(slots + 1, last - first)
        same_patient = batch["patient_ids"][row] == owner[:, None]
        is_past = same_patient & (batch["times"][row] < examples.starts[example][:, None])
        column = np.where(is_past, batch["positions"][row], -1).argmax(axis=1)
        if cut:
            future = np.nonzero(same_patient & ~is_past)
            batch["patient_ids"][row[future[0]], future[1]] = 0
        slot = batches.number_in_rows(row)
        ends, example_ids, gaps = np.zeros(shape, np.int32), np.full(shape, -1), np.zeros(shape, np.float32)
        minutes = (examples.starts[example] - batch["times"][row, column]) / MICROSECONDS
        ends[row, slot], example_ids[row, slot], gaps[row, slot] = column, example, minutes / MINUTES_PER_DAY
        yield batch, ends, example_ids, gaps
