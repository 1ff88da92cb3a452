"""One row of input: its products with the wrappers, which kernels for all patterns share."""

from __future__ import annotations

import numpy as np
from numba import njit

from armor.runtime.cpu.job import (
    BIAS,
    BLOCKS_A_TICKET,
    COLS,
    LEFT,
    LEFT_BLOCK,
    LEFT_SCALES,
    MIX_FIRST,
    MIX_NEXT,
    MIX_TICKETS,
    MIXED,
    OUT,
    RIGHT,
    RIGHT_BLOCK,
    RIGHT_COUNT,
    RIGHT_SCALES,
    ROOM,
    ROWS_A_TICKET,
    SUMS,
    X,
    Y,
)
from armor.runtime.cpu.tickets import (
    JIT,
    array_at,
    layer_of,
    mix_ticket_is_done,
    next_ticket,
    wait_for_mixing,
)
from armor.simd.codes import load_code1, load_codes16
from armor.simd.vectors import (
    load1,
    load16,
    multiply_add16,
    store1,
    store_half_sums,
    store_sums,
    zero16,
)


@njit(forceinline=True, **JIT)
def _times_block(blocks, place, size, x, col, y, row):  # type: ignore[no-untyped-def]
    """y[row .. row+size-1] = the block at blocks[place], (size, size), times x[col ..].

    Of codes in units of their scales.
    """
    if size % 16 == 0:
        for line in range(0, size, 4):
            a, b, c, d = zero16(), zero16(), zero16(), zero16()
            at = place + line * size
            for k in range(0, size, 16):
                there = load16(x, col + k)
                a = multiply_add16(a, load_codes16(blocks, at + k), there)
                b = multiply_add16(b, load_codes16(blocks, at + size + k), there)
                c = multiply_add16(c, load_codes16(blocks, at + 2 * size + k), there)
                d = multiply_add16(d, load_codes16(blocks, at + 3 * size + k), there)
            store_sums(y, row + line, a, b, c, d)
    elif size == 8:
        twice = np.empty(16, np.float32)
        for k in range(8):
            twice[k] = twice[k + 8] = x[col + k]
        there = load16(twice, 0)
        a, b = load_codes16(blocks, place) * there, load_codes16(blocks, place + 16) * there
        c, d = load_codes16(blocks, place + 32) * there, load_codes16(blocks, place + 48) * there
        store_half_sums(y, row, a, b, c, d)
    else:
        for line in range(size):
            total = np.float32(0)
            for k in range(size):
                total += load_code1(blocks, place + line * size + k) * x[col + k]
            y[row + line] = total


@njit(forceinline=True, **JIT)
def _mix(job, at, ticket, dtype):  # type: ignore[no-untyped-def]
    """A ticket's part of B x."""
    cols, room = job[COLS], job[at + ROOM]
    x, mixed = array_at(job[X], dtype, cols), array_at(job[at + MIXED], np.float32, room)
    size, count = job[at + RIGHT_BLOCK], job[at + RIGHT_COUNT]
    if not size:
        for col in range(cols):
            mixed[col] = load1(x, col)
        mixed[cols:] = 0
        return
    first = ticket * job[at + BLOCKS_A_TICKET]
    last = min(count, first + job[at + BLOCKS_A_TICKET])
    floats = np.zeros((last - first) * size, np.float32)
    for place in range(min(len(floats), cols - first * size)):
        floats[place] = load1(x, first * size + place)
    if job[at + RIGHT_SCALES]:
        codes = array_at(job[at + RIGHT], np.int8, count * size * size)
        scales = array_at(job[at + RIGHT_SCALES], dtype, count * size)
        for place in range(first * size, last * size, size):
            _times_block(codes, place * size, size, floats, place - first * size, mixed, place)
        for row in range(first * size, last * size):
            mixed[row] *= load1(scales, row)
    else:
        blocks = array_at(job[at + RIGHT], dtype, count * size * size)
        for place in range(first * size, last * size, size):
            _times_block(blocks, place * size, size, floats, place - first * size, mixed, place)
    if last == count:
        mixed[count * size :] = 0


@njit(forceinline=True, **JIT)
def mix_row(address, job, dtype):  # type: ignore[no-untyped-def]
    """B x of all layers; all threads leave it when all of that is done."""
    while True:
        ticket = next_ticket(address, MIX_NEXT)
        if ticket >= job[MIX_TICKETS]:
            break
        at = layer_of(job, ticket, MIX_FIRST)
        _mix(job, at, ticket - job[at + MIX_FIRST], dtype)
        mix_ticket_is_done(address)
    wait_for_mixing(address, job)


@njit(forceinline=True, **JIT)
def finish_row(job, at, first, last, dtype):  # type: ignore[no-untyped-def]
    """y[first .. last-1] = A times the sums there (whole blocks), and the bias."""
    out, size = job[at + OUT], job[at + LEFT_BLOCK]
    height = job[at + ROWS_A_TICKET]
    sums = array_at(job[at + SUMS] + 4 * first, np.float32, height)
    y, bias = array_at(job[at + Y], dtype, out), array_at(job[at + BIAS], dtype, out)
    if size:
        padded = (out + size - 1) // size * size
        done = np.empty(height, np.float32)
        sums[last - first : (last - first + size - 1) // size * size] = 0
        if job[at + LEFT_SCALES]:
            codes = array_at(job[at + LEFT], np.int8, padded * size)
            scales = array_at(job[at + LEFT_SCALES], dtype, padded)
            for row in range(0, last - first, size):
                _times_block(codes, (first + row) * size, size, sums, row, done, row)
            for row in range(last - first):
                done[row] *= load1(scales, first + row)
        else:
            left = array_at(job[at + LEFT], dtype, padded * size)
            for row in range(0, last - first, size):
                _times_block(left, (first + row) * size, size, sums, row, done, row)
    else:
        done = sums
    if job[at + BIAS]:
        for row in range(first, last):
            store1(y, row, done[row - first] + load1(bias, row))
    else:
        for row in range(first, last):
            store1(y, row, done[row - first])
