"""How many threads a solve is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch

#: Matrices with fewer entries are solved on one thread: their steps are too short to share, and
#: two threads take twice as long as one.
SHARED_FROM = 2**20


@contextmanager
def threads_for(entries: int) -> Iterator[None]:
    """One thread, in torch and in Numba, while a small matrix is solved."""
    if entries >= SHARED_FROM:
        yield
        return
    outer, kernels = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    try:
        yield
    finally:
        numba.set_num_threads(kernels)
        torch.set_num_threads(outer)
