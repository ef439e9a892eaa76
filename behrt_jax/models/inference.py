"""Inference over many batches: few rows at a time on a CPU, and the next batches computed while one is read."""

import collections
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax

CPU_ROWS = 8
AHEAD = 2  # batches; each holds its temporaries in memory
Host = TypeVar("Host")


def limit_rows(batch_size: int) -> int:
    """Returns the rows of an inference batch: `batch_size`, but at most 8 on a CPU, as more do not fit in its cache."""
    return min(batch_size, CPU_ROWS) if jax.default_backend() == "cpu" else batch_size


def fetch(batches: Iterable[tuple[Host, Any]]) -> Iterator[tuple[Host, Any]]:
    """Yields pairs of host data and results, in order, with the results as numpy arrays.

    JAX returns a result before it is computed. The next `AHEAD` pairs are taken before waiting for one, so that a
    device computes them while the host reads it.

    Args:
      batches: pairs of anything and a tree of arrays; only the second is transferred.
    """
    pending = collections.deque()
    for batch in batches:
        pending.append(batch)
        if len(pending) > AHEAD:
            host, results = pending.popleft()
            yield host, jax.device_get(results)
    for host, results in pending:
        yield host, jax.device_get(results)
