"""How many threads each kind of work gets: the same whatever the number of workers.

Sums and factorisations round differently on another number of threads, so the bytes of the result
would depend on it.
"""

from __future__ import annotations

#: Matrices from this size on are solved on all threads, and have the memory to themselves.
SHARED_FROM = 2**20
#: Of smaller ones a thread gets so many entries at least: with fewer there is little to share.
_ENTRIES_EACH = 2**16
#: More than this does little for a forward pass over one batch.
_MOST_FORWARD = 8


def forward_threads(cores: int) -> int:
    """Threads of a forward pass on a machine with so many `cores`."""
    return min(cores, _MOST_FORWARD)


def solve_threads(entries: int, together: int, cores: int) -> int:
    """Threads of one solve, of a matrix of so many `entries`, when `together` can run at a time."""
    most = cores if entries >= SHARED_FROM else entries // _ENTRIES_EACH
    return max(1, min(most, cores // together))
