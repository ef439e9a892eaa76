"""Sparse tables of the codes of visits, static tokens of patients, and code counts of histories."""

import numpy as np
import scipy.sparse

from behrt_jax.data.dataset import Patients
from behrt_jax.data.vocabulary import NUM_SPECIAL
from behrt_jax.data.windows import VisitIndex


def static_tokens(patients: Patients, vocab_size: int) -> scipy.sparse.csr_array:
    """Returns which static tokens each patient has, (patients, V) sparse float32, without special tokens."""
    kept = (patients.visits < 0) & (patients.codes >= NUM_SPECIAL)
    entries = np.ones(int(kept.sum()), np.float32), (patients.owners[kept], patients.codes[kept])
    return scipy.sparse.csr_array(entries, shape=(len(patients), vocab_size)).minimum(1).tocsr()


def visit_codes(patients: Patients, index: VisitIndex, vocab_size: int) -> scipy.sparse.csr_array:
    """Returns which codes each visit has, (visits, V) sparse bool, without special tokens."""
    codes = patients.codes[patients.visits >= 0]
    kept = codes >= NUM_SPECIAL
    cells = index.token_visits[kept], codes[kept]
    return scipy.sparse.csr_array((np.ones(len(cells[0]), bool), cells), shape=(len(index.owners), vocab_size))


def count_codes(histories: Patients, size: int, half_life: float = np.inf) -> np.ndarray:
    """Counts codes and static tokens of histories, (N, V) float32; code weights halve every `half_life` visits back."""
    kept = (histories.visits >= 0) & (histories.codes >= NUM_SPECIAL)
    owners = histories.owners
    last_visits = histories.visits[np.maximum(histories.offsets[1:] - 1, 0)]
    weights = np.exp2(-(last_visits[owners] - histories.visits) / half_life)
    entries = weights[kept], (owners[kept], histories.codes[kept])
    table = scipy.sparse.csr_array(entries, shape=(len(histories), size)) + static_tokens(histories, size)
    return table.toarray().astype(np.float32)
