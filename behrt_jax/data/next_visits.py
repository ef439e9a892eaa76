"""Next visits as examples: which visits are predicted from those before them, and the codes that each holds."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import scipy.sparse

from behrt_jax.data import batches, events
from behrt_jax.data.dataset import Patients
from behrt_jax.data.sequences import VisitIndex, covering_windows, windows_until
from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary


@dataclasses.dataclass(frozen=True)
class NextVisits:
    """Visits to predict, N of them: every visit with a target code but a patient's first such visit.

    Attributes:
      codes: (T,) ids of the target codes.
      visits: (N,) index of each in the `VisitIndex`, ascending. What is known of it is the patient's visits before it.
      patients: (N,) whose each is, as a row of `Patients`.
      targets: (N, T) sparse bool, the target codes in it.
      first_held: (patients, T) index of the first visit that holds each code; the number of all visits where none does.
    """

    codes: np.ndarray
    visits: np.ndarray
    patients: np.ndarray
    targets: scipy.sparse.csr_array
    first_held: np.ndarray

    def __len__(self) -> int:
        return len(self.visits)

    def seen_before(self) -> np.ndarray:
        """Returns which codes the patient had in an earlier visit: (N, T) bool. The others are new if they come."""
        return self.first_held[self.patients] < self.visits[:, None]


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
    owners = index.owners
    codes = np.flatnonzero(is_target)
    held = visit_codes(patients, index, len(is_target))[:, codes]
    first_held = np.full((len(patients), len(codes)), held.shape[0])
    rows = np.repeat(np.arange(held.shape[0]), np.diff(held.indptr))
    np.minimum.at(first_held, (owners[rows], held.indices), rows)
    found = np.flatnonzero(np.diff(held.indptr) > 0)
    found = found[np.diff(owners[found], prepend=-1) == 0]
    return NextVisits(codes, found, owners[found], held[found], first_held)


def visit_codes(patients: Patients, index: VisitIndex, vocab_size: int) -> scipy.sparse.csr_array:
    """Returns which codes each visit holds, (visits, V) sparse bool; special tokens are left out."""
    codes = patients.codes[patients.visits >= 0]
    kept = codes >= NUM_SPECIAL
    where = index.token_visits[kept], codes[kept]
    return scipy.sparse.csr_array((np.ones(len(where[0]), bool), where), shape=(len(index.owners), vocab_size))


def boundary_batches(
    patients: Patients, index: VisitIndex, examples: NextVisits, batch_size: int, cut: bool = False
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
    """Yields packed rows in which each example can be predicted once, after the visit before it.

    Args:
      patients: the split.
      index: its visits.
      examples: what is to be predicted.
      batch_size: B.
      cut: whether each example has a window of its own, which ends before the visit to predict, for models whose visits
        see each other both ways; else rows hold later visits too, which a causal model does not see.

    Yields:
      The columns of packed rows; (B, K) the places of the last tokens of visits, 0 for unused ones; (B, K) which of
      the examples follows each, -1 where none does or where another row holds more of its past.
    """
    visits = examples.visits
    if not len(visits):
        return
    if cut:
        windows, added = windows_until(index, visits, examples.patients), visits - 1
    else:
        windows, added = covering_windows(index)
    epoch = batches.evaluation_epoch(index, windows)
    room = index.row_length // (2 if index.separators else 1)
    for number in range(epoch.num_batches(batch_size)):
        batch = batches.batch_of(patients, index, epoch, number, batch_size)
        rows, places, visit = batches.visit_ends(batch)
        window = batch["window_index"][rows, batch["patient_ids"][rows, places] - 1]
        example = np.minimum(np.searchsorted(visits, visit + 1), len(visits) - 1)
        used = (visits[example] == visit + 1) & (visit >= added[window])
        slots = batches.number_in_rows(rows)
        ends, which = np.zeros((batch_size, room), np.int32), np.full((batch_size, room), -1)
        ends[rows, slots], which[rows, slots] = places, np.where(used, example, -1)
        yield batch, ends, which
