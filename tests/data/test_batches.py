import itertools

import numpy as np
import pytest

from behrt_jax.data import batches
from behrt_jax.data import windows as data_windows
from behrt_jax.data.vocabulary import CLS, SEP
from tests.data.handmade import only, patients_of, random_patients

ROW_LENGTH, BATCH_SIZE = 24, 4
PATIENTS = random_patients(0, 90)


def stream(seed: int = 1, start_step: int = 0, patients=PATIENTS):
    return batches.training_batches(patients, ROW_LENGTH, BATCH_SIZE, seed, start_step)


def epoch_sizes(count: int, seed: int = 1) -> list[int]:
    index = data_windows.index_visits(PATIENTS, ROW_LENGTH)
    return [batches.training_epoch(PATIENTS, index, seed, number).num_batches(BATCH_SIZE) for number in range(count)]


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
        assert one[name].dtype == other[name].dtype


def members(batch: dict) -> list[int]:
    return batch["patient_index"][batch["patient_index"] >= 0].tolist()


def of_patient(batch: dict, patient: int) -> dict[str, np.ndarray]:
    """The columns of one patient of a batch."""
    ((row, slot),) = np.argwhere(batch["patient_index"] == patient)
    mine = batch["patient_ids"][row] == slot + 1
    return {name: batch[name][row, mine] for name in data_windows.COLUMNS}


def test_shapes_and_kinds():
    batch = next(stream())
    for name, kind in {**data_windows.COLUMNS, "patient_ids": np.int32}.items():
        assert batch[name].shape == (BATCH_SIZE, ROW_LENGTH) and batch[name].dtype == kind
    assert batch["patient_index"].dtype == np.int32


@pytest.mark.parametrize("where", ["begin", "first epoch", "end of first epoch", "third epoch"])
def test_a_resumed_stream_is_identical(where):
    sizes = epoch_sizes(3)
    assert min(sizes) >= 4
    step = {"begin": 0, "first epoch": 2, "end of first epoch": sizes[0], "third epoch": sizes[0] + sizes[1] + 3}[where]
    uninterrupted = itertools.islice(stream(), step, step + sizes[2] + 2)
    for one, other in zip(uninterrupted, stream(start_step=step), strict=False):
        assert_equal(one, other)


def test_seeds_and_epochs_differ():
    first, other = next(stream(seed=1)), next(stream(seed=2))
    assert not np.array_equal(first["codes"], other["codes"])
    second = next(stream(start_step=epoch_sizes(1)[0]))
    assert members(first) != members(second)
    index = data_windows.index_visits(PATIENTS, ROW_LENGTH)
    salts = {batches.training_epoch(PATIENTS, index, seed, epoch).salt for seed in range(9) for epoch in range(9)}
    assert len(salts) == 81 and data_windows.EVALUATION_SALT not in salts


def test_rows_come_in_another_order_each_epoch():
    index = data_windows.index_visits(PATIENTS, ROW_LENGTH)
    orders = [batches.training_epoch(PATIENTS, index, 1, number).order for number in range(3)]
    for order in orders:
        assert sorted(order) == list(range(len(order))) and order.tolist() != sorted(order)
    assert orders[0].tolist() != orders[1].tolist() != orders[2].tolist()


def test_newest_windows_end_with_the_newest_visit_in_every_epoch_among_other_row_mates():
    index = data_windows.index_visits(PATIENTS, ROW_LENGTH)
    expected = data_windows.newest_windows(index)
    mates = []
    for number in range(3):
        epoch = batches.training_epoch(PATIENTS, index, 1, number, newest=True)
        for name in ("start", "stop", "skipped", "lengths"):
            ordered = getattr(epoch.windows, name)[np.argsort(epoch.windows.patients)]
            np.testing.assert_array_equal(ordered, getattr(expected, name))
        owners = epoch.windows.patients[epoch.plan.members]
        rows = np.split(owners, epoch.plan.offsets[1:-1])
        assert sorted(owners) == list(range(len(PATIENTS)))
        mates.append({frozenset(row.tolist()) for row in rows if len(row) > 1})
    assert mates[0] != mates[1] != mates[2]
    assert len({batches.training_epoch(PATIENTS, index, 1, n, True).num_batches(4) for n in range(9)}) == 1


def test_every_patient_once_an_epoch():
    steps = stream()
    for size in epoch_sizes(3):
        seen = [patient for batch in itertools.islice(steps, size) for patient in members(batch)]
        assert sorted(seen) == list(range(len(PATIENTS)))


def test_patients_lie_side_by_side_and_are_numbered():
    for batch in itertools.islice(stream(), 20):
        for row, patients in zip(batch["patient_ids"], batch["patient_index"], strict=True):
            number = int((patients >= 0).sum())
            assert (patients[:number] >= 0).all()
            used = np.count_nonzero(row)
            assert (row[used:] == 0).all() and (np.diff(row[:used]) >= 0).all()
            assert np.unique(row[:used]).tolist() == list(range(1, number + 1))
        starts = batch["positions"] == 0
        assert (batch["codes"][starts & (batch["patient_ids"] > 0)] == CLS).all()
        assert (batch["codes"] == CLS).sum() == len(members(batch))


def test_the_last_batch_is_part_empty():
    patients = patients_of(*[{"visits": [[(10, 0)] * 20]}] * 6)
    index = data_windows.index_visits(patients, ROW_LENGTH)
    found = list(batches.evaluation_batches(patients, ROW_LENGTH, BATCH_SIZE))
    assert [len(members(batch)) for batch in found] == [4, 2]
    last = found[1]
    assert (last["patient_index"][2:] == -1).all() and (last["patient_ids"][:2, :22] == 1).all()
    for name in {*data_windows.COLUMNS, "patient_ids"}:
        assert not last[name][last["patient_ids"] == 0].any()
        assert last[name].shape == found[0][name].shape
    assert batches.evaluation_epoch(index).num_batches(BATCH_SIZE) == 2


def test_padding_is_zero_everywhere():
    for batch in itertools.islice(stream(), 10):
        padding = batch["patient_ids"] == 0
        assert padding.any()
        for name in data_windows.COLUMNS:
            assert not batch[name][padding].any()


def test_a_patients_columns_do_not_depend_on_others():
    everyone = list(batches.evaluation_batches(PATIENTS, ROW_LENGTH, BATCH_SIZE))
    trained = list(itertools.islice(stream(), epoch_sizes(1)[0]))
    for patient in (0, 17, 45, 89):
        alone = only(PATIENTS, np.array([patient]))
        for among, apart in (
            (everyone, next(batches.evaluation_batches(alone, ROW_LENGTH, 1))),
            (trained, next(batches.training_batches(alone, ROW_LENGTH, 1, seed=1))),
        ):
            (batch,) = [batch for batch in among if patient in members(batch)]
            assert_equal(of_patient(batch, patient), of_patient(apart, 0))


def test_evaluation_is_the_newest_window_in_a_fixed_order():
    once, again = (list(batches.evaluation_batches(PATIENTS, ROW_LENGTH, BATCH_SIZE)) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        assert_equal(one, other)
    assert sorted(patient for batch in once for patient in members(batch)) == list(range(len(PATIENTS)))
    index = data_windows.index_visits(PATIENTS, ROW_LENGTH)
    windows = data_windows.newest_windows(index)
    columns = data_windows.build_columns(
        PATIENTS, index, windows, np.arange(len(PATIENTS)), data_windows.EVALUATION_SALT
    )
    for patient, end in enumerate(np.cumsum(windows.lengths)):
        (batch,) = [batch for batch in once if patient in members(batch)]
        mine = of_patient(batch, patient)
        for name in data_windows.COLUMNS:
            np.testing.assert_array_equal(mine[name], columns[name][end - windows.lengths[patient] : end])


def test_separators_can_be_left_out():
    patients = patients_of(*[{"visits": [[(10 + i, i)] for i in range(ROW_LENGTH - 1)]}] * 3)
    for found in (
        next(batches.evaluation_batches(patients, ROW_LENGTH, 3, use_sep=False)),
        next(batches.training_batches(patients, ROW_LENGTH, 3, seed=1, use_sep=False)),
    ):
        assert SEP not in found["codes"]
    for found in (next(batches.evaluation_batches(patients, ROW_LENGTH, 3)), next(stream(patients=patients))):
        assert SEP in found["codes"] and (found["codes"] == SEP).sum() == found["maskable"].sum()
    (whole,) = batches.evaluation_batches(patients, ROW_LENGTH, 3, use_sep=False)
    assert (whole["patient_ids"] == 1).all() and whole["maskable"][:, 1:].all()


def test_places_for_patients_are_the_same_in_all_batches_of_an_epoch():
    steps = stream()
    for size in epoch_sizes(2):
        epoch = list(itertools.islice(steps, size))
        widths = {batch["patient_index"].shape for batch in epoch}
        most = max(int((batch["patient_index"] >= 0).sum(axis=1).max()) for batch in epoch)
        assert widths == {(BATCH_SIZE, most)}


def test_fill_is_tokens_a_row():
    index = data_windows.index_visits(PATIENTS, ROW_LENGTH)
    epoch = batches.training_epoch(PATIENTS, index, 1, 0)
    found = list(itertools.islice(stream(), epoch.num_batches(BATCH_SIZE)))
    tokens = sum(int((batch["patient_ids"] > 0).sum()) for batch in found)
    rows = sum(int((batch["patient_ids"] > 0).any(axis=1).sum()) for batch in found)
    assert epoch.fill == pytest.approx(tokens / rows) and rows == len(epoch.plan)


def test_windows_and_ends_of_visits_in_a_batch():
    """Several windows a patient: each slot names its window, whose first visit its visits count from."""
    index = data_windows.index_visits(PATIENTS, ROW_LENGTH)
    windows, _ = data_windows.covering_windows(index)
    epoch = batches.evaluation_epoch(index, windows)
    seen = []
    for number in range(epoch.num_batches(BATCH_SIZE)):
        batch = batches.batch_of(PATIENTS, index, epoch, number, BATCH_SIZE)
        used = batch["window_index"] >= 0
        np.testing.assert_array_equal(used, batch["patient_index"] >= 0)
        np.testing.assert_array_equal(used, batch["window_starts"] >= 0)
        found = batch["window_index"][used]
        np.testing.assert_array_equal(batch["patient_index"][used], windows.patients[found])
        np.testing.assert_array_equal(batch["window_starts"][used], windows.start[found])
        seen += found.tolist()
        expected = []
        for row, owners in enumerate(batch["patient_ids"]):
            for place in np.flatnonzero(owners):
                here = (owners[place], batch["visit_ids"][row, place])
                after = place + 1
                if after == ROW_LENGTH or (owners[after], batch["visit_ids"][row, after]) != here:
                    window = batch["window_index"][row, here[0] - 1]
                    expected.append((row, place, windows.start[window] + here[1]))
        assert list(zip(*batches.visit_ends(batch), strict=True)) == expected
    assert sorted(seen) == list(range(len(windows.start))) and len(seen) > len(PATIENTS)
