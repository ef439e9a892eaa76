"""Next visits as examples: which visits are predicted from those before them, and the codes that each holds."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import scipy.sparse

from behrt_jax.data import batches, events
from behrt_jax.data.code_counts import visit_codes
from behrt_jax.data.dataset import MICROSECONDS, Patients
from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary
from behrt_jax.data.windows import MINUTES_PER_DAY, VisitIndex, covering_windows, ranges, windows_until

CHUNK = 4096  # examples worked on at once
NEVER = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class NextVisits:
    """Visits to predict, N of them: every visit with a target code but a patient's first such visit.

    A visit that begins at time T is predicted from what was recorded before T, also where visits overlap. Visits that
    begin with the patient's first recorded code have no past and are left out.

    Attributes:
      codes: (T,) ids of the target codes.
      visits: (N,) index of each in the `VisitIndex`, ascending.
      patients: (N,) whose each is, as a row of `Patients`.
      starts: (N,) int64 when each begins, as `Patients.times`.
      known: (N,) index after the last of the patient's visits that began before it.
      late: (2, M) int64: an example, by its row here, and a token of its known visits that was recorded too late to be
        known; of a code's repeats in a visit, the first alone.
      targets: (N, T) sparse bool, the target codes in it.
      first_times: (patients, T) int64 when each code was first recorded; `NEVER` where it was not.
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
        """Returns which codes were recorded before each visit began: (N, T) bool. The others are new if they come."""
        return self.first_times[self.patients] < self.starts[:, None]

    def take(self, rows: np.ndarray) -> "NextVisits":
        """Returns some examples, by ascending rows."""
        places = np.full(len(self), -1)
        places[rows] = np.arange(len(rows))
        late = self.late[:, places[self.late[0]] >= 0]
        columns = {name: getattr(self, name)[rows] for name in ("visits", "patients", "starts", "known", "targets")}
        return dataclasses.replace(self, late=np.stack([places[late[0]], late[1]]), **columns)


def target_codes(vocabulary: Vocabulary, patterns: tuple[str, ...], min_patients: int) -> np.ndarray:
    """Returns which tokens are to be predicted, (V,) bool.

    Args:
      vocabulary: fitted on train.
      patterns: shell patterns of code names.
      min_patients: targets of fewer train patients are left out.

    Raises:
      ValueError: nothing is left.
    """
    named = set(events.matching_codes(list(vocabulary.codes), patterns, ()))
    enough = [count >= min_patients for count in vocabulary.patients]
    chosen = np.zeros(len(vocabulary), bool)
    chosen[NUM_SPECIAL:] = [code in named and kept for code, kept in zip(vocabulary.codes, enough, strict=True)]
    if not chosen.any():
        examples = ", ".join(vocabulary.codes[:3])
        raise ValueError(
            f"objective.targets: none of the {len(vocabulary.codes)} codes in the vocabulary (such as {examples}) "
            f"matches {patterns} in {min_patients} train patients or more; name patterns of your data's codes"
        )
    return chosen


def find_next_visits(patients: Patients, index: VisitIndex, is_target: np.ndarray) -> NextVisits:
    """Finds every visit that is to be predicted.

    Args:
      patients: the split.
      index: its visits.
      is_target: (V,) bool, as `target_codes` gives it.
    """
    owners, times = index.owners, patients.times
    codes = np.flatnonzero(is_target)
    held = visit_codes(patients, index, len(is_target))[:, codes]
    first_times = np.full((len(patients), len(codes)), NEVER)
    tokens = np.flatnonzero((patients.visits >= 0) & is_target[patients.codes])
    columns = np.cumsum(is_target) - 1
    np.minimum.at(first_times, (patients.owners[tokens], columns[patients.codes[tokens]]), times[tokens])
    found = np.flatnonzero(np.diff(held.indptr) > 0)
    found = found[np.diff(owners[found], prepend=-1) == 0]
    starts = times[index.starts[0]]
    # Visits are in the order of their starts: those that began earlier end where the first of the same start stands.
    is_later = (np.diff(starts, prepend=-1) != 0) | (np.diff(owners, prepend=-1) != 0)
    known = np.maximum.accumulate(np.where(is_later, np.arange(len(starts)), 0))[found]
    has_past = known > index.first_visit[owners[found]]
    found, known = found[has_past], known[has_past]
    late = _late_tokens(patients, index, times, starts[found], index.first_visit[owners[found]], known)
    return NextVisits(codes, found, owners[found], starts[found], known, late, held[found], first_times)


def _late_tokens(
    patients: Patients, index: VisitIndex, times: np.ndarray, until: np.ndarray, first: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """Returns which tokens of visits `first` to `known` were recorded at (N,) `until` or later: (2, M)."""
    timed = np.flatnonzero(patients.visits >= 0)
    _, places = np.unique(np.stack([index.token_visits, patients.codes[timed]]), axis=1, return_index=True)
    tokens = timed[np.sort(places)]  # the first of each code in each visit
    begins = np.searchsorted(tokens, index.starts[0])
    ends = times[index.starts[1] - 1]
    parts = [np.zeros((2, 0), np.int64)]
    for start in range(0, len(until), CHUNK):
        chunk = slice(start, start + CHUNK)
        sizes = known[chunk] - first[chunk]
        row = np.repeat(np.arange(start, start + len(sizes)), sizes)
        visit = ranges(first[chunk], sizes)
        goes_on = ends[visit] >= until[row]
        row, visit = row[goes_on], visit[goes_on]
        sizes = np.append(begins, len(tokens))[visit + 1] - begins[visit]
        row, token = np.repeat(row, sizes), tokens[ranges(begins[visit], sizes)]
        parts.append(np.stack([row, token])[:, times[token] >= until[row]])
    return np.concatenate(parts, axis=1)


def boundary_batches(
    patients: Patients, index: VisitIndex, examples: NextVisits, batch_size: int, cut: bool = False
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]]:
    """Yields packed rows in which each example is predicted once, from the last token recorded before it.

    Args:
      patients: the split.
      index: its visits.
      examples: what is to be predicted.
      batch_size: B.
      cut: whether each example has a window of its own, from which all that was recorded since the visit began is
        masked, for models whose visits see each other both ways; else rows hold it, and a causal model does not see it.

    Yields:
      The columns of packed rows; (B, K) the places of the last tokens recorded before visits to predict, 0 for unused
      ones; (B, K) which of the examples each is, -1 for none; (B, K) float32 days from that token to the visit's start.
      An example is in the row that holds more of its past.
    """
    visits = examples.visits
    if not len(visits):
        return
    if cut:
        windows, added = windows_until(index, visits, examples.patients), visits - 1
    else:
        windows, added = covering_windows(index)
    epoch = batches.evaluation_epoch(index, windows)
    shape = (batch_size, index.row_length // (2 if index.use_sep else 1))
    for number in range(epoch.num_batches(batch_size)):
        batch = batches.batch_of(patients, index, epoch, number, batch_size)
        rows, slots = np.nonzero(batch["window_index"] >= 0)
        window = batch["window_index"][rows, slots]
        # A window predicts the visits that follow those it adds.
        first, last = (np.searchsorted(visits, visit + 1) for visit in (added[window], windows.stop[window]))
        example = ranges(first, last - first)
        row, owner = np.repeat(rows, last - first), np.repeat(slots + 1, last - first)
        of_patient = batch["patient_ids"][row] == owner[:, None]
        is_past = of_patient & (batch["times"][row] < examples.starts[example][:, None])
        place = np.where(is_past, batch["positions"][row], -1).argmax(axis=1)
        if cut:
            hidden = np.nonzero(of_patient & ~is_past)
            batch["patient_ids"][row[hidden[0]], hidden[1]] = 0
        slot = batches.number_in_rows(row)
        ends, which, gaps = np.zeros(shape, np.int32), np.full(shape, -1), np.zeros(shape, np.float32)
        minutes = (examples.starts[example] - batch["times"][row, place]) / MICROSECONDS
        ends[row, slot], which[row, slot], gaps[row, slot] = place, example, minutes / MINUTES_PER_DAY
        yield batch, ends, which, gaps
