"""Next visits as examples: found as a loop finds them, and each predicted once from a row that holds its past."""

import collections
import dataclasses

import numpy as np
import pytest

from behrt_jax.data import dataset, next_visit_targets, windows
from behrt_jax.data.prepare import prepare
from behrt_jax.data.vocabulary import Vocabulary
from tests.data.handmade import patients_of, random_patients, visits_by_patient

VOCAB_SIZE = 60
IS_TARGET = np.isin(np.arange(VOCAB_SIZE), np.arange(20, 40))
PATTERNS = ("CONDITION//*", "PROCEDURE//*", "MEDICATION//*")


@pytest.fixture(scope="module")
def protocol(bundled_config):
    """The bundled patients as the reference protocol has them: without events that no visit names."""
    return prepare(dataclasses.replace(bundled_config, events_without_visit="leave_out"))


def by_loop(patients, is_target) -> tuple[list[tuple[int, int, set[int]]], list[set[int]]]:
    """Returns (visit, patient, target codes) of each example, and the target codes recorded before it began."""
    found, before, number, times = [], [], 0, patients.times
    for owner, visits in enumerate(visits_by_patient(patients)):
        had_target = False
        for visit in visits:
            held = {int(code) for code in patients.codes[visit] if is_target[code]}
            start = times[visit[0]]
            past = [token for other in visits for token in other if times[token] < start]
            if held and had_target and past:
                found.append((number, owner, held))
                before.append({int(code) for code in patients.codes[past] if is_target[code]})
            had_target |= bool(held)
            number += 1
    return found, before


def assert_as_by_loop(patients, is_target, row_length):
    index = windows.index_visits(patients, row_length)
    examples = next_visit_targets.find_next_visits(patients, index, is_target)
    expected, before = by_loop(patients, is_target)
    np.testing.assert_array_equal(examples.codes, np.flatnonzero(is_target))
    assert examples.visits.tolist() == [visit for visit, _, _ in expected]
    assert examples.patients.tolist() == [owner for _, owner, _ in expected]
    targets, seen = examples.targets.toarray(), examples.seen_before()
    assert targets.dtype == seen.dtype == bool and targets.shape == seen.shape == (len(examples), is_target.sum())
    for number, (_, _, held) in enumerate(expected):
        assert set(examples.codes[targets[number]].tolist()) == held
        assert set(examples.codes[seen[number]].tolist()) == before[number]
    return examples


@pytest.mark.parametrize("seed", [0, 1])
def test_examples_are_what_a_loop_finds(seed):
    patients = random_patients(seed, 150, vocabulary=VOCAB_SIZE)
    assert len(assert_as_by_loop(patients, IS_TARGET, 24)) > 300


def test_examples_by_hand():
    """Codes 20 and 21 are targets; the first visit that holds one is no example, nor is one that holds none."""
    visits = [[(9, 0)], [(20, 10), (9, 10)], [(9, 20)], [(21, 30), (21, 31), (20, 30)], [(21, 40)]]
    patients = patients_of({"static": [20], "visits": visits}, {"visits": [[(20, 5)]]}, {"visits": [[(20, 5)]] * 1})
    examples = assert_as_by_loop(patients, np.isin(np.arange(VOCAB_SIZE), (20, 21)), 24)
    assert examples.visits.tolist() == [3, 4] and examples.patients.tolist() == [0, 0]
    assert examples.targets.toarray().tolist() == [[True, True], [False, True]]
    assert examples.seen_before().tolist() == [[True, False], [True, True]]


def test_bundled_examples_are_those_of_the_protocol(protocol):
    is_target = next_visit_targets.target_codes(protocol.vocabulary, PATTERNS, 5)
    assert is_target.sum() == 589
    counts = {}
    for split in ("train", "tuning", "held_out"):
        patients = dataset.read(protocol.folder, split)
        index = windows.index_visits(patients, 256)
        counts[split] = len(next_visit_targets.find_next_visits(patients, index, is_target))
        if split == "tuning":
            assert_as_by_loop(patients, is_target, 256)
    assert counts == {"train": 83_236, "tuning": 18_734, "held_out": 19_184}


def test_target_codes_by_name_and_by_patients():
    vocabulary = Vocabulary(("A//1", "A//2", "B//1", "B//2"), (9, 8, 7, 6), (9, 3, 7, 2), {})
    for patterns, least, expected in (
        (("A//*",), 1, [5, 6]),
        (("A//*", "B//1"), 4, [5, 7]),
        (("*",), 2, [5, 6, 7, 8]),
        (("*2",), 3, [6]),
    ):
        found = next_visit_targets.target_codes(vocabulary, patterns, least)
        assert found.shape == (len(vocabulary),) and np.flatnonzero(found).tolist() == expected
    message = (
        r"objective.targets: none of the 4 codes in the vocabulary \(such as A//1, .*matches \('C\*',\) in 1 train"
    )
    with pytest.raises(ValueError, match=message):
        next_visit_targets.target_codes(vocabulary, ("C*",), 1)
    with pytest.raises(ValueError, match="in 10 train patients or more; name patterns of your data's codes"):
        next_visit_targets.target_codes(vocabulary, ("*",), 10)


LAYOUTS = [(9, True, 3), (16, True, 5), (16, False, 4), (33, False, 7), (50, True, 1), (64, True, 8)]


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(("row_length", "use_sep", "batch_size"), LAYOUTS)
def test_every_example_is_predicted_once_from_its_past(row_length, use_sep, batch_size, cut):
    """Some visits are longer than half a row, and in the short rows longer than a row."""
    patients = random_patients(row_length, 60, most_visits=20, most_codes=18, vocabulary=VOCAB_SIZE)
    index = windows.index_visits(patients, row_length, use_sep)
    examples = next_visit_targets.find_next_visits(patients, index, IS_TARGET)
    costs = np.diff(index.ends)
    longest = costs.max()
    assert longest > row_length // 2 - 20 * (row_length > 40) and (longest > row_length or row_length > 16)
    seen, unused = collections.Counter(), 0
    for batch, ends, which, _ in next_visit_targets.boundary_batches(patients, index, examples, batch_size, cut):
        assert ends.shape == which.shape == (batch_size, row_length // (2 if use_sep else 1))
        assert batch["codes"].shape == (batch_size, row_length)
        unused += (which < 0).sum()
        for row, slot in np.argwhere(which >= 0):
            example, place = which[row, slot], ends[row, slot]
            seen[int(example)] += 1
            own = batch["patient_ids"][row, place]
            assert own and batch["patient_index"][row, own - 1] == examples.patients[example]
            mine = np.flatnonzero(batch["patient_ids"][row] == own)
            visits = batch["window_starts"][row, own - 1] + batch["visit_ids"][row, mine]
            before = visits < examples.visits[example]
            assert visits[before].max() == examples.visits[example] - 1 and mine[before].max() == place
            start, owner = visits[0], examples.patients[example]
            whole = np.arange(start, examples.visits[example])
            past = int(before.sum()) - 1 - index.static_counts[owner]  # [CLS] and static tokens are no past
            assert past == min(costs[whole].sum(), index.budgets[owner])
            if cut:
                assert before.all()
                room = index.budgets[owner]
            else:
                room = index.budgets[owner] // 2
            # The room is filled with whole visits: one more would not have fitted, or there is none.
            assert start == index.first_visit[owner] or past + costs[start - 1] > room
    assert seen == dict.fromkeys(range(len(examples)), 1) and len(examples) > 100 and unused


def test_rows_of_a_causal_model_hold_later_visits_and_cut_rows_do_not():
    patients = random_patients(3, 40, most_visits=15, vocabulary=VOCAB_SIZE)
    index = windows.index_visits(patients, 64)
    examples = next_visit_targets.find_next_visits(patients, index, IS_TARGET)
    rows = {}
    for cut in (False, True):
        found = list(next_visit_targets.boundary_batches(patients, index, examples, 4, cut))
        rows[cut] = sum(int((batch["patient_ids"] > 0).any(axis=1).sum()) for batch, *_ in found)
    assert rows[True] > 2 * rows[False]


@pytest.mark.parametrize("cut", [False, True])
def test_a_split_without_examples_has_no_rows(cut):
    patients = patients_of({"visits": [[(20, 0)], [(9, 5)]]})
    index = windows.index_visits(patients, 16)
    examples = next_visit_targets.find_next_visits(patients, index, IS_TARGET)
    assert len(examples) == 0 and not list(next_visit_targets.boundary_batches(patients, index, examples, 2, cut))
