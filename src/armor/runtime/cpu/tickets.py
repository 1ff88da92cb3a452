"""The parts of a job that all kernels share: taking tickets, finding their layer.

Numba keeps a compiled kernel until its own file changes. So where the numbers of `job` move, every
file with a kernel that reads them has to change, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.np.numpy_support import carray

from armor.runtime.cpu.job import (
    FIRST_LAYER,
    LAYER,
    LAYERS,
    MIX_DONE,
    MIX_TICKETS,
)
from armor.simd.cache import is_kept
from armor.simd.pointers import pointer, read_counter, take_ticket

JIT: dict[str, Any] = {"cache": is_kept(), "error_model": "numpy", "nogil": True}


@njit(forceinline=True, **JIT)
def numbers_of(address):  # type: ignore[no-untyped-def]
    """The numbers of a job, int64."""
    layers = carray(pointer(address + 8 * LAYERS, np.int64), 1)[0]
    return carray(pointer(address, np.int64), FIRST_LAYER + LAYER * layers)


@njit(forceinline=True, **JIT)
def array_at(address, dtype, shape):  # type: ignore[no-untyped-def]
    """The array of `dtype` at an address of a job; `shape` is a number or a tuple."""
    return carray(pointer(address, dtype), shape)


@njit(forceinline=True, **JIT)
def next_ticket(address, counter):  # type: ignore[no-untyped-def]
    """The number of a ticket that no other thread has."""
    return take_ticket(address + 8 * counter)


@njit(forceinline=True, **JIT)
def layer_of(job, ticket, first):  # type: ignore[no-untyped-def]
    """Where the numbers of the layer begin whose ticket this is; `first` is that layer's field."""
    at = FIRST_LAYER + LAYER * (job[LAYERS] - 1)
    while job[at + first] > ticket:
        at -= LAYER
    return at


@njit(forceinline=True, **JIT)
def mix_ticket_is_done(address):  # type: ignore[no-untyped-def]
    """Say so to the other threads."""
    take_ticket(address + 8 * MIX_DONE)


@njit(forceinline=True, **JIT)
def wait_for_mixing(address, job):  # type: ignore[no-untyped-def]
    """Until all threads are done with their products with B."""
    while read_counter(address + 8 * MIX_DONE) < job[MIX_TICKETS]:
        pass
