"""One row of input times a 2:4 core: its values and positions straight from memory."""

from __future__ import annotations

import numpy as np
from numba import njit

from armor.runtime.cpu.job import (
    BYTES,
    CORE_FIRST,
    CORE_NEXT,
    CORE_TICKETS,
    INDICES,
    KEPT,
    MIXED,
    OUT,
    ROOM,
    ROWS_A_TICKET,
    SUMS,
    VALUES,
)
from armor.runtime.cpu.mixing import finish_row, mix_row
from armor.runtime.cpu.tickets import JIT, array_at, layer_of, next_ticket, numbers_of
from armor.simd.select import load_positions, select16
from armor.simd.vectors import load1, load16, multiply_add16, prefetch, sum16, zero16

_NARROW = 6144
_AHEAD = 2048  # values: a few hundred cycles before they are used


@njit(forceinline=True, **JIT)
def _last_values(values, indices, x, row, item):  # type: ignore[no-untyped-def]
    """What the kept values of `row` after its last full 16 add to the product with x[item]."""
    kept = values.shape[1]
    total = 0.0
    for place in range(kept // 16 * 16, kept):
        position = indices[row, place // 4] >> (2 * (place % 4)) & 3
        total += load1(values, row * kept + place) * x[item, place // 2 * 4 + position]
    return total


# Running offsets instead of products of the loop's counter: twice as fast in bfloat16.
@njit(forceinline=True, **JIT)
def _one_row(values, indices, x, y, row):  # type: ignore[no-untyped-def]
    """y[0, row] = S x[0]: one stream of memory is the fastest to read."""
    kept = values.shape[1]
    a0, a1, a2, a3 = zero16(), zero16(), zero16(), zero16()
    at, v, p = 0, row * kept, row * indices.shape[1]
    end = v + kept // 16 * 16
    while v + 64 <= end:
        prefetch(values, v + _AHEAD)
        prefetch(values, v + _AHEAD + 32)
        prefetch(indices, p + _AHEAD // 4)
        x0 = select16(load16(x, at), load16(x, at + 16), load_positions(indices, p))
        x1 = select16(load16(x, at + 32), load16(x, at + 48), load_positions(indices, p + 4))
        x2 = select16(load16(x, at + 64), load16(x, at + 80), load_positions(indices, p + 8))
        x3 = select16(load16(x, at + 96), load16(x, at + 112), load_positions(indices, p + 12))
        a0 = multiply_add16(a0, load16(values, v), x0)
        a1 = multiply_add16(a1, load16(values, v + 16), x1)
        a2 = multiply_add16(a2, load16(values, v + 32), x2)
        a3 = multiply_add16(a3, load16(values, v + 48), x3)
        at, v, p = at + 128, v + 64, p + 16
    while v < end:
        x0 = select16(load16(x, at), load16(x, at + 16), load_positions(indices, p))
        a0 = multiply_add16(a0, load16(values, v), x0)
        at, v, p = at + 32, v + 16, p + 4
    total = sum16(a0) + sum16(a1) + sum16(a2) + sum16(a3)
    y[0, row] = total + _last_values(values, indices, x, row, 0)


@njit(forceinline=True, **JIT)
def _four_rows(values, indices, x, y, row, rows):  # type: ignore[no-untyped-def]
    """y[0, row .. row+3] = S x[0], but none from `rows` on: an x too long for the nearest cache."""
    kept = values.shape[1]
    width = indices.shape[1]
    # Past the end the last row is computed again, which is harmless.
    r1, r2, r3 = min(row + 1, rows - 1), min(row + 2, rows - 1), min(row + 3, rows - 1)
    v1, v2, v3 = (r1 - row) * kept, (r2 - row) * kept, (r3 - row) * kept
    p1, p2, p3 = (r1 - row) * width, (r2 - row) * width, (r3 - row) * width
    a0, a1, a2, a3 = zero16(), zero16(), zero16(), zero16()
    at, v, p = 0, row * kept, row * width
    end = v + kept // 16 * 16
    while v < end:
        low, high = load16(x, at), load16(x, at + 16)
        x0 = select16(low, high, load_positions(indices, p))
        x1 = select16(low, high, load_positions(indices, p + p1))
        x2 = select16(low, high, load_positions(indices, p + p2))
        x3 = select16(low, high, load_positions(indices, p + p3))
        a0 = multiply_add16(a0, load16(values, v), x0)
        a1 = multiply_add16(a1, load16(values, v + v1), x1)
        a2 = multiply_add16(a2, load16(values, v + v2), x2)
        a3 = multiply_add16(a3, load16(values, v + v3), x3)
        at, v, p = at + 32, v + 16, p + 4
    y[0, row] = sum16(a0) + _last_values(values, indices, x, row, 0)
    y[0, r1] = sum16(a1) + _last_values(values, indices, x, r1, 0)
    y[0, r2] = sum16(a2) + _last_values(values, indices, x, r2, 0)
    y[0, r3] = sum16(a3) + _last_values(values, indices, x, r3, 0)


@njit(forceinline=True, **JIT)
def _task(address, dtype):  # type: ignore[no-untyped-def]
    """One row of input and 2:4 cores."""
    job = numbers_of(address)
    mix_row(address, job, dtype)
    while True:
        ticket = next_ticket(address, CORE_NEXT)
        if ticket >= job[CORE_TICKETS]:
            break
        at = layer_of(job, ticket, CORE_FIRST)
        out, kept, width = job[at + OUT], job[at + KEPT], job[at + BYTES]
        values = array_at(job[at + VALUES], dtype, (out, kept))
        indices = array_at(job[at + INDICES], np.uint8, (out, width))
        x = array_at(job[at + MIXED], np.float32, (1, job[at + ROOM]))
        sums = array_at(job[at + SUMS], np.float32, (1, out))
        first = (ticket - job[at + CORE_FIRST]) * job[at + ROWS_A_TICKET]
        last = min(out, first + job[at + ROWS_A_TICKET])
        if job[at + ROOM] <= _NARROW:
            for row in range(first, last):
                _one_row(values, indices, x, sums, row)
        else:
            for row in range(first, last, 4):
                _four_rows(values, indices, x, sums, row, last)
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
