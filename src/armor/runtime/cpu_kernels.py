"""Numba kernels of the CPU backend: 2:4 values and positions straight from memory."""

from __future__ import annotations

from typing import Any

from numba import njit, prange

from armor.runtime.simd import (
    load1,
    load16,
    load_positions,
    multiply_add16,
    select16,
    sum16,
    zero16,
)

_JIT: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}


@njit(**_JIT)
def _rest(values, indices, x, row, item):  # type: ignore[no-untyped-def]
    """What the kept values of `row` after its last full 16 add to the product with x[item]."""
    kept = values.shape[1]
    total = 0.0
    for place in range(kept // 16 * 16, kept):
        position = indices[row, place // 4] >> (2 * (place % 4)) & 3
        total += load1(values, row * kept + place) * x[item, place // 2 * 4 + position]
    return total


@njit(**_JIT)
def _chunk(values, indices, x, row, chunk, total):  # type: ignore[no-untyped-def]
    """`total` plus the products of one full 16 of the kept values of `row` with x[0]."""
    inputs = select16(
        load16(x, 32 * chunk),
        load16(x, 32 * chunk + 16),
        load_positions(indices, row * indices.shape[1] + 4 * chunk),
    )
    return multiply_add16(total, load16(values, row * values.shape[1] + 16 * chunk), inputs)


@njit(**_JIT)
def _one_input(values, indices, x, y, row):  # type: ignore[no-untyped-def]
    """y[0, row] = S x[0]: a row at a time, as one stream of memory is the fastest to read."""
    chunks = values.shape[1] // 16
    a0, a1, a2, a3 = zero16(), zero16(), zero16(), zero16()
    for chunk in range(0, chunks // 4 * 4, 4):
        a0 = _chunk(values, indices, x, row, chunk, a0)
        a1 = _chunk(values, indices, x, row, chunk + 1, a1)
        a2 = _chunk(values, indices, x, row, chunk + 2, a2)
        a3 = _chunk(values, indices, x, row, chunk + 3, a3)
    for chunk in range(chunks // 4 * 4, chunks):
        a0 = _chunk(values, indices, x, row, chunk, a0)
    total = sum16(a0) + sum16(a1) + sum16(a2) + sum16(a3)
    y[0, row] = total + _rest(values, indices, x, row, 0)


@njit(**_JIT)
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
    y[item, row] = sum16(a0) + _rest(values, indices, x, row, item)
    y[item + 1, row] = sum16(a1) + _rest(values, indices, x, row, item + 1)
    y[item + 2, row] = sum16(a2) + _rest(values, indices, x, row, item + 2)
    y[item + 3, row] = sum16(a3) + _rest(values, indices, x, row, item + 3)
    y[item, other] = sum16(b0) + _rest(values, indices, x, other, item)
    y[item + 1, other] = sum16(b1) + _rest(values, indices, x, other, item + 1)
    y[item + 2, other] = sum16(b2) + _rest(values, indices, x, other, item + 2)
    y[item + 3, other] = sum16(b3) + _rest(values, indices, x, other, item + 3)


@njit(**_JIT)
def _block_row(blocks, x, y, row):  # type: ignore[no-untyped-def]
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
def few_rows(values, indices, left, right, x, y):  # type: ignore[no-untyped-def]
    """``y = A S B x`` in one call, so that the threads start once for each factor only.

    Args:
        values, indices: the packed core. left, right: the wrappers, or arrays without elements.
        x: float32 (1 or a multiple of 4, at least 32*ceil(kept/16) and len(right)*b), zero beyond
            the layer's inputs. y: float32 of zeros (as many, out or len(left)*b).
    """
    if right.shape[0]:
        inputs = x.copy()
        for row in prange(right.shape[0] * right.shape[1]):
            _block_row(right, x, inputs, row)
    else:
        inputs = x
    outputs = y.copy() if left.shape[0] else y
    if x.shape[0] == 1:
        for row in prange(values.shape[0]):
            _one_input(values, indices, inputs, outputs, row)
    else:
        for pair in prange((values.shape[0] + 1) // 2):
            for item in range(0, x.shape[0], 4):
                _four_inputs(values, indices, inputs, outputs, 2 * pair, item)
    if left.shape[0]:
        for row in prange(left.shape[0] * left.shape[1]):
            _block_row(left, outputs, y, row)


@njit(parallel=True, **_JIT)
def unpack_rows(values, indices, start, stop, panel):  # type: ignore[no-untyped-def]
    """panel[:stop-start] (., 2*kept) = rows start .. stop-1 of S."""
    for row in prange(start, stop):
        target = panel[row - start]
        for group in range(values.shape[1] // 2):
            nibble = indices[row, group // 2] >> (4 * (group % 2))
            target[4 * group : 4 * group + 4] = 0
            target[4 * group + (nibble & 3)] = values[row, 2 * group]
            target[4 * group + (nibble >> 2 & 3)] = values[row, 2 * group + 1]
