"""Numba kernels of the CPU backend for any pattern: bit masks say where the kept values go.

64 columns at a time: a mask is read from a bitmap, or looked up by the codes of N:M; the next
values are moved to the columns it names. One row of input is multiplied by them right there. For
more, rows of the core are unpacked into scratch that stays in a thread's cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from armor.runtime.cpu.two_of_four_kernels import block_row
from armor.simd.bfloat16 import dot32, load32, store_sums
from armor.simd.cache import is_kept
from armor.simd.expand import count_ones, expand16, load_word, look_up8, unpack64
from armor.simd.vectors import load1, load16, multiply_add16, sum16, zero16

# Everywhere:
#     values: flat, the kept values row by row; starts: intp (out + 1), where each row begins.
#     codes: uint8 (out, bytes of a row), see `armor.sparse.positions.encode`.
#     table: uint8 (128,), the mask of 8 columns for each number of `width` bits, whatever the bits
#         above; None for a bitmap (Numba compiles two versions).
#     width: how many bits say the mask of 8 columns, so how many bytes that of 64.
#     cols: columns that `codes` describe.
_JIT: dict[str, Any] = {"cache": is_kept(), "error_model": "numpy", "nogil": True}
_HEIGHT = 8  # rows a thread unpacks at a time: they stay in its second level cache
COLUMNS = 64  # of a chunk
ITEMS = 4  # rows of input of a tile


@njit(forceinline=True, **_JIT)
def _whole_chunks(codes, width, cols, row):  # type: ignore[no-untyped-def]
    """How many chunks of a row are whole and end 8 bytes before the end of all codes."""
    room = codes.size - row * codes.shape[1] - 8
    return 0 if room < 0 else min(cols // COLUMNS, room // width + 1)


@njit(forceinline=True, **_JIT)
def _mask_of_word(word, table, width):  # type: ignore[no-untyped-def]
    """The mask of 64 columns, uint64, that 8 bytes of codes say."""
    if table is None:
        return word
    return look_up8(table, word, np.uint64(width))


# What is left after the whole chunks is kept out of the loops over them, for want of registers.
@njit(forceinline=True, **_JIT)
def _last_mask(codes, table, width, cols, row, chunk):  # type: ignore[no-untyped-def]
    """The mask of a chunk some columns of which may not exist; reads nothing beyond its row."""
    word = np.uint64(0)
    at = chunk * width
    for byte in range(min(width, codes.shape[1] - at)):
        word |= np.uint64(codes[row, at + byte]) << np.uint64(8 * byte)
    mask, there = _mask_of_word(word, table, width), cols - COLUMNS * chunk
    return mask if there >= COLUMNS else mask & ((np.uint64(1) << np.uint64(there)) - np.uint64(1))


@njit(forceinline=True, **_JIT)
def _remaining_columns(values, codes, table, width, cols, x, row, chunk, v):  # type: ignore[no-untyped-def]
    """What the columns of `row` from a chunk on add to the product with x[0]."""
    total = np.float32(0)
    for last in range(chunk, (cols + COLUMNS - 1) // COLUMNS):
        mask = _last_mask(codes, table, width, cols, row, last)
        col = COLUMNS * last
        while mask:
            if mask & np.uint64(1):
                total += load1(values, v) * x[0, col]
                v += 1
            mask >>= np.uint64(1)
            col += 1
    return total


@njit(forceinline=True, **_JIT)
def _one_row(values, starts, codes, table, width, cols, x, y, row):  # type: ignore[no-untyped-def]
    """y[0, row] = S x[0]."""
    full = _whole_chunks(codes, width, cols, row)
    a0, a1, a2, a3 = zero16(), zero16(), zero16(), zero16()
    v, at, chunk, c = starts[row], row * codes.shape[1], 0, 0
    end = values.shape[0] - COLUMNS  # vectors may not be read beyond the end of the values
    while chunk < full and v <= end:
        mask = _mask_of_word(load_word(codes, at), table, width)
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


@njit(forceinline=True, **_JIT)
def _unpack_row(values, starts, codes, table, width, cols, row, panel, line):  # type: ignore[no-untyped-def]
    """panel[line, :64*ceil(cols/64)] = row `row` of S."""
    full = _whole_chunks(codes, width, cols, row)
    v, at, chunk = starts[row], row * codes.shape[1], 0
    there, end = line * panel.shape[1], values.shape[0] - COLUMNS
    while chunk < full and v <= end:
        mask = _mask_of_word(load_word(codes, at), table, width)
        unpack64(values, v, mask, panel, there)
        v, at, chunk, there = v + count_ones(mask), at + width, chunk + 1, there + COLUMNS
    for last in range(chunk, (cols + COLUMNS - 1) // COLUMNS):
        mask = _last_mask(codes, table, width, cols, row, last)
        for col in range(COLUMNS * last, COLUMNS * (last + 1)):
            kept = np.intp(mask & np.uint64(1))
            panel[line, col] = values[v] if kept else 0
            v += kept
            mask >>= np.uint64(1)


@njit(forceinline=True, **_JIT)
def _tile(own, line, other, x, y, row, last, item):  # type: ignore[no-untyped-def]
    """y[item .. item+3, row] and [.., last] = lines `line` and `other` of the scratch times x."""
    length = x.shape[1]
    a, b = line * own.shape[1], other * own.shape[1]
    a0, a1, a2, a3 = zero16(), zero16(), zero16(), zero16()
    b0, b1, b2, b3 = zero16(), zero16(), zero16(), zero16()
    at = item * length
    for k in range(0, own.shape[1], 16):
        va, vb = load16(own, a + k), load16(own, b + k)
        x0, x1 = load16(x, at + k), load16(x, at + length + k)
        x2, x3 = load16(x, at + 2 * length + k), load16(x, at + 3 * length + k)
        a0, b0 = multiply_add16(a0, va, x0), multiply_add16(b0, vb, x0)
        a1, b1 = multiply_add16(a1, va, x1), multiply_add16(b1, vb, x1)
        a2, b2 = multiply_add16(a2, va, x2), multiply_add16(b2, vb, x2)
        a3, b3 = multiply_add16(a3, va, x3), multiply_add16(b3, vb, x3)
    y[item, row], y[item, last] = sum16(a0), sum16(b0)
    y[item + 1, row], y[item + 1, last] = sum16(a1), sum16(b1)
    y[item + 2, row], y[item + 2, last] = sum16(a2), sum16(b2)
    y[item + 3, row], y[item + 3, last] = sum16(a3), sum16(b3)


@njit(parallel=True, **_JIT)
def packed_product(values, starts, codes, table, width, cols, left, right, x, y):  # type: ignore[no-untyped-def]
    """``y = A S B x``.

    Args:
        left, right: the wrappers, or arrays without elements.
        x: float32 (1 or a multiple of `ITEMS`, at least 64*ceil(cols/64) and len(right)*b), zero
            beyond the layer's inputs. y: float32 of zeros (as many, out or len(left)*b).
    """
    rows = starts.shape[0] - 1
    if right.shape[0]:
        inputs = x.copy()
        for row in prange(right.shape[0] * right.shape[1]):
            block_row(right, x, inputs, np.intp(row))
    else:
        inputs = x
    outputs = y.copy() if left.shape[0] else y
    if x.shape[0] == 1:
        for row in prange(rows):
            _one_row(values, starts, codes, table, width, cols, inputs, outputs, np.intp(row))
    else:
        for part in prange((rows + _HEIGHT - 1) // _HEIGHT):
            first = np.intp(part) * _HEIGHT
            count = min(_HEIGHT, rows - first)
            lines = np.empty((_HEIGHT, (cols + 63) // 64 * 64), values.dtype)
            for line in range(count):
                _unpack_row(values, starts, codes, table, width, cols, first + line, lines, line)
            for line in range(0, count, 2):
                other = min(line + 1, count - 1)
                for item in range(0, x.shape[0], ITEMS):
                    _tile(lines, line, other, inputs, outputs, first + line, first + other, item)
    if left.shape[0]:
        for row in prange(left.shape[0] * left.shape[1]):
            block_row(left, outputs, y, np.intp(row))


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
