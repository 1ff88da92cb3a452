"""Numba kernels of the CPU backend for rounded cores: codes, scales and positions from memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from armor.simd.cache import is_kept
from armor.simd.codes import load_code1, load_codes16
from armor.simd.select import load_positions, select16
from armor.simd.vectors import every16, load1, load16, multiply_add16, store16, sum16, zero16
from armor.sparse.levels import SCALE_GROUP

# Counters of parallel loops are unsigned, and times a signed number float: hence np.intp below.
_JIT: dict[str, Any] = {"cache": is_kept(), "error_model": "numpy", "nogil": True}
_GROUP = SCALE_GROUP


@njit(forceinline=True, **_JIT)
def _picked(x, at, indices, p):  # type: ignore[no-untyped-def]
    """The 16 kept ones of the 32 inputs from ``x[at]`` on."""
    return select16(load16(x, at), load16(x, at + 16), load_positions(indices, p))


@njit(forceinline=True, **_JIT)
def _scale_of(scales, row, number):  # type: ignore[no-untyped-def]
    """Where the scale of value `number` of `row` is: one for a row, or for each `_GROUP`."""
    count = scales.shape[1]
    return row * count + (number // _GROUP if count > 1 else 0)


@njit(forceinline=True, **_JIT)
def _end_of_row(codes, kept, scales, indices, x, row, item):  # type: ignore[no-untyped-def]
    """What the kept values of `row` after its last full 64 add to the product with x[item]."""
    begin = kept // _GROUP * _GROUP
    if begin == kept:
        return np.float32(0)
    at, p = item * x.shape[1] + 2 * begin, row * indices.shape[1] + begin // 4
    total, place = zero16(), begin
    while place + 16 <= kept:
        total = multiply_add16(
            total, load_codes16(codes, row * kept + place), _picked(x, at, indices, p)
        )
        at, p, place = at + 32, p + 4, place + 16
    rest = sum16(total)
    while place < kept:
        position = indices[row, place // 4] >> (2 * (place % 4)) & 3
        rest += load_code1(codes, row * kept + place) * x[item, place // 2 * 4 + position]
        place += 1
    return rest * load1(scales, _scale_of(scales, row, begin))


@njit(forceinline=True, **_JIT)
def one_row(codes, kept, scales, indices, x, y, row):  # type: ignore[no-untyped-def]
    """y[0, row] = S x[0]."""
    total = zero16()
    at, v, p, s = 0, row * kept, row * indices.shape[1], row * scales.shape[1]
    each = 1 if scales.shape[1] > 1 else 0
    end = v + kept // _GROUP * _GROUP
    while v < end:
        a0 = load_codes16(codes, v) * _picked(x, at, indices, p)
        a1 = load_codes16(codes, v + 16) * _picked(x, at + 32, indices, p + 4)
        a0 = multiply_add16(a0, load_codes16(codes, v + 32), _picked(x, at + 64, indices, p + 8))
        a1 = multiply_add16(a1, load_codes16(codes, v + 48), _picked(x, at + 96, indices, p + 12))
        total = multiply_add16(total, every16(load1(scales, s)), a0 + a1)
        at, v, p, s = at + 128, v + 64, p + 16, s + each
    y[0, row] = sum16(total) + _end_of_row(codes, kept, scales, indices, x, row, 0)


@njit(forceinline=True, **_JIT)
def _four_inputs(codes, kept, scales, indices, x, y, row, item):  # type: ignore[no-untyped-def]
    """y[item .. item+3, row] = S x: each code is loaded once for four inputs."""
    length = x.shape[1]
    t0, t1, t2, t3 = zero16(), zero16(), zero16(), zero16()
    at, v, p, s = item * length, row * kept, row * indices.shape[1], row * scales.shape[1]
    each = 1 if scales.shape[1] > 1 else 0
    end = v + kept // _GROUP * _GROUP
    while v < end:
        a0, a1, a2, a3 = zero16(), zero16(), zero16(), zero16()
        for _ in range(4):
            code, positions = load_codes16(codes, v), load_positions(indices, p)
            here = at
            a0 = multiply_add16(
                a0, code, select16(load16(x, here), load16(x, here + 16), positions)
            )
            here += length
            a1 = multiply_add16(
                a1, code, select16(load16(x, here), load16(x, here + 16), positions)
            )
            here += length
            a2 = multiply_add16(
                a2, code, select16(load16(x, here), load16(x, here + 16), positions)
            )
            here += length
            a3 = multiply_add16(
                a3, code, select16(load16(x, here), load16(x, here + 16), positions)
            )
            at, v, p = at + 32, v + 16, p + 4
        scale = every16(load1(scales, s))
        t0, t1 = multiply_add16(t0, scale, a0), multiply_add16(t1, scale, a1)
        t2, t3 = multiply_add16(t2, scale, a2), multiply_add16(t3, scale, a3)
        s += each
    y[item, row] = sum16(t0) + _end_of_row(codes, kept, scales, indices, x, row, item)
    y[item + 1, row] = sum16(t1) + _end_of_row(codes, kept, scales, indices, x, row, item + 1)
    y[item + 2, row] = sum16(t2) + _end_of_row(codes, kept, scales, indices, x, row, item + 2)
    y[item + 3, row] = sum16(t3) + _end_of_row(codes, kept, scales, indices, x, row, item + 3)


@njit(forceinline=True, **_JIT)
def _block_row(blocks, scales, x, y, row):  # type: ignore[no-untyped-def]
    """y[:, row] = row `row` of blockdiag(blocks), times x; y may not be x."""
    size = blocks.shape[1]
    start = row // size * size
    length = x.shape[1]
    full = size // 16 * 16
    scale = load1(scales, row)
    for item in range(x.shape[0]):
        total = zero16()
        for col in range(0, full, 16):
            there = load16(x, item * length + start + col)
            total = multiply_add16(total, load_codes16(blocks, row * size + col), there)
        rest = sum16(total)
        for col in range(full, size):
            rest += load_code1(blocks, row * size + col) * x[item, start + col]
        y[item, row] = rest * scale


@njit(parallel=True, **_JIT)
def rounded_product(  # type: ignore[no-untyped-def]
    codes, kept, scales, indices, left, left_scales, right, right_scales, x, y
):
    """``y = A S B x`` in one call, so that the threads start once for each factor only.

    Args:
        codes: int8 (out, kept), uint8 (out, kept/2) of two, or bool (out, kept), see `simd.codes`.
            scales: (out, n). indices: packed positions. kept: values of a row.
        left, right: the wrappers, int8 or floats, or arrays without elements; with a scale for each
            row, which of floats is 1.
        x: float32 (a multiple of 4, at least 32*ceil(kept/16) and len(right)*b), zero beyond
            the layer's inputs. y: float32 of zeros (as many, out or len(left)*b).
    """
    if right.shape[0]:
        inputs = x.copy()
        for row in prange(right.shape[0] * right.shape[1]):
            _block_row(right, right_scales, x, inputs, np.intp(row))
    else:
        inputs = x
    outputs = y.copy() if left.shape[0] else y
    for row in prange(codes.shape[0]):
        for item in range(0, x.shape[0], 4):
            _four_inputs(codes, kept, scales, indices, inputs, outputs, np.intp(row), item)
    if left.shape[0]:
        for row in prange(left.shape[0] * left.shape[1]):
            _block_row(left, left_scales, outputs, y, np.intp(row))


@njit(parallel=True, **_JIT)
def decode_rows(codes, scales, start, stop, panel):  # type: ignore[no-untyped-def]
    """panel[:stop-start] (., kept), float32 = the kept values of rows start .. stop-1."""
    kept = panel.shape[1]
    for place in prange(stop - start):
        row = start + np.intp(place)
        at, full = row * kept, kept // 16 * 16
        there = np.intp(place) * kept
        for number in range(0, full, 16):
            scale = load1(scales, _scale_of(scales, row, number))
            values = load_codes16(codes, at + number) * every16(scale)
            store16(panel, there + number, values)
        for number in range(full, kept):
            scale = load1(scales, _scale_of(scales, row, number))
            panel[row - start, number] = load_code1(codes, at + number) * scale


@njit(parallel=True, **_JIT)
def unpack_rounded(codes, kept, scales, indices, start, stop, panel):  # type: ignore[no-untyped-def]
    """panel[:stop-start] (., 4*groups), float32 of any values = rows start .. stop-1 of S."""
    for place in prange(stop - start):
        row = start + np.intp(place)
        panel[row - start] = 0
        for number in range(kept):
            position = indices[row, number // 4] >> (2 * (number % 4)) & 3
            scale = load1(scales, _scale_of(scales, row, number))
            value = load_code1(codes, row * kept + number) * scale
            panel[row - start, number // 2 * 4 + position] = value
