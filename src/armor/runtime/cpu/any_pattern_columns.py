"""The core of any pattern times several rows of input, see `armor.runtime.cpu.columns`."""

from __future__ import annotations

import numpy as np
from numba import njit

from armor.runtime.cpu.any_pattern_kernels import (
    COLUMNS,
    last_mask,
    mask_of_word,
    whole_chunks,
)
from armor.runtime.cpu.any_pattern_row import core_of
from armor.runtime.cpu.columns import finish_items, lanes_of, mix_items
from armor.runtime.cpu.job import (
    BATCH,
    CHUNKS,
    CORE_FIRST,
    CORE_NEXT,
    CORE_TICKETS,
    ITEMS,
    MIXED,
    OUT,
    ROOM,
    ROWS_A_TICKET,
)
from armor.runtime.cpu.tickets import JIT, array_at, layer_of, next_ticket, numbers_of
from armor.simd.expand import load_word, lowest_bit
from armor.simd.vectors import load1
from armor.simd.wide import add, add_product, load_lanes, store_lanes, zeros

_CHUNKS = 4  # of 64 columns at a time: those of 32 items are 32 KB, and stay in the nearest caches


@njit(forceinline=True, **JIT)
def _part_of_row(tag, core, row, chunk, stop, v, x, sums, line):  # type: ignore[no-untyped-def]
    """Adds chunks of columns of a row, times x, to a line of the sums; where their values end."""
    values, _, codes, table, width, cols = core
    lanes = 1 << len(tag)
    full = whole_chunks(codes, width, cols, row)
    a, b = load_lanes(tag, sums, line * lanes), zeros(tag)
    for number in range(chunk, stop):
        if number < full:
            word = load_word(codes, row * codes.shape[1] + number * width)
            mask = mask_of_word(word, table, width)
        else:
            mask = last_mask(codes, table, width, cols, row, number)
        start = COLUMNS * number * lanes
        while mask:
            a = add_product(a, load1(values, v), x, start + lowest_bit(mask) * lanes)
            mask &= mask - np.uint64(1)
            v += 1
            if mask:
                b = add_product(b, load1(values, v), x, start + lowest_bit(mask) * lanes)
                mask &= mask - np.uint64(1)
                v += 1
    store_lanes(sums, line * lanes, add(a, b))
    return v


@njit(forceinline=True, **JIT)
def _core(tag, job, at, first, last, group, count, dtype):  # type: ignore[no-untyped-def]
    """The outputs first .. last-1 of a group of items."""
    lanes = 1 << len(tag)
    start = 4 * group * job[ITEMS] * job[at + ROOM]
    x = array_at(job[at + MIXED] + start, np.float32, job[at + ROOM] * lanes)
    sums = np.zeros(job[at + ROWS_A_TICKET] * lanes, np.float32)
    core = core_of(job, at, dtype)
    places = core[1][first:last].copy()
    chunks = (core[5] + COLUMNS - 1) // COLUMNS
    for chunk in range(0, chunks, _CHUNKS):
        stop = min(chunks, chunk + _CHUNKS)
        for row in range(first, last):
            line = row - first
            v = _part_of_row(tag, core, row, chunk, stop, places[line], x, sums, line)
            places[line] = v
    finish_items(tag, job, at, first, last, group, count, sums, dtype)


@njit(forceinline=True, **JIT)
def _task(address, dtype):  # type: ignore[no-untyped-def]
    """Several rows of input and cores of any pattern."""
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
