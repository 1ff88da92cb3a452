"""One row of input times a core of any pattern, see `armor.runtime.cpu.any_pattern_kernels`."""

from __future__ import annotations

import numpy as np
from numba import njit

from armor.runtime.cpu.any_pattern_kernels import (
    COLUMNS,
    last_mask,
    mask_of_word,
    whole_chunks,
)
from armor.runtime.cpu.job import (
    BYTES,
    CODED,
    CORE_FIRST,
    CORE_NEXT,
    CORE_TICKETS,
    INDICES,
    KEPT,
    MIXED,
    OUT,
    ROOM,
    ROWS_A_TICKET,
    STARTS,
    SUMS,
    TABLE,
    VALUES,
    WIDTH,
)
from armor.runtime.cpu.mixing import finish_row, mix_row
from armor.runtime.cpu.tickets import JIT, array_at, layer_of, next_ticket, numbers_of
from armor.simd.expand import count_ones, expand16, load_word
from armor.simd.vectors import load1, load16, multiply_add16, sum16, zero16


@njit(forceinline=True, **JIT)
def core_of(job, at, dtype):  # type: ignore[no-untyped-def]
    """The core of a layer as the kernels take it."""
    out = job[at + OUT]
    return (
        array_at(job[at + VALUES], dtype, job[at + KEPT]),
        array_at(job[at + STARTS], np.intp, out + 1),
        array_at(job[at + INDICES], np.uint8, (out, job[at + BYTES])),
        array_at(job[at + TABLE], np.uint8, 128),
        job[at + WIDTH],
        job[at + CODED],
    )


@njit(forceinline=True, **JIT)
def _remaining_columns(values, codes, table, width, cols, x, row, chunk, v):  # type: ignore[no-untyped-def]
    """What the columns of `row` from a chunk on add to the product with x[0]."""
    total = np.float32(0)
    for last in range(chunk, (cols + COLUMNS - 1) // COLUMNS):
        mask = last_mask(codes, table, width, cols, row, last)
        col = COLUMNS * last
        while mask:
            if mask & np.uint64(1):
                total += load1(values, v) * x[0, col]
                v += 1
            mask >>= np.uint64(1)
            col += 1
    return total


@njit(forceinline=True, **JIT)
def _one_row(values, starts, codes, table, width, cols, x, y, row):  # type: ignore[no-untyped-def]
    """y[0, row] = S x[0]."""
    full = whole_chunks(codes, width, cols, row)
    a0, a1, a2, a3 = zero16(), zero16(), zero16(), zero16()
    v, at, chunk, c = starts[row], row * codes.shape[1], 0, 0
    end = values.shape[0] - COLUMNS  # vectors may not be read beyond the end of the values
    while chunk < full and v <= end:
        mask = mask_of_word(load_word(codes, at), table, width)
        m0, m1 = np.uint16(mask), np.uint16(mask >> np.uint64(16))
        m2, m3 = np.uint16(mask >> np.uint64(32)), np.uint16(mask >> np.uint64(48))
        v1 = v + count_ones(m0)
        v2 = v1 + count_ones(m1)
        v3 = v2 + count_ones(m2)
        a0 = multiply_add16(a0, expand16(values, v, m0), load16(x, c))
        a1 = multiply_add16(a1, expand16(values, v1, m1), load16(x, c + 16))
        a2 = multiply_add16(a2, expand16(values, v2, m2), load16(x, c + 32))
        a3 = multiply_add16(a3, expand16(values, v3, m3), load16(x, c + 48))
        v, at, chunk, c = v3 + count_ones(m3), at + width, chunk + 1, c + COLUMNS
    total = sum16(a0) + sum16(a1) + sum16(a2) + sum16(a3)
    y[0, row] = total + _remaining_columns(values, codes, table, width, cols, x, row, chunk, v)


@njit(forceinline=True, **JIT)
def _task(address, dtype):  # type: ignore[no-untyped-def]
    """One row of input and cores of any pattern."""
    job = numbers_of(address)
    mix_row(address, job, dtype)
    while True:
        ticket = next_ticket(address, CORE_NEXT)
        if ticket >= job[CORE_TICKETS]:
            break
        at = layer_of(job, ticket, CORE_FIRST)
        values, starts, codes, table, width, cols = core_of(job, at, dtype)
        x = array_at(job[at + MIXED], np.float32, (1, job[at + ROOM]))
        sums = array_at(job[at + SUMS], np.float32, (1, job[at + OUT]))
        first = (ticket - job[at + CORE_FIRST]) * job[at + ROWS_A_TICKET]
        last = min(job[at + OUT], first + job[at + ROWS_A_TICKET])
        for row in range(first, last):
            _one_row(values, starts, codes, table, width, cols, x, sums, row)
        finish_row(job, at, first, last, dtype)


def float32(address):  # type: ignore[no-untyped-def]
    """The task for one row of input and layers in float32."""
    _task(address, np.float32)


def bfloat16(address):  # type: ignore[no-untyped-def]
    """The task for one row of input and layers in bfloat16."""
    _task(address, np.uint16)


def float16(address):  # type: ignore[no-untyped-def]
    """The task for one row of input and layers in float16."""
    _task(address, np.int16)
