"""Events ahead in a recipe's batches: marks in pauses between visits, and when each target code comes."""

import functools
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from behrt_jax.data import dataset, events_ahead, marks, sequences
from behrt_jax.data.hashing import hash_integers


def mark(
    config: ConfigDict, patients: dataset.Patients, say: Callable[[str], None] = lambda line: None
) -> dataset.Patients:
    """Puts marks in pauses between visits where events are predicted at any time, and says how many."""
    if config.objective.event_times != "any":
        return patients
    marked = marks.mark_pauses(patients, config.seed)
    added = len(marked.codes) - len(patients.codes)
    say(f"{added:,} marks lie in pauses between visits, to predict events from, and count as visits below")
    return marked


def index(config: ConfigDict, patients: dataset.Patients) -> sequences.VisitIndex:
    """Finds the visits of patients by a recipe's rows."""
    return sequences.index_visits(patients, config.data.row_length, config.data.separators)


def find_times(config: ConfigDict, patients: dataset.Patients, is_target: np.ndarray) -> events_ahead.EventTimes:
    """Puts the target codes of patients, marked or not, in order as a recipe has it."""
    first, by_time = config.objective.event_first, config.objective.event_times == "any"
    return events_ahead.index_events(patients, index(config, patients), is_target, first, by_time)


def adder(config: ConfigDict, times: events_ahead.EventTimes | None, seed: int) -> Callable[[dict, int], dict]:
    """Returns what adds events ahead to the batch of a step; nothing without `times`."""
    if times is None:
        return lambda batch, step: batch
    add = functools.partial(times.add, num_visits=config.objective.event_visits)
    return lambda batch, step: add(batch, salt=int(hash_integers(seed, step + 1).view(np.int64)))
