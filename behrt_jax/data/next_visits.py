"""Next visits as examples: which visits are predicted from those before them, and the codes that each holds."""

import dataclasses

import numpy as np
import scipy.sparse

from behrt_jax.data import events
from behrt_jax.data.dataset import Patients
from behrt_jax.data.sequences import VisitIndex
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
    owners = visit_owners(index)
    codes = np.flatnonzero(is_target)
    held = visit_codes(patients, index, len(is_target))[:, codes]
    first_held = np.full((len(patients), len(codes)), held.shape[0])
    rows = np.repeat(np.arange(held.shape[0]), np.diff(held.indptr))
    np.minimum.at(first_held, (owners[rows], held.indices), rows)
    found = np.flatnonzero(np.diff(held.indptr) > 0)
    found = found[np.diff(owners[found], prepend=-1) == 0]
    return NextVisits(codes, found, owners[found], held[found], first_held)


def visit_owners(index: VisitIndex) -> np.ndarray:
    """Returns the patient of each visit, (visits,)."""
    sizes = np.diff(index.first_visit)
    return np.repeat(np.arange(len(sizes)), sizes)


def visit_codes(patients: Patients, index: VisitIndex, vocab_size: int) -> scipy.sparse.csr_array:
    """Returns which codes each visit holds, (visits, V) sparse bool; special tokens are left out."""
    starts, stops = index.starts
    visits = np.repeat(np.arange(len(starts)), stops - starts)
    codes = patients.codes[patients.visits >= 0]
    kept = codes >= NUM_SPECIAL
    ones = np.ones(int(kept.sum()), bool)
    return scipy.sparse.csr_array((ones, (visits[kept], codes[kept])), shape=(len(starts), vocab_size))
