"""Several rows of input: what kernels for all patterns share. Each lane of a vector is an item.

Inputs are held in groups of up to 32 items, column by column, so that a kept value of the core is
multiplied with its column of all items of the group at once: no input has to be picked out of a
vector, and only kept values are multiplied.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from armor.runtime.cpu.job import (
    BATCH,
    BIAS,
    BLOCKS_A_TICKET,
    COLS,
    ITEMS,
    LEFT,
    LEFT_BLOCK,
    MIX_FIRST,
    MIX_NEXT,
    MIX_TICKETS,
    MIXED,
    OUT,
    RIGHT,
    RIGHT_BLOCK,
    RIGHT_COUNT,
    ROOM,
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
from armor.simd.vectors import load1, store1
from armor.simd.wide import add_product, store_lanes, zeros

MOST_ITEMS = 32  # of a group: eight registers of AVX2 hold two sums of each


@njit(forceinline=True, **JIT)
def _times_block(tag, blocks, place, size, x, y):  # type: ignore[no-untyped-def]
    """y (size, lanes) = the block (size, size) at blocks[place] times x (size, lanes), flat."""
    lanes = 1 << len(tag)
    for line in range(0, size, 2):
        other = min(line + 1, size - 1)
        a, b = zeros(tag), zeros(tag)
        p, q = place + line * size, place + other * size
        for k in range(size):
            a = add_product(a, load1(blocks, p + k), x, k * lanes)
            b = add_product(b, load1(blocks, q + k), x, k * lanes)
        store_lanes(y, line * lanes, a)
        store_lanes(y, other * lanes, b)


@njit(forceinline=True, **JIT)
def _gather(tag, x, cols, item, count, first, last, out):  # type: ignore[no-untyped-def]
    """out (last-first, lanes), flat = columns of `count` items from `item` on; 0 where none is."""
    lanes = 1 << len(tag)
    out[: (last - first) * lanes] = 0
    for lane in range(count):
        start = (item + lane) * cols
        for col in range(first, min(last, cols)):
            out[(col - first) * lanes + lane] = load1(x, start + col)


@njit(forceinline=True, **JIT)
def _mix(tag, job, at, part, group, count, dtype):  # type: ignore[no-untyped-def]
    """A ticket's part of B x, for the items of a group."""
    lanes = 1 << len(tag)
    cols, room, item = job[COLS], job[at + ROOM], group * job[ITEMS]
    x = array_at(job[X], dtype, job[BATCH] * cols)
    mixed = array_at(job[at + MIXED] + 4 * item * room, np.float32, room * lanes)
    size, blocks = job[at + RIGHT_BLOCK], job[at + RIGHT_COUNT]
    if not size:
        _gather(tag, x, cols, item, count, 0, room, mixed)
        return
    right = array_at(job[at + RIGHT], dtype, blocks * size * size)
    first = part * job[at + BLOCKS_A_TICKET]
    last = min(blocks, first + job[at + BLOCKS_A_TICKET])
    own = np.empty(size * lanes, np.float32)
    for block in range(first, last):
        start = block * size
        _gather(tag, x, cols, item, count, start, start + size, own)
        _times_block(tag, right, start * size, size, own, mixed[start * lanes :])
    if last == blocks:
        mixed[blocks * size * lanes :] = 0


@njit(forceinline=True, **JIT)
def lanes_of(count):  # type: ignore[no-untyped-def]
    """How many lanes a group of so many items has."""
    return 4 if count <= 4 else 8 if count <= 8 else 16 if count <= 16 else 32


@njit(forceinline=True, **JIT)
def mix_items(address, job, dtype):  # type: ignore[no-untyped-def]
    """B x of all layers; all threads leave it when all of that is done."""
    groups = (job[BATCH] + job[ITEMS] - 1) // job[ITEMS]
    while True:
        ticket = next_ticket(address, MIX_NEXT)
        if ticket >= job[MIX_TICKETS]:
            break
        at = layer_of(job, ticket, MIX_FIRST)
        part, group = (
            (ticket - job[at + MIX_FIRST]) // groups,
            (ticket - job[at + MIX_FIRST]) % groups,
        )
        count = min(job[ITEMS], job[BATCH] - group * job[ITEMS])
        lanes = lanes_of(count)
        if lanes == 32:
            _mix((0, 0, 0, 0, 0), job, at, part, group, count, dtype)
        elif lanes == 16:
            _mix((0, 0, 0, 0), job, at, part, group, count, dtype)
        elif lanes == 8:
            _mix((0, 0, 0), job, at, part, group, count, dtype)
        else:
            _mix((0, 0), job, at, part, group, count, dtype)
        mix_ticket_is_done(address)
    wait_for_mixing(address, job)


@njit(forceinline=True, **JIT)
def finish_items(tag, job, at, first, last, group, count, sums, dtype):  # type: ignore[no-untyped-def]
    """The outputs first .. last-1 of a group: A times `sums` (rows, lanes), flat, and the bias."""
    lanes = 1 << len(tag)
    out, size = job[at + OUT], job[at + LEFT_BLOCK]
    y, bias = array_at(job[at + Y], dtype, job[BATCH] * out), array_at(job[at + BIAS], dtype, out)
    done = sums
    if size:
        left = array_at(job[at + LEFT], dtype, (out + size - 1) // size * size * size)
        done = np.empty(len(sums), np.float32)
        sums[(last - first) * lanes :] = 0
        for row in range(0, last - first, size):
            there, here = sums[row * lanes :], done[row * lanes :]
            _times_block(tag, left, (first + row) * size, size, there, here)
    if job[at + BIAS]:
        for row in range(first, last):
            add = load1(bias, row)
            for lane in range(count):
                done[(row - first) * lanes + lane] += add
    for lane in range(count):
        start = (group * job[ITEMS] + lane) * out
        for row in range(first, last):
            store1(y, start + row, done[(row - first) * lanes + lane])
