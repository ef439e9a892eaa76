"""Marks at random times between visits, so that what is predicted after visits is predicted at any time."""

import dataclasses

import numpy as np

from behrt_jax.data.dataset import TOKEN_FIELDS, Patients
from behrt_jax.data.hashing import hash_fraction, hash_integers
from behrt_jax.data.sequences import MINUTES_PER_DAY, index_visits
from behrt_jax.data.vocabulary import SEP


def mark_pauses(patients: Patients, seed: int, days: float = 365.25) -> Patients:
    """Puts marks between visits, each a visit of its own of one `[SEP]`, as `at_times.mark_times` sets them.

    Args:
      patients: a split.
      seed: with a patient's id and the visit before, says which pauses hold a mark and when, which is drawn evenly.
      days: pauses of this length or longer hold a mark for sure, shorter ones with a chance in proportion.

    Returns:
      The patients with their visits numbered anew. A mark comes after all that happened before it, also
      where visits overlap, and before the next visit.
    """
    index = index_visits(patients, 1)
    starts, owners = index.starts[0], index.owners
    begins, ends = (patients.minutes[places].astype(np.int64) for places in (starts, index.starts[1] - 1))
    ends = np.maximum.accumulate(ends + owners * (1 << 40)) - owners * (1 << 40)  # of all visits up to each
    pauses = np.flatnonzero((owners[1:] == owners[:-1]) & (begins[1:] > ends[:-1] + 1))
    key = hash_integers(patients.subject_ids[owners[pauses]], patients.visits[starts[pauses]])
    drawn = hash_fraction(key, seed, 0) * days * MINUTES_PER_DAY < begins[pauses + 1] - ends[pauses]
    pauses, key = pauses[drawn], key[drawn]
    at = ends[pauses] + 1 + (hash_fraction(key, seed, 1) * (begins[pauses + 1] - ends[pauses] - 1)).astype(np.int64)

    before = starts[pauses + 1]  # the token that each mark is put before
    marks = np.bincount(before, minlength=len(patients.codes))
    earlier = np.cumsum(marks)
    # Of its patient: tokens come one number later for each mark before them. Static tokens keep -1.
    earlier = np.where(patients.visits >= 0, earlier - np.append(0, earlier)[patients.offsets[patients.owners]], 0)
    visits = patients.visits + earlier
    given = {"codes": SEP, "visits": visits[before] - 1, "minutes": at, "microseconds": 0}
    columns = {"visits": visits} | {name: getattr(patients, name) for name in TOKEN_FIELDS if name != "visits"}
    columns = {name: np.insert(values, before, given[name]).astype(np.int32) for name, values in columns.items()}
    added = np.bincount(owners[pauses], minlength=len(patients))
    return dataclasses.replace(patients, offsets=patients.offsets + np.append(0, np.cumsum(added)), **columns)
