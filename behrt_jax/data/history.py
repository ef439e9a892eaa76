"""What is known before each visit to predict, in tables: for models that do not read a sequence."""

import dataclasses

import numpy as np
import scipy.sparse

from behrt_jax.data.dataset import Patients
from behrt_jax.data.next_visits import NextVisits, visit_codes
from behrt_jax.data.sequences import MINUTES_PER_DAY, MINUTES_PER_YEAR, VisitIndex
from behrt_jax.data.vocabulary import NUM_SPECIAL

CHUNK = 4096
FORGOTTEN = 16  # half-lives, after which a visit weighs 2**-16 and is left out


@dataclasses.dataclass(frozen=True)
class Histories:
    """The past of each of N visits to predict. The visit before it is called the last one.

    Attributes:
      counts: (N, V) sparse float32, the number of past visits with each code.
      last: (N, V) sparse float32, 1 for the codes of the last visit.
      statics: (N, V) sparse float32, 1 for the patient's static tokens.
      visits: (N,) the number of past visits, at least 1.
      ages: (N,) years at the start of the last visit; NaN where birth is unknown.
      days: (N,) days from the start of the visit before the last one to that of the last; 0 where there is none.
    """

    counts: scipy.sparse.csr_array
    last: scipy.sparse.csr_array
    statics: scipy.sparse.csr_array
    visits: np.ndarray
    ages: np.ndarray
    days: np.ndarray

    def __len__(self) -> int:
        return len(self.visits)


def describe_histories(patients: Patients, index: VisitIndex, examples: NextVisits, vocab_size: int) -> Histories:
    """Describes what comes before each visit to predict.

    Args:
      patients: the split.
      index: its visits.
      examples: the visits to predict.
      vocab_size: V.
    """
    codes = visit_codes(patients, index, vocab_size).astype(np.float32)
    last, first = examples.visits - 1, index.first_visit[examples.patients]
    minutes = patients.minutes[index.starts[0]]
    ages = np.where(patients.has_birth[examples.patients], minutes[last] / MINUTES_PER_YEAR, np.nan)
    return Histories(
        counts=add_past(codes, index, examples),
        last=codes[last],
        statics=static_tokens(patients, vocab_size)[examples.patients],
        visits=last + 1 - first,
        ages=ages,
        days=(minutes[last] - minutes[np.maximum(last - 1, first)]) / MINUTES_PER_DAY,
    )


def static_tokens(patients: Patients, vocab_size: int) -> scipy.sparse.csr_array:
    """Returns which static tokens each patient has, (patients, V) sparse float32; special tokens are left out."""
    where = (patients.visits < 0) & (patients.codes >= NUM_SPECIAL)
    entries = np.ones(int(where.sum()), np.float32), (patients.owners[where], patients.codes[where])
    return scipy.sparse.csr_array(entries, shape=(len(patients), vocab_size)).minimum(1).tocsr()


def add_past(
    codes: scipy.sparse.csr_array, index: VisitIndex, examples: NextVisits, half_life: float = np.inf
) -> scipy.sparse.csr_array:
    """Adds up a table of visits over the past of each visit to predict.

    Args:
      codes: (visits, C) sparse float32.
      index: the visits.
      examples: the visits to predict.
      half_life: of the weight of a visit, in visits; the last visit has weight 1.

    Returns:
      (N, C) sparse float32.
    """
    first = index.first_visit[examples.patients]
    if np.isfinite(half_life):
        first = np.maximum(first, examples.visits - int(np.ceil(FORGOTTEN * half_life)))
    parts = []
    for start in range(0, len(examples), CHUNK):
        begin, end = first[start : start + CHUNK], examples.visits[start : start + CHUNK]
        stops = np.cumsum(end - begin)
        ago = np.repeat(stops, end - begin) - 1 - np.arange(stops[-1])
        weights = np.exp2(-ago / half_life, dtype=np.float32)
        past = np.repeat(end, end - begin) - 1 - ago
        shape = (len(begin), codes.shape[0])
        parts.append(scipy.sparse.csr_array((weights, past, np.append(0, stops)), shape=shape) @ codes)
    return scipy.sparse.vstack(parts).tocsr()
