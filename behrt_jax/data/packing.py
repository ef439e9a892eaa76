"""Sequence packing: assigns sequences to rows by best-fit-decreasing over a histogram of lengths."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Plan:
    """Assignment of sequences to rows, as one flat array with offsets (CSR).

    Attributes:
      members: (N,) indices of sequences, row by row.
      offsets: (rows + 1,) row r holds `members[offsets[r]:offsets[r + 1]]`.
    """

    members: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1


def pack(lengths: np.ndarray, row_length: int) -> Plan:
    """Packs (N,) sequence lengths, 1 to `row_length` tokens, into few rows by best-fit-decreasing (Johnson 1973).

    Sequences of equal length are interchangeable, so the plan uses only the count of each length. Its cost grows with
    the square of the row length and hardly with the number of sequences.

    Raises:
      ValueError: a sequence is empty or longer than a row.

    >>> pack(np.array([3, 5, 2]), 5).members.tolist()
    [1, 0, 2]
    """
    lengths = np.asarray(lengths, np.int64)
    if lengths.size and not 1 <= lengths.min() <= lengths.max() <= row_length:
        raise ValueError(f"lengths: found {lengths.min()} to {lengths.max()}; expected 1 to row_length={row_length}")
    # rows_with[r] holds arrays of the rows with r tokens free.
    rows_with: list[list[np.ndarray]] = [[] for _ in range(row_length + 1)]
    row_of = np.empty(len(lengths), np.int64)
    num_rows = 0
    by_length = np.argsort(-lengths, kind="stable")
    sizes, firsts = np.unique(-lengths[by_length], return_index=True)
    for size, sequences in zip(-sizes, np.split(by_length, firsts)[1:], strict=True):
        num_placed = 0
        for free in range(size, row_length + 1):
            if num_placed == len(sequences) or not rows_with[free]:
                continue
            rows = np.concatenate(rows_with[free])
            num_placed = _fill(rows, free, size, sequences, num_placed, row_of, rows_with)
        if num_placed < len(sequences):
            num_new = -(-(len(sequences) - num_placed) // (row_length // size))
            rows = np.arange(num_rows, num_rows + num_new)
            num_rows += num_new
            _fill(rows, row_length, size, sequences, num_placed, row_of, rows_with)
    members = np.argsort(row_of, kind="stable")
    return Plan(members, np.searchsorted(row_of[members], np.arange(num_rows + 1)))


def _fill(rows, free, size, sequences, placed, row_of, rows_with) -> int:
    """Puts sequences of one size into rows with `free` tokens left, filling each row before the next."""
    per_row = free // size
    num_placed = min(len(sequences) - placed, per_row * len(rows))
    row_of[sequences[placed : placed + num_placed]] = rows[np.arange(num_placed) // per_row]
    num_full, remainder = divmod(num_placed, per_row)
    rows_with[free] = []
    for free_left, row_group in (
        (free - per_row * size, rows[:num_full]),
        (free - remainder * size, rows[num_full:][:1] if remainder else rows[:0]),
    ):
        if row_group.size:
            rows_with[free_left].append(row_group)
    unused_rows = rows[num_full + (1 if remainder else 0) :]
    if unused_rows.size:
        rows_with[free].append(unused_rows)
    return placed + num_placed
