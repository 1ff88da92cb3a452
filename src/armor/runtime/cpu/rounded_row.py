"""One row of input times rounded cores: codes, scales and positions straight from memory."""

from __future__ import annotations

import numpy as np
from numba import njit

from armor.runtime.cpu.job import (
    BYTES,
    CODES,
    CORE_FIRST,
    CORE_NEXT,
    CORE_SCALES,
    CORE_TICKETS,
    INDICES,
    KEPT,
    MIXED,
    OUT,
    ROOM,
    ROWS_A_TICKET,
    SCALES,
    SUMS,
    VALUES,
)
from armor.runtime.cpu.mixing import finish_row, mix_row
from armor.runtime.cpu.rounded_kernels import one_row
from armor.runtime.cpu.tickets import JIT, array_at, layer_of, next_ticket, numbers_of
from armor.sparse.levels import CORES

_INT8, _INT4 = (list(CORES).index(name) for name in ("int8", "int4"))


@njit(forceinline=True, **JIT)
def _rows(job, at, first, last, dtype, kind):  # type: ignore[no-untyped-def]
    """S B x for the rows first .. last-1 of a layer whose codes are an array of `kind`."""
    out, kept = job[at + OUT], job[at + KEPT]
    codes = array_at(job[at + VALUES], kind, out * kept)
    scales = array_at(job[at + CORE_SCALES], dtype, (out, job[at + SCALES]))
    indices = array_at(job[at + INDICES], np.uint8, (out, job[at + BYTES]))
    x = array_at(job[at + MIXED], np.float32, (1, job[at + ROOM]))
    sums = array_at(job[at + SUMS], np.float32, (1, out))
    for row in range(first, last):
        one_row(codes, kept, scales, indices, x, sums, row)


@njit(forceinline=True, **JIT)
def _task(address, dtype):  # type: ignore[no-untyped-def]
    """One row of input and cores of codes, each layer of its own kind."""
    job = numbers_of(address)
    mix_row(address, job, dtype)
    while True:
        ticket = next_ticket(address, CORE_NEXT)
        if ticket >= job[CORE_TICKETS]:
            break
        at = layer_of(job, ticket, CORE_FIRST)
        first = (ticket - job[at + CORE_FIRST]) * job[at + ROWS_A_TICKET]
        last = min(job[at + OUT], first + job[at + ROWS_A_TICKET])
        if job[at + CODES] == _INT8:
            _rows(job, at, first, last, dtype, np.int8)
        elif job[at + CODES] == _INT4:
            _rows(job, at, first, last, dtype, np.uint8)
        else:
            _rows(job, at, first, last, dtype, np.bool_)
        finish_row(job, at, first, last, dtype)


def float32(address):  # type: ignore[no-untyped-def]
    """The task for layers in float32."""
    _task(address, np.float32)


def bfloat16(address):  # type: ignore[no-untyped-def]
    """The task for layers in bfloat16."""
    _task(address, np.uint16)


def float16(address):  # type: ignore[no-untyped-def]
    """The task for layers in float16."""
    _task(address, np.int16)
