"""A number of threads for a piece of work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch


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
