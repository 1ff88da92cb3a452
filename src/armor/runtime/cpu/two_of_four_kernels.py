"""Numba kernels of the CPU backend: 2:4 values and positions straight from memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from armor.simd.cache import is_kept
from armor.simd.select import load_positions, select16
from armor.simd.vectors import load1, load16, multiply_add16, sum16, zero16

# Counters of parallel loops are unsigned, and times a signed number float: hence np.intp below.
_NARROW = 0
_JIT: dict[str, Any] = {"cache": is_kept(), "error_model": "numpy", "nogil": True}


@njit(forceinline=True, **_JIT)
def _last_values(values, indices, x, row, item):  # type: ignore[no-untyped-def]
    """What the kept values of `row` after its last full 16 add to the product with x[item]."""
    kept = values.shape[1]
    total = 0.0
    for place in range(kept // 16 * 16, kept):
        position = indices[row, place // 4] >> (2 * (place % 4)) & 3
        total += load1(values, row * kept + place) * x[item, place // 2 * 4 + position]
    return total


# Running offsets instead of products of the loop's counter: twice as fast in bfloat16.
@njit(forceinline=True, **_JIT)
def _one_row(values, indices, x, y, row):  # type: ignore[no-untyped-def]
    """y[0, row] = S x[0]: one stream of memory is the fastest to read."""
    kept = values.shape[1]
    a0, a1, a2, a3 = zero16(), zero16(), zero16(), zero16()
    at, v, p = 0, row * kept, row * indices.shape[1]
    end = v + kept // 16 * 16
    while v + 64 <= end:
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


@njit(forceinline=True, **_JIT)
def _four_rows(values, indices, x, y, row):  # type: ignore[no-untyped-def]
    """y[0, row .. row+3] = S x[0]: for an x beyond the first level cache, read once for four."""
    rows, kept = values.shape
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


@njit(forceinline=True, **_JIT)
def _four_inputs(values, indices, x, y, row, item):  # type: ignore[no-untyped-def]
    """y[item .. item+3, row .. row+1] = S x: each value is loaded once for four inputs."""
    rows, kept = values.shape
    width, length = indices.shape[1], x.shape[1]
    other = min(row + 1, rows - 1)  # the last row of an odd number is computed twice
    a0, a1, a2, a3 = zero16(), zero16(), zero16(), zero16()
    b0, b1, b2, b3 = zero16(), zero16(), zero16(), zero16()
    for chunk in range(kept // 16):
        va = load16(values, row * kept + 16 * chunk)
        vb = load16(values, other * kept + 16 * chunk)
        pa = load_positions(indices, row * width + 4 * chunk)
        pb = load_positions(indices, other * width + 4 * chunk)
        at = item * length + 32 * chunk
        low, high = load16(x, at), load16(x, at + 16)
        a0 = multiply_add16(a0, va, select16(low, high, pa))
        b0 = multiply_add16(b0, vb, select16(low, high, pb))
        at += length
        low, high = load16(x, at), load16(x, at + 16)
        a1 = multiply_add16(a1, va, select16(low, high, pa))
        b1 = multiply_add16(b1, vb, select16(low, high, pb))
        at += length
        low, high = load16(x, at), load16(x, at + 16)
        a2 = multiply_add16(a2, va, select16(low, high, pa))
        b2 = multiply_add16(b2, vb, select16(low, high, pb))
        at += length
        low, high = load16(x, at), load16(x, at + 16)
        a3 = multiply_add16(a3, va, select16(low, high, pa))
        b3 = multiply_add16(b3, vb, select16(low, high, pb))
    y[item, row] = sum16(a0) + _last_values(values, indices, x, row, item)
    y[item + 1, row] = sum16(a1) + _last_values(values, indices, x, row, item + 1)
    y[item + 2, row] = sum16(a2) + _last_values(values, indices, x, row, item + 2)
    y[item + 3, row] = sum16(a3) + _last_values(values, indices, x, row, item + 3)
    y[item, other] = sum16(b0) + _last_values(values, indices, x, other, item)
    y[item + 1, other] = sum16(b1) + _last_values(values, indices, x, other, item + 1)
    y[item + 2, other] = sum16(b2) + _last_values(values, indices, x, other, item + 2)
    y[item + 3, other] = sum16(b3) + _last_values(values, indices, x, other, item + 3)


@njit(forceinline=True, **_JIT)
def block_row(blocks, x, y, row):  # type: ignore[no-untyped-def]
    """y[:, row] = row `row` of blockdiag(blocks), times x; y may not be x."""
    size = blocks.shape[1]
    start = row // size * size
    length = x.shape[1]
    full = size // 16
    for item in range(x.shape[0]):
        total = zero16()
        for chunk in range(full):
            there = load16(x, item * length + start + 16 * chunk)
            total = multiply_add16(total, load16(blocks, row * size + 16 * chunk), there)
        rest = sum16(total)
        for col in range(16 * full, size):
            rest += load1(blocks, row * size + col) * x[item, start + col]
        y[item, row] = rest


@njit(parallel=True, **_JIT)
def packed_product(values, indices, left, right, x, y):  # type: ignore[no-untyped-def]
    """``y = A S B x`` in one call, so that the threads start once for each factor only.

    Args:
        values, indices: the packed core. left, right: the wrappers, or arrays without elements.
        x: float32 (1 or a multiple of 4, at least 32*ceil(kept/16) and len(right)*b), zero beyond
            the layer's inputs. y: float32 of zeros (as many, out or len(left)*b).
    """
    if right.shape[0]:
        inputs = x.copy()
        for row in prange(right.shape[0] * right.shape[1]):
            block_row(right, x, inputs, np.intp(row))
    else:
        inputs = x
    outputs = y.copy() if left.shape[0] else y
    if x.shape[0] > 1:
        for pair in prange((values.shape[0] + 1) // 2):
            for item in range(0, x.shape[0], 4):
                _four_inputs(values, indices, inputs, outputs, np.intp(pair) * 2, item)
    elif x.shape[1] <= _NARROW:
        for row in prange(values.shape[0]):
            _one_row(values, indices, inputs, outputs, np.intp(row))
    else:
        for four in prange((values.shape[0] + 3) // 4):
            _four_rows(values, indices, inputs, outputs, np.intp(four) * 4)
    if left.shape[0]:
        for row in prange(left.shape[0] * left.shape[1]):
            block_row(left, outputs, y, np.intp(row))


@njit(forceinline=True, **_JIT)
def _group_word(values, row, group, nibble):  # type: ignore[no-untyped-def]
    """A group of four 16-bit numbers as one of 64 bits."""
    first = np.uint64(values[row, 2 * group]) << np.uint64(16 * (nibble & 3))
    second = np.uint64(values[row, 2 * group + 1]) << np.uint64(16 * (nibble >> 2))
    return first | second


@njit(parallel=True, **_JIT)
def unpack_rows16(values, indices, start, stop, panel):  # type: ignore[no-untyped-def]
    """panel[:stop-start] = rows start .. stop-1 of S; values uint16, panel uint64 (., groups)."""
    groups = values.shape[1] // 2
    for place in prange(stop - start):
        row = start + np.intp(place)
        for byte in range(groups // 2):
            two = indices[row, byte]
            panel[row - start, 2 * byte] = _group_word(values, row, 2 * byte, two & 15)
            panel[row - start, 2 * byte + 1] = _group_word(values, row, 2 * byte + 1, two >> 4)
        if groups % 2:
            last = groups - 1
            panel[row - start, last] = _group_word(values, row, last, indices[row, last // 2] & 15)


@njit(parallel=True, **_JIT)
def unpack_rows32(values, indices, start, stop, panel):  # type: ignore[no-untyped-def]
    """panel[:stop-start] (., 4*groups) = rows start .. stop-1 of S; float32."""
    zero = np.float32(0)
    for place in prange(stop - start):
        row = start + np.intp(place)
        for group in range(values.shape[1] // 2):
            nibble = indices[row, group // 2] >> (4 * (group % 2))
            one, two = nibble & 3, nibble >> 2 & 3
            first, second = values[row, 2 * group], values[row, 2 * group + 1]
            for member in range(4):
                other = second if two == member else zero
                panel[row - start, 4 * group + member] = first if one == member else other
