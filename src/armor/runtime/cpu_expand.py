"""Numba kernels of the CPU backend for any pattern: bit masks say where the kept values go.

Sixteen columns at a time: a mask is read from a bitmap, or looked up by the codes of N:M; the next
values are moved to the columns it names. One row of input is multiplied by them right there. For
more, rows of the core are unpacked into scratch that stays in a thread's cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from armor.runtime.cpu_kernels import block_row
from armor.runtime.simd_bfloat16 import dot32, load32, store_sums
from armor.runtime.simd_expand import expand16, load_bits, load_more_bits, ones, unpack16
from armor.vectors import load1, load16, multiply_add16, sum16, zero16

# Everywhere:
#     values: flat, the kept values row by row; starts: intp (out + 1), where each row begins.
#     codes: uint8 (out, bytes of a row), see `armor.codes.encode`.
#     table: uint8, the mask of 8 columns for each value of the bits that say it; None for a bitmap
#         (Numba compiles two versions).
#     step: how many bits say the mask of 16 columns. cols: columns that `codes` tells of.
_JIT: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}
_HEIGHT = 8  # rows a thread unpacks at a time: they stay in its second level cache
ITEMS = 4  # rows of input of a tile


@njit(forceinline=True, **_JIT)
def _chosen(bits, table, step):  # type: ignore[no-untyped-def]
    """The mask of 16 columns that the low bits say."""
    if table is None:
        return np.uint16(bits)
    half, last = np.uint32(step // 2), np.uint32(table.shape[0] - 1)
    low, high = table[bits & last], table[(bits >> half) & last]
    return np.uint16(low) | np.uint16(high) << np.uint16(8)


@njit(forceinline=True, **_JIT)
def _mask(codes, table, step, at):  # type: ignore[no-untyped-def]
    """The mask of 16 columns at bit `at` of all codes; reads 2 bytes of a bitmap, else 4."""
    if table is None:
        return load_bits(codes, at >> 3)
    return _chosen(load_more_bits(codes, at >> 3) >> np.uint32(at & 7), table, step)


@njit(forceinline=True, **_JIT)
def _last_mask(codes, table, step, cols, row, chunk):  # type: ignore[no-untyped-def]
    """The mask of 16 columns some of which may not exist; reads nothing beyond its row."""
    at = chunk * step
    bits = np.uint32(0)
    for byte in range(at >> 3, min((at >> 3) + 4, codes.shape[1])):
        bits |= np.uint32(codes[row, byte]) << np.uint32(8 * (byte - (at >> 3)))
    mask = _chosen(bits >> np.uint32(at & 7), table, step)
    there = min(cols - 16 * chunk, 16)
    return np.uint16(mask & np.uint16((1 << there) - 1))


@njit(forceinline=True, **_JIT)
def _full(codes, table, step, cols):  # type: ignore[no-untyped-def]
    """How many chunks of 16 columns `_mask` may read."""
    width = codes.shape[1] - (2 if table is None else 4)
    return max(0, min(cols // 16, (8 * width + 7) // step + 1))


@njit(forceinline=True, **_JIT)
def _one_row(values, starts, codes, table, step, cols, x, y, row):  # type: ignore[no-untyped-def]
    """y[0, row] = S x[0]."""
    full = _full(codes, table, step, cols)
    a0, a1, a2, a3 = zero16(), zero16(), zero16(), zero16()
    v, at, chunk = starts[row], row * codes.shape[1] * 8, 0
    end = values.shape[0] - 16  # (vectors of values may not be read beyond their end)
    while chunk + 4 <= full and v + 48 <= end:
        m0, m1 = _mask(codes, table, step, at), _mask(codes, table, step, at + step)
        m2, m3 = _mask(codes, table, step, at + 2 * step), _mask(codes, table, step, at + 3 * step)
        v1 = v + ones(m0)
        v2 = v1 + ones(m1)
        v3 = v2 + ones(m2)
        c = 16 * chunk
        a0 = multiply_add16(a0, expand16(values, v, m0), load16(x, c))
        a1 = multiply_add16(a1, expand16(values, v1, m1), load16(x, c + 16))
        a2 = multiply_add16(a2, expand16(values, v2, m2), load16(x, c + 32))
        a3 = multiply_add16(a3, expand16(values, v3, m3), load16(x, c + 48))
        v, at, chunk = v3 + ones(m3), at + 4 * step, chunk + 4
    while chunk < full and v <= end:
        mask = _mask(codes, table, step, at)
        a0 = multiply_add16(a0, expand16(values, v, mask), load16(x, 16 * chunk))
        v, at, chunk = v + ones(mask), at + step, chunk + 1
    total = sum16(a0) + sum16(a1) + sum16(a2) + sum16(a3)
    for last in range(chunk, (cols + 15) // 16):
        mask = _last_mask(codes, table, step, cols, row, last)
        for col in range(16):
            if mask >> col & 1:
                total += load1(values, v) * x[0, 16 * last + col]
                v += 1
    y[0, row] = total


@njit(forceinline=True, **_JIT)
def _unpack_row(values, starts, codes, table, step, cols, row, panel, line):  # type: ignore[no-untyped-def]
    """panel[line, :16*ceil(cols/16)] = row `row` of S."""
    full = _full(codes, table, step, cols)
    v, at, chunk = starts[row], row * codes.shape[1] * 8, 0
    there, end = line * panel.shape[1], values.shape[0] - 16
    while chunk < full and v <= end:
        mask = _mask(codes, table, step, at)
        unpack16(values, v, mask, panel, there + 16 * chunk)
        v, at, chunk = v + ones(mask), at + step, chunk + 1
    for last in range(chunk, (cols + 15) // 16):
        mask = _last_mask(codes, table, step, cols, row, last)
        for col in range(16):
            kept = mask >> col & 1
            panel[line, 16 * last + col] = values[v] if kept else 0
            v += kept


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
def few_rows(values, starts, codes, table, step, cols, left, right, x, y):  # type: ignore[no-untyped-def]
    """``y = A S B x``.

    Args:
        left, right: the wrappers, or arrays without elements.
        x: float32 (1 or a multiple of `ITEMS`, at least 16*ceil(cols/16) and len(right)*b), zero
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
            _one_row(values, starts, codes, table, step, cols, inputs, outputs, np.intp(row))
    else:
        for part in prange((rows + _HEIGHT - 1) // _HEIGHT):
            first = np.intp(part) * _HEIGHT
            count = min(_HEIGHT, rows - first)
            own = np.empty((_HEIGHT, (cols + 15) // 16 * 16), values.dtype)
            for line in range(count):
                _unpack_row(values, starts, codes, table, step, cols, first + line, own, line)
            for line in range(0, count, 2):
                other = min(line + 1, count - 1)
                for item in range(0, x.shape[0], ITEMS):
                    _tile(own, line, other, inputs, outputs, first + line, first + other, item)
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
def core_rows(values, starts, codes, table, step, cols, x, y):  # type: ignore[no-untyped-def]
    """``y = S x``, transposed, by the processor's instructions for bfloat16.

    Args:
        values: uint16. x: uint16 (a multiple of `ITEMS`, at least 32*ceil(cols/32)), 0 beyond the
            layer's inputs. y: float32 (out, as many).
    """
    rows = starts.shape[0] - 1
    for part in prange((rows + _HEIGHT - 1) // _HEIGHT):
        first = np.intp(part) * _HEIGHT
        last = min(first + _HEIGHT, rows) - 1  # beyond it the last row is computed again
        own = np.zeros((_HEIGHT, (cols + 31) // 32 * 32), np.uint16)
        for line in range(_HEIGHT):
            row = min(first + line, last)
            _unpack_row(values, starts, codes, table, step, cols, row, own, line)
        for line in range(0, _HEIGHT, 4):
            for item in range(0, x.shape[0], ITEMS):
                _dot_tile(own, line, x, y, first, last, item)


@njit(parallel=True, **_JIT)
def unpack_rows(values, starts, codes, table, step, cols, start, stop, panel):  # type: ignore[no-untyped-def]
    """panel[:stop-start] (., 16*ceil(cols/16)) = rows start .. stop-1 of S."""
    for place in prange(stop - start):
        line = np.intp(place)
        _unpack_row(values, starts, codes, table, step, cols, start + line, panel, line)


@njit(parallel=True, **_JIT)
def count_rows(bitmap, counts):  # type: ignore[no-untyped-def]
    """counts (out,) = how many bits of each row of a bitmap are set."""
    rows, width = bitmap.shape
    for place in prange(rows):
        row = np.intp(place)
        total = 0
        for pair in range(width // 2):
            total += ones(load_bits(bitmap, row * width + 2 * pair))
        if width % 2:
            total += ones(bitmap[row, width - 1])
        counts[row] = total
