"""Batches of packed rows: training epochs as a function of (seed, epoch), and one fixed-order pass for evaluation."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from behrt_jax.data import packing
from behrt_jax.data import windows as data_windows
from behrt_jax.data.dataset import Patients
from behrt_jax.data.hashing import hash_integers


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One pass over a split: its windows, their rows and the order of rows.

    Attributes:
      windows: the visits of each patient that the epoch uses.
      plan: which windows share a row.
      order: (rows,) the order of rows.
      salt: the hash key that orders codes recorded at the same time.
    """

    windows: data_windows.Windows
    plan: packing.Plan
    order: np.ndarray
    salt: int

    def num_batches(self, batch_size: int) -> int:
        """Returns the number of batches in the epoch; the last one may be partly empty."""
        return -(-len(self.plan) // batch_size)

    @property
    def fill(self) -> float:
        """Mean number of non-padding tokens per row; divide by the row length for a fraction."""
        return float(self.windows.lengths.sum() / max(len(self.plan), 1))


def training_epoch(
    patients: Patients,
    index: data_windows.VisitIndex,
    seed: int,
    epoch: int,
    newest: bool = False,
    weights: np.ndarray | None = None,
) -> Epoch:
    """Plans an epoch: packs each patient's newest or random window (see `random_windows`) and shuffles the rows."""
    salt = int(hash_integers(seed, epoch + 1).view(np.int64))
    if newest:
        order = np.argsort(hash_integers(salt, np.arange(len(patients))), kind="stable")  # new row-mates each epoch
        windows = data_windows.windows_until(index, index.first_visit[1:][order], order)
    else:
        windows = data_windows.random_windows(index, patients.subject_ids, salt, weights)
    plan = packing.pack(windows.lengths, index.row_length)
    return Epoch(windows, plan, np.argsort(hash_integers(salt, np.arange(len(plan))), kind="stable"), salt)


def evaluation_epoch(index: data_windows.VisitIndex, windows: data_windows.Windows | None = None) -> Epoch:
    """Plans one pass over windows in a fixed order; uses each patient's newest window if none are given."""
    windows = data_windows.newest_windows(index) if windows is None else windows
    plan = packing.pack(windows.lengths, index.row_length)
    return Epoch(windows, plan, np.arange(len(plan)), data_windows.EVALUATION_SALT)


def batch_of(
    patients: Patients, index: data_windows.VisitIndex, epoch: Epoch, number: int, batch_size: int
) -> dict[str, np.ndarray]:
    """Lays out one batch of an epoch.

    Returns:
      The columns of `windows.COLUMNS` and any `values` as (B, L), `times` (B, L) int64 as `Patients.times` (-1 for
      `[CLS]` and static tokens), and `patient_ids` (B, L) int32 (0 = padding, 1.. = which patient in the row). For each
      window in a row, (B, P) int32 with -1 for unused slots: `patient_index`, the row in `patients`; `window_index`,
      the index in `epoch.windows`; and `window_starts`, the index of its first visit. P is the largest number of
      windows in a row of this epoch. Rows past the epoch's last are empty.
    """
    rows = epoch.order[number * batch_size : (number + 1) * batch_size]
    counts = np.diff(epoch.plan.offsets)[rows]
    members = epoch.plan.members[data_windows.ranges(epoch.plan.offsets[rows], counts)]
    row_of = np.repeat(np.arange(len(rows)), counts)
    slots = number_in_rows(row_of)
    lengths = epoch.windows.lengths[members]
    before = np.cumsum(lengths) - lengths
    row_starts = before[np.cumsum(counts) - counts]
    offset = row_of * index.row_length + before - row_starts[row_of]

    columns = data_windows.build_columns(patients, index, epoch.windows, members, epoch.salt)
    target = np.repeat(offset - before, lengths) + np.arange(lengths.sum())
    shape = (batch_size, index.row_length)
    batch = {}
    for name, values in {**columns, "patient_ids": np.repeat(slots + 1, lengths).astype(np.int32)}.items():
        batch[name] = np.full(shape[0] * shape[1], np.nan if name == "values" else 0, values.dtype)
        batch[name][target] = values
        batch[name] = batch[name].reshape(shape)
    max_windows = int(np.diff(epoch.plan.offsets).max(initial=1))
    slot_values = {"patient_index": epoch.windows.patients, "window_starts": epoch.windows.start}
    slot_values["window_index"] = np.arange(len(epoch.windows.start))
    for name, values in slot_values.items():
        batch[name] = np.full((batch_size, max_windows), -1, np.int32)
        batch[name][row_of, slots] = values[members]
    return batch


def one_a_row(
    patients: Patients,
    row_length: int,
    use_sep: bool = True,
    windows: data_windows.Windows | None = None,
    with_times: bool = False,
) -> dict[str, np.ndarray]:
    """Lays out N windows (each patient's newest if not given) one per row, in order.

    Returns:
      The columns of `batch_of` that models read, (N, L) each, `times` too if asked for, and `in_visit`, True for the
      tokens of visits, including `[SEP]`.
    """
    index = data_windows.index_visits(patients, row_length, use_sep)
    windows = data_windows.newest_windows(index) if windows is None else windows
    order = np.arange(len(windows.patients))
    plan = packing.Plan(order, np.arange(len(order) + 1))
    batch = batch_of(patients, index, Epoch(windows, plan, order, data_windows.EVALUATION_SALT), 0, len(order))
    names = (*data_windows.COLUMNS, "patient_ids", *["times"] * with_times, *["values"] * ("values" in batch))
    columns = {name: batch[name] for name in names}
    in_visit = (columns["positions"] > index.static_counts[windows.patients][:, None]) & (columns["patient_ids"] != 0)
    return {**columns, "in_visit": in_visit}


def visit_ends(batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the row and the column of each visit's last token in a packed batch, and the visit's index."""
    owners, visit_ids = batch["patient_ids"], batch["visit_ids"]
    next_owner, next_visit = (np.pad(values[:, 1:], ((0, 0), (0, 1))) for values in (owners, visit_ids))
    rows, columns = np.nonzero((owners != 0) & ((owners != next_owner) | (visit_ids != next_visit)))
    return rows, columns, batch["window_starts"][rows, owners[rows, columns] - 1] + visit_ids[rows, columns]


def number_in_rows(rows: np.ndarray) -> np.ndarray:
    """Numbers the entries of each row from 0, (n,), for ascending rows.

    >>> number_in_rows(np.array([0, 0, 2, 2, 2])).tolist()
    [0, 1, 0, 1, 2]
    """
    return np.arange(len(rows)) - np.searchsorted(rows, rows)


def training_batches(
    patients: Patients,
    row_length: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    use_sep: bool = True,
    newest: bool = False,
    weights: np.ndarray | None = None,
) -> Iterator[dict]:
    """Yields training batches endlessly, starting with that of `start_step`; see `index_visits` and `training_epoch`.

    Skipping to a step plans the earlier epochs without building their rows, so resuming needs only the step.
    """
    index = data_windows.index_visits(patients, row_length, use_sep)
    first_step, epoch_number = 0, 0
    while True:
        epoch = training_epoch(patients, index, seed, epoch_number, newest, weights)
        steps = epoch.num_batches(batch_size)
        for batch_number in range(max(start_step - first_step, 0), steps):
            yield batch_of(patients, index, epoch, batch_number, batch_size)
        first_step, epoch_number = first_step + steps, epoch_number + 1


def evaluation_batches(patients: Patients, row_length: int, batch_size: int, use_sep: bool = True) -> Iterator[dict]:
    """Yields each patient's newest window once, in a fixed order."""
    index = data_windows.index_visits(patients, row_length, use_sep)
    epoch = evaluation_epoch(index)
    for number in range(epoch.num_batches(batch_size)):
        yield batch_of(patients, index, epoch, number, batch_size)
