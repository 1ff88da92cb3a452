"""How many threads each kind of work gets: the same whatever the number of workers.

Sums and factorisations round differently on another number of threads, so the bytes of the result
would depend on it.
"""

from __future__ import annotations

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
