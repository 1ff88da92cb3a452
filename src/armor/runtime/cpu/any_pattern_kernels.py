"""Numba kernels of the CPU backend for any pattern: bit masks say where the kept values go.

64 columns at a time: a mask is read from a bitmap, or looked up by the codes of N:M; the next
values are moved to the columns it names. One row of input is multiplied by them right there. For
more, rows of the core are unpacked into scratch that stays in a thread's cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from armor.simd.bfloat16 import dot32, load32
from armor.simd.cache import is_kept
from armor.simd.expand import count_ones, load_word, look_up8, unpack64
from armor.simd.vectors import store_sums, zero16

# Everywhere:
#     values: flat, the kept values row by row; starts: intp (out + 1), where each row begins.
#     codes: uint8 (out, bytes of a row), see `armor.sparse.positions.encode`.
#     table: uint8 (128,), the mask of 8 columns for each number of `width` bits, whatever the bits
#         above; not read for a bitmap, of which 8 bits are 8 columns.
#     width: how many bits say the mask of 8 columns, so how many bytes that of 64.
#     cols: columns that `codes` describe.
_JIT: dict[str, Any] = {"cache": is_kept(), "error_model": "numpy", "nogil": True}
_HEIGHT = 8  # rows a thread unpacks at a time: they stay in its second level cache
COLUMNS = 64  # of a chunk
ITEMS = 4  # rows of input of a tile


@njit(forceinline=True, **_JIT)
def whole_chunks(codes, width, cols, row):  # type: ignore[no-untyped-def]
    """How many chunks of a row are whole and end 8 bytes before the end of all codes."""
    room = codes.size - row * codes.shape[1] - 8
    return 0 if room < 0 else min(cols // COLUMNS, room // width + 1)


@njit(forceinline=True, **_JIT)
def mask_of_word(word, table, width):  # type: ignore[no-untyped-def]
    """The mask of 64 columns, uint64, that 8 bytes of codes say."""
    if width == 8:  # a bitmap
        return word
    return look_up8(table, word, np.uint64(width))


# What is left after the whole chunks is kept out of the loops over them, for want of registers.
@njit(forceinline=True, **_JIT)
def last_mask(codes, table, width, cols, row, chunk):  # type: ignore[no-untyped-def]
    """The mask of a chunk some columns of which may not exist; reads nothing beyond its row."""
    word = np.uint64(0)
    at = chunk * width
    for byte in range(min(width, codes.shape[1] - at)):
        word |= np.uint64(codes[row, at + byte]) << np.uint64(8 * byte)
    mask, there = mask_of_word(word, table, width), cols - COLUMNS * chunk
    return mask if there >= COLUMNS else mask & ((np.uint64(1) << np.uint64(there)) - np.uint64(1))


@njit(forceinline=True, **_JIT)
def _unpack_row(values, starts, codes, table, width, cols, row, panel, line):  # type: ignore[no-untyped-def]
    """panel[line, :64*ceil(cols/64)] = row `row` of S."""
    full = whole_chunks(codes, width, cols, row)
    v, at, chunk = starts[row], row * codes.shape[1], 0
    there, end = line * panel.shape[1], values.shape[0] - COLUMNS
    while chunk < full and v <= end:
        mask = mask_of_word(load_word(codes, at), table, width)
        unpack64(values, v, mask, panel, there)
        v, at, chunk, there = v + count_ones(mask), at + width, chunk + 1, there + COLUMNS
    for last in range(chunk, (cols + COLUMNS - 1) // COLUMNS):
        mask = last_mask(codes, table, width, cols, row, last)
        for col in range(COLUMNS * last, COLUMNS * (last + 1)):
            kept = np.intp(mask & np.uint64(1))
            panel[line, col] = values[v] if kept else 0
            v += kept
            mask >>= np.uint64(1)


@njit(forceinline=True, **_JIT)
def _dot_tile(own, line, x, y, first, last, item):  # type: ignore[no-untyped-def]
    """Lines `line` .. `line`+3 of the scratch (bfloat16) times four items."""
    width = own.shape[1]
    a = line * width
    b, c, d = a + width, a + 2 * width, a + 3 * width
    p = item * x.shape[1]
    q, s, t = p + x.shape[1], p + 2 * x.shape[1], p + 3 * x.shape[1]
    a0, a1, a2, a3 = zero16(), zero16(), zero16(), zero16()
    b0, b1, b2, b3 = zero16(), zero16(), zero16(), zero16()
    c0, c1, c2, c3 = zero16(), zero16(), zero16(), zero16()
    d0, d1, d2, d3 = zero16(), zero16(), zero16(), zero16()
    for k in range(0, width, 32):
        x0, x1, x2, x3 = load32(x, p + k), load32(x, q + k), load32(x, s + k), load32(x, t + k)
        v = load32(own, a + k)
        a0, a1, a2, a3 = dot32(a0, v, x0), dot32(a1, v, x1), dot32(a2, v, x2), dot32(a3, v, x3)
        v = load32(own, b + k)
        b0, b1, b2, b3 = dot32(b0, v, x0), dot32(b1, v, x1), dot32(b2, v, x2), dot32(b3, v, x3)
        v = load32(own, c + k)
        c0, c1, c2, c3 = dot32(c0, v, x0), dot32(c1, v, x1), dot32(c2, v, x2), dot32(c3, v, x3)
        v = load32(own, d + k)
        d0, d1, d2, d3 = dot32(d0, v, x0), dot32(d1, v, x1), dot32(d2, v, x2), dot32(d3, v, x3)
    items = y.shape[1]
    store_sums(y, min(first + line, last) * items + item, a0, a1, a2, a3)
    store_sums(y, min(first + line + 1, last) * items + item, b0, b1, b2, b3)
    store_sums(y, min(first + line + 2, last) * items + item, c0, c1, c2, c3)
    store_sums(y, min(first + line + 3, last) * items + item, d0, d1, d2, d3)


@njit(parallel=True, **_JIT)
def core_product(values, starts, codes, table, width, cols, x, y):  # type: ignore[no-untyped-def]
    """``y = S x``, transposed, by the processor's instructions for bfloat16.

    Args:
        values: uint16. x: uint16 (a multiple of `ITEMS`, at least 64*ceil(cols/64)), 0 beyond the
            layer's inputs. y: float32 (out, as many).
    """
    rows = starts.shape[0] - 1
    for part in prange((rows + _HEIGHT - 1) // _HEIGHT):
        first = np.intp(part) * _HEIGHT
        last = min(first + _HEIGHT, rows) - 1  # beyond it the last row is computed again
        lines = np.empty((_HEIGHT, (cols + 63) // 64 * 64), np.uint16)
        for line in range(_HEIGHT):
            row = min(first + line, last)
            _unpack_row(values, starts, codes, table, width, cols, row, lines, line)
        for line in range(0, _HEIGHT, 4):
            for item in range(0, x.shape[0], ITEMS):
                _dot_tile(lines, line, x, y, first, last, item)


@njit(parallel=True, **_JIT)
def unpack_rows(values, starts, codes, table, width, cols, start, stop, panel):  # type: ignore[no-untyped-def]
    """panel[:stop-start] (., 64*ceil(cols/64)) = rows start .. stop-1 of S."""
    for place in prange(stop - start):
        line = np.intp(place)
        _unpack_row(values, starts, codes, table, width, cols, start + line, panel, line)


@njit(parallel=True, **_JIT)
def count_rows(bitmap, counts):  # type: ignore[no-untyped-def]
    """counts (out,) = how many bits of each row of a bitmap are set."""
    rows, width = bitmap.shape
    for place in prange(rows):
        row = np.intp(place)
        total = 0
        for word in range(width // 8):
            total += count_ones(load_word(bitmap, row * width + 8 * word))
        for byte in range(width // 8 * 8, width):
            total += count_ones(bitmap[row, byte])
        counts[row] = total
