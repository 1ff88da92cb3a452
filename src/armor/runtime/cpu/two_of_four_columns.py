"""The 2:4 core times several rows of input, see `armor.runtime.cpu.columns`."""

from __future__ import annotations

import numpy as np
from numba import njit

from armor.runtime.cpu.columns import finish_items, lanes_of, mix_items
from armor.runtime.cpu.job import (
    BATCH,
    BYTES,
    CHUNKS,
    CORE_FIRST,
    CORE_NEXT,
    CORE_TICKETS,
    INDICES,
    ITEMS,
    KEPT,
    MIXED,
    OUT,
    ROOM,
    ROWS_A_TICKET,
    VALUES,
)
from armor.runtime.cpu.tickets import JIT, array_at, layer_of, next_ticket, numbers_of
from armor.simd.vectors import load1, load16, store16
from armor.simd.wide import add_product, load_lanes, store_lanes

_COLUMNS = 256  # at a time: those of 32 items are 32 KB, and stay in the nearest caches
_BYTES, _HALF = _COLUMNS // 8, _COLUMNS // 2


@njit(forceinline=True, **JIT)
def _widened(values, start, count, own, place):  # type: ignore[no-untyped-def]
    """own[place .. place+count-1] = stored values as float32."""
    full = count // 16 * 16
    for k in range(0, full, 16):
        store16(own, place + k, load16(values, start + k))
    for k in range(full, count):
        own[place + k] = load1(values, start + k)


@njit(forceinline=True, **JIT)
def _two_rows(tag, own, indices, p, q, bytes_, x, sums, line):  # type: ignore[no-untyped-def]
    """Adds two rows of the core, times some columns x of the items, to their sums."""
    lanes = 1 << len(tag)
    a, b = load_lanes(tag, sums, line * lanes), load_lanes(tag, sums, (line + 1) * lanes)
    v, at = 0, 0
    for byte in range(bytes_):
        i, j = np.intp(indices[p + byte]), np.intp(indices[q + byte])
        a = add_product(a, own[v], x, at + (i & 3) * lanes)
        b = add_product(b, own[v + _HALF], x, at + (j & 3) * lanes)
        a = add_product(a, own[v + 1], x, at + (i >> 2 & 3) * lanes)
        b = add_product(b, own[v + _HALF + 1], x, at + (j >> 2 & 3) * lanes)
        at += 4 * lanes
        a = add_product(a, own[v + 2], x, at + (i >> 4 & 3) * lanes)
        b = add_product(b, own[v + _HALF + 2], x, at + (j >> 4 & 3) * lanes)
        a = add_product(a, own[v + 3], x, at + (i >> 6) * lanes)
        b = add_product(b, own[v + _HALF + 3], x, at + (j >> 6) * lanes)
        at += 4 * lanes
        v += 4
    store_lanes(sums, line * lanes, a)
    store_lanes(sums, (line + 1) * lanes, b)


@njit(forceinline=True, **JIT)
def _rows(tag, job, at, first, last, x, sums, dtype):  # type: ignore[no-untyped-def]
    """sums (rows, lanes), flat = rows first .. last-1 of the core times x (columns, lanes)."""
    lanes = 1 << len(tag)
    kept, width = job[at + KEPT], job[at + BYTES]
    values = array_at(job[at + VALUES], dtype, job[at + OUT] * kept)
    indices = array_at(job[at + INDICES], np.uint8, job[at + OUT] * width)
    own = np.zeros(2 * _HALF, np.float32)
    sums[: (last - first) * lanes] = 0
    for byte in range(0, width, _BYTES):
        count = min(_BYTES, width - byte)
        there = min(4 * count, kept - 4 * byte)
        if there < 4 * count:
            own[:] = 0
        for row in range(first, last, 2):
            other = min(row + 1, last - 1)
            _widened(values, row * kept + 4 * byte, there, own, 0)
            _widened(values, other * kept + 4 * byte, there, own, _HALF)
            p, q = row * width + byte, other * width + byte
            # An odd last row is computed twice; the second time into the spare last line.
            two = x[8 * byte * lanes :]
            _two_rows(tag, own, indices, p, q, count, two, sums, row - first)


@njit(forceinline=True, **JIT)
def _core(tag, job, at, first, last, group, count, dtype):  # type: ignore[no-untyped-def]
    """The outputs first .. last-1 of a group of items."""
    lanes = 1 << len(tag)
    start = 4 * group * job[ITEMS] * job[at + ROOM]
    x = array_at(job[at + MIXED] + start, np.float32, job[at + ROOM] * lanes)
    sums = np.empty((job[at + ROWS_A_TICKET] + 1) * lanes, np.float32)
    _rows(tag, job, at, first, last, x, sums, dtype)
    finish_items(tag, job, at, first, last, group, count, sums, dtype)


@njit(forceinline=True, **JIT)
def _task(address, dtype):  # type: ignore[no-untyped-def]
    job = numbers_of(address)
    mix_items(address, job, dtype)
    groups = (job[BATCH] + job[ITEMS] - 1) // job[ITEMS]
    while True:
        ticket = next_ticket(address, CORE_NEXT)
        if ticket >= job[CORE_TICKETS]:
            break
        at = layer_of(job, ticket, CORE_FIRST)
        chunks, number = job[at + CHUNKS], ticket - job[at + CORE_FIRST]
        first = number // chunks * job[at + ROWS_A_TICKET]
        last = min(job[at + OUT], first + job[at + ROWS_A_TICKET])
        chunk = number % chunks
        for group in range(chunk * groups // chunks, (chunk + 1) * groups // chunks):
            count = min(job[ITEMS], job[BATCH] - group * job[ITEMS])
            lanes = lanes_of(count)
            if lanes == 32:
                _core((0, 0, 0, 0, 0), job, at, first, last, group, count, dtype)
            elif lanes == 16:
                _core((0, 0, 0, 0), job, at, first, last, group, count, dtype)
            elif lanes == 8:
                _core((0, 0, 0), job, at, first, last, group, count, dtype)
            else:
                _core((0, 0), job, at, first, last, group, count, dtype)


def float32(address):  # type: ignore[no-untyped-def]
    """The task for layers in float32."""
    _task(address, np.float32)


def bfloat16(address):  # type: ignore[no-untyped-def]
    """The task for layers in bfloat16."""
    _task(address, np.uint16)


def float16(address):  # type: ignore[no-untyped-def]
    """The task for layers in float16."""
    _task(address, np.int16)
