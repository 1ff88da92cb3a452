"""How many threads each kind of work gets: the same whatever the number of workers.

Sums and factorisations round differently on another number of threads, so the bytes of the result
would depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch

#: Matrices with fewer entries are solved on one thread: their steps are too short to share, and
#: two threads take twice as long as one.
SHARED_FROM = 2**20
#: More than this does little for a forward pass over one batch.
_MOST_FORWARD = 8


def forward_threads(cores: int) -> int:
    """Threads of a forward pass on a machine with so many `cores`."""
    return min(cores, _MOST_FORWARD)


def solve_threads(entries: int, together: int, cores: int) -> int:
    """Threads of one solve, of a matrix of so many `entries`, when `together` can run at a time."""
    return 1 if entries < SHARED_FROM else max(1, cores // together)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """`count` threads, in torch and in Numba, while active."""
    outer, kernels = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(count)
    most: int = getattr(numba.config, "NUMBA_NUM_THREADS")  # noqa: B009 (set at run time)
    numba.set_num_threads(min(count, most))
    try:
        yield
    finally:
        numba.set_num_threads(kernels)
        torch.set_num_threads(outer)
