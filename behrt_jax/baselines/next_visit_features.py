"""Tables of features known before each target visit, for models that do not read sequences."""

import dataclasses

import numpy as np
import scipy.sparse

from behrt_jax.data.code_counts import static_tokens, visit_codes
from behrt_jax.data.dataset import MICROSECONDS, Patients
from behrt_jax.data.next_visit_targets import NextVisits
from behrt_jax.data.vocabulary import NUM_SPECIAL
from behrt_jax.data.windows import MINUTES_PER_DAY, MINUTES_PER_YEAR, VisitIndex

CHUNK = 4096
MICROSECONDS_PER_DAY = MINUTES_PER_DAY * MICROSECONDS
FORGOTTEN = 16  # half-lives, after which a visit would weigh 2**-16 and is ignored


@dataclasses.dataclass(frozen=True)
class Histories:
    """Features recorded before each of N target visits. The "last visit" is the latest one that started before it.

    Attributes:
      counts: (N, V) sparse float32, the number of past visits with each code.
      last: (N, V) sparse float32, 1 for the codes of the last visit.
      statics: (N, V) sparse float32, 1 for the patient's static tokens.
      visits: (N,) the number of past visits, at least 1.
      ages: (N,) years at the last recorded code; NaN where birth is unknown.
      days: (N,) days from the start of the second-last visit to the start of the last; 0 with a single visit.
      since_start: (N,) days from the start of the last visit to the last recorded code.
      ahead: (N,) days from the last recorded code to the start of the target visit.
    """

    counts: scipy.sparse.csr_array
    last: scipy.sparse.csr_array
    statics: scipy.sparse.csr_array
    visits: np.ndarray
    ages: np.ndarray
    days: np.ndarray
    since_start: np.ndarray
    ahead: np.ndarray

    def __len__(self) -> int:
        return len(self.visits)


def describe_histories(patients: Patients, index: VisitIndex, examples: NextVisits, vocab_size: int) -> Histories:
    """Computes features of what was recorded before each target visit of a split."""
    last, first = examples.known - 1, index.first_visit[examples.patients]
    times = patients.times
    starts, newest = times[index.starts[0]], last_recorded(patients, examples, times)
    has_birth = patients.has_birth[examples.patients]
    return Histories(
        counts=past_codes(patients, index, examples, vocab_size),
        last=last_codes(patients, index, examples, vocab_size),
        statics=static_tokens(patients, vocab_size)[examples.patients],
        visits=last + 1 - first,
        ages=np.where(has_birth, newest / (MICROSECONDS * MINUTES_PER_YEAR), np.nan),
        days=(starts[last] - starts[np.maximum(last - 1, first)]) / MICROSECONDS_PER_DAY,
        since_start=(newest - starts[last]) / MICROSECONDS_PER_DAY,
        ahead=(examples.starts - newest) / MICROSECONDS_PER_DAY,
    )


def last_recorded(patients: Patients, examples: NextVisits, times: np.ndarray) -> np.ndarray:
    """Returns the time of the last code recorded before each target visit, (N,) int64 as `Patients.times`."""
    timed = np.flatnonzero(patients.visits >= 0)
    owners, timestamps = (
        np.concatenate(pair) for pair in ((examples.patients, patients.owners[timed]), (examples.starts, times[timed]))
    )
    order = np.lexsort((timestamps, owners))  # at equal times, target visits come before codes
    place = np.maximum.accumulate(np.where(order >= len(examples), np.arange(len(order)), 0))
    newest = np.empty(len(order), np.int64)
    newest[order] = timestamps[order[place]]
    return newest[: len(examples)]


def past_codes(
    patients: Patients, index: VisitIndex, examples: NextVisits, vocab_size: int, half_life: float = np.inf
) -> scipy.sparse.csr_array:
    """Sums the codes that were recorded before each target visit, by visit, (N, V) sparse float32; see `add_past`."""
    codes = visit_codes(patients, index, vocab_size).astype(np.float32)
    row, token = examples.late
    visits = np.cumsum(np.isin(np.arange(len(patients.codes)), index.starts[0])) - 1  # of each token
    ago = examples.known[row] - 1 - visits[token]
    weights = np.where(ago < _reach(half_life), np.exp2(-ago / half_life, dtype=np.float32), 0)
    weights = weights * (patients.codes[token] >= NUM_SPECIAL)
    late = scipy.sparse.csr_array((weights, (row, patients.codes[token])), shape=(len(examples), vocab_size))
    counts = (add_past(codes, index, examples, half_life) - late).tocsr()
    counts.data[np.abs(counts.data) < 1e-6] = 0  # rounding errors of codes that were all recorded too late
    counts.eliminate_zeros()
    return counts


def last_codes(patients: Patients, index: VisitIndex, examples: NextVisits, vocab_size: int) -> scipy.sparse.csr_array:
    """Returns the codes of the last visit that were recorded before each target visit, (N, V) sparse float32."""
    codes = visit_codes(patients, index, vocab_size).astype(np.float32)
    row, token = examples.late
    last = examples.known - 1
    kept = (token >= index.starts[0][last[row]]) & (token < index.starts[1][last[row]])
    kept &= patients.codes[token] >= NUM_SPECIAL
    row, token = row[kept], token[kept]
    late = (np.ones(len(row), np.float32), (row, patients.codes[token]))
    known_codes = (codes[last] - scipy.sparse.csr_array(late, shape=(len(examples), vocab_size))).tocsr()
    known_codes.eliminate_zeros()
    return known_codes


def add_past(
    codes: scipy.sparse.csr_array, index: VisitIndex, examples: NextVisits, half_life: float = np.inf
) -> scipy.sparse.csr_array:
    """Sums a (visits, C) sparse float32 table over the visits that started before each target visit.

    The last visit has weight 1, and the weight halves with every `half_life` visits before it.

    Returns:
      (N, C) sparse float32.
    """
    first = index.first_visit[examples.patients]
    if np.isfinite(half_life):
        first = np.maximum(first, examples.known - int(_reach(half_life)))
    parts = []
    for start in range(0, len(examples), CHUNK):
        begin, end = first[start : start + CHUNK], examples.known[start : start + CHUNK]
        stops = np.cumsum(end - begin)
        ago = np.repeat(stops, end - begin) - 1 - np.arange(stops[-1])
        weights = np.exp2(-ago / half_life, dtype=np.float32)
        past = np.repeat(end, end - begin) - 1 - ago
        shape = (len(begin), codes.shape[0])
        parts.append(scipy.sparse.csr_array((weights, past, np.append(0, stops)), shape=shape) @ codes)
    return scipy.sparse.vstack(parts).tocsr()


def _reach(half_life: float) -> float:
    """Returns the number of past visits that have a weight."""
    return np.ceil(FORGOTTEN * half_life)
