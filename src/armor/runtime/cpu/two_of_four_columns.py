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
from armor.simd.processor import has_avx512, has_neon
from armor.simd.vectors import load1, load16, store16
from armor.simd.wide import add, add_product, load_lanes, store_lanes, zeros

_COLUMNS = 256  # at a time: those of 32 items are 32 KB, and stay in the nearest caches
_BYTES, _HALF = _COLUMNS // 8, _COLUMNS // 2
_FOUR_ROWS = 32 if has_avx512() or has_neon() else 8  # lanes for which their sums fit registers


@njit(forceinline=True, **JIT)
def _widened(values, start, count, own, place):  # type: ignore[no-untyped-def]
    """own[place .. place+count-1] = stored values as float32."""
    full = count // 16 * 16
    for k in range(0, full, 16):
        store16(own, place + k, load16(values, start + k))
    for k in range(full, count):
        own[place + k] = load1(values, start + k)


@njit(forceinline=True, **JIT)
def _two_rows(tag, own, indices, p, width, count, x, sums, line):  # type: ignore[no-untyped-def]
    """Adds two rows of the core, times some columns x of the items, to their sums."""
    lanes = 1 << len(tag)
    a, b = load_lanes(tag, sums, line * lanes), load_lanes(tag, sums, (line + 1) * lanes)
    q, v, at = p + width, 0, 0
    for byte in range(count):
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
def _four_rows(tag, own, indices, p, width, count, x, sums, line):  # type: ignore[no-untyped-def]
    """The same for four rows, each in two sums: enough to hide how long one addition takes."""
    lanes = 1 << len(tag)
    a, b = load_lanes(tag, sums, line * lanes), load_lanes(tag, sums, (line + 1) * lanes)
    c, d = load_lanes(tag, sums, (line + 2) * lanes), load_lanes(tag, sums, (line + 3) * lanes)
    a2, b2, c2, d2 = zeros(tag), zeros(tag), zeros(tag), zeros(tag)
    q, r, s = p + width, p + 2 * width, p + 3 * width
    v, at = 0, 0
    for byte in range(count):
        i, j = np.intp(indices[p + byte]), np.intp(indices[q + byte])
        k, m = np.intp(indices[r + byte]), np.intp(indices[s + byte])
        w, y, z = v + _HALF, v + 2 * _HALF, v + 3 * _HALF
        then = at + 4 * lanes
        a = add_product(a, own[v], x, at + (i & 3) * lanes)
        b = add_product(b, own[w], x, at + (j & 3) * lanes)
        c = add_product(c, own[y], x, at + (k & 3) * lanes)
        d = add_product(d, own[z], x, at + (m & 3) * lanes)
        a2 = add_product(a2, own[v + 1], x, at + (i >> 2 & 3) * lanes)
        b2 = add_product(b2, own[w + 1], x, at + (j >> 2 & 3) * lanes)
        c2 = add_product(c2, own[y + 1], x, at + (k >> 2 & 3) * lanes)
        d2 = add_product(d2, own[z + 1], x, at + (m >> 2 & 3) * lanes)
        a = add_product(a, own[v + 2], x, then + (i >> 4 & 3) * lanes)
        b = add_product(b, own[w + 2], x, then + (j >> 4 & 3) * lanes)
        c = add_product(c, own[y + 2], x, then + (k >> 4 & 3) * lanes)
        d = add_product(d, own[z + 2], x, then + (m >> 4 & 3) * lanes)
        a2 = add_product(a2, own[v + 3], x, then + (i >> 6) * lanes)
        b2 = add_product(b2, own[w + 3], x, then + (j >> 6) * lanes)
        c2 = add_product(c2, own[y + 3], x, then + (k >> 6) * lanes)
        d2 = add_product(d2, own[z + 3], x, then + (m >> 6) * lanes)
        at += 8 * lanes
        v += 4
    store_lanes(sums, line * lanes, add(a, a2))
    store_lanes(sums, (line + 1) * lanes, add(b, b2))
    store_lanes(sums, (line + 2) * lanes, add(c, c2))
    store_lanes(sums, (line + 3) * lanes, add(d, d2))


@njit(forceinline=True, **JIT)
def _rows(tag, job, at, first, last, x, sums, dtype):  # type: ignore[no-untyped-def]
    """sums (rows, lanes), flat = rows first .. last-1 of the core times x (columns, lanes)."""
    lanes = 1 << len(tag)
    kept, width = job[at + KEPT], job[at + BYTES]
    values = array_at(job[at + VALUES], dtype, job[at + OUT] * kept)
    indices = array_at(job[at + INDICES], np.uint8, job[at + OUT] * width)
    own = np.zeros(4 * _HALF, np.float32)
    sums[: (last - first) * lanes] = 0
    for byte in range(0, width, _BYTES):
        count = min(_BYTES, width - byte)
        there = min(4 * count, kept - 4 * byte)
        if there < 4 * count:
            own[:] = 0
        columns = x[8 * byte * lanes :]
        row, step = first, 4 if lanes <= _FOUR_ROWS else 2
        while row < last:
            for line in range(min(step, last - row)):
                _widened(values, (row + line) * kept + 4 * byte, there, own, line * _HALF)
            p, line = row * width + byte, row - first
            if lanes <= _FOUR_ROWS and row + 4 <= last:
                _four_rows(tag, own, indices, p, width, count, columns, sums, line)
                row += 4
            else:
                # An odd last row is computed twice; the second time into the spare last line.
                odd = 0 if row + 1 == last else width
                _two_rows(tag, own, indices, p, odd, count, columns, sums, line)
                row += 2


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
    """Several rows of input and 2:4 cores."""
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
