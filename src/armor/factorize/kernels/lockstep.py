"""The core sweep for 2:4 in float32: 16 blocks of one column of blocks in lockstep, one in a lane.

A group's step is a chain of some hundred dependent operations, then a choice that no processor can
guess. Blocks above each other share H and know nothing of one another, so a vector takes the step
for 16 of them at once, without branches. Each lane does the same whatever the others hold: results
do not depend on how the blocks are dealt out to lanes and threads.

Four entries of a group go by one letter: s the current values, q what they contribute to the
running residual, p the partial residual, n the new values, o the row of dS H so far.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from armor.simd.cache import is_kept
from armor.simd.vectors import LANES, choose16, every16, load16, multiply_add16, store16, zero16

_JIT: dict[str, Any] = {"cache": is_kept(), "error_model": "numpy", "nogil": True}
_L = LANES
_ZERO, _ONE, _INFINITE = np.float32(0), np.float32(1), np.float32(np.inf)


@njit(**_JIT)
def earlier_panels(running_residual, couplings, change_gram, first, size):  # type: ignore[no-untyped-def]
    """Less ``G[first:first+4, :first] change_gram[:first]``, a 4 x 2 tile at a time."""
    line = size * _L
    for col in range(0, size, 2):
        at = col * _L
        a0, b0 = load16(running_residual, at), load16(running_residual, at + _L)
        a1, b1 = load16(running_residual, at + line), load16(running_residual, at + line + _L)
        a2, b2 = (
            load16(running_residual, at + 2 * line),
            load16(running_residual, at + 2 * line + _L),
        )
        a3, b3 = (
            load16(running_residual, at + 3 * line),
            load16(running_residual, at + 3 * line + _L),
        )
        for other in range(first):
            w, m = other * _L, other * line + at
            m0, m1 = load16(change_gram, m), load16(change_gram, m + _L)
            w0, w1 = load16(couplings, w), load16(couplings, w + line)
            w2, w3 = load16(couplings, w + 2 * line), load16(couplings, w + 3 * line)
            a0, b0 = a0 - w0 * m0, b0 - w0 * m1
            a1, b1 = a1 - w1 * m0, b1 - w1 * m1
            a2, b2 = a2 - w2 * m0, b2 - w2 * m1
            a3, b3 = a3 - w3 * m0, b3 - w3 * m1
        store16(running_residual, at, a0)
        store16(running_residual, at + _L, b0)
        store16(running_residual, at + line, a1)
        store16(running_residual, at + line + _L, b1)
        store16(running_residual, at + 2 * line, a2)
        store16(running_residual, at + 2 * line + _L, b2)
        store16(running_residual, at + 3 * line, a3)
        store16(running_residual, at + 3 * line + _L, b3)


@njit(**_JIT)
def earlier_rows(running_residual, couplings, change_gram, first, row, size):  # type: ignore[no-untyped-def]
    """``running_residual[row] -= G[row, first:row] change_gram[first:row]`` inside of a panel."""
    line = size * _L
    for other in range(first, row):
        w = load16(couplings, (row - first) * line + other * _L)
        for col in range(size):
            at = (row - first) * line + col * _L
            store16(
                running_residual,
                at,
                load16(running_residual, at) - w * load16(change_gram, other * line + col * _L),
            )


@njit(forceinline=True, **_JIT)
def times_gram(change, gram, first, last, col, m0, m1, m2, m3):  # type: ignore[no-untyped-def]
    """``(m0 .. m3) + dS[first:last] H[first:last, col:col+4]``."""
    for entry in range(first, last):
        d = load16(change, entry * _L)
        m0 = multiply_add16(m0, d, every16(gram[entry, col]))
        m1 = multiply_add16(m1, d, every16(gram[entry, col + 1]))
        m2 = multiply_add16(m2, d, every16(gram[entry, col + 2]))
        m3 = multiply_add16(m3, d, every16(gram[entry, col + 3]))
    return m0, m1, m2, m3


@njit(forceinline=True, **_JIT)
def _pair(inverse, one, two):  # type: ignore[no-untyped-def]
    """Values of a pair (times the scale) and their gain (times the scale)."""
    cross = every16(inverse[1])
    v = every16(inverse[0]) * one + cross * two
    w = cross * one + every16(inverse[2]) * two
    return v, w, one * v + two * w


@njit(forceinline=True, **_JIT)
def _group(  # type: ignore[no-untyped-def]
    running_residual, current, change, codes, gram, inverses, group, scale, recip, o0, o1, o2, o3
):
    """Each lane's group to its best pair, if that is better than what it holds."""
    base = 4 * group
    at = base * _L
    s0, s1 = load16(current, at), load16(current, at + _L)
    s2, s3 = load16(current, at + 2 * _L), load16(current, at + 3 * _L)
    h01, h02 = every16(gram[base, base + 1]), every16(gram[base, base + 2])
    h03, h12 = every16(gram[base, base + 3]), every16(gram[base + 1, base + 2])
    h13, h23 = every16(gram[base + 1, base + 3]), every16(gram[base + 2, base + 3])
    h00, h11 = every16(gram[base, base]), every16(gram[base + 1, base + 1])
    h22, h33 = every16(gram[base + 2, base + 2]), every16(gram[base + 3, base + 3])
    q0 = scale * (s0 * h00 + s1 * h01 + s2 * h02 + s3 * h03)
    q1 = scale * (s0 * h01 + s1 * h11 + s2 * h12 + s3 * h13)
    q2 = scale * (s0 * h02 + s1 * h12 + s2 * h22 + s3 * h23)
    q3 = scale * (s0 * h03 + s1 * h13 + s2 * h23 + s3 * h33)
    p0 = load16(running_residual, at) - scale * o0 + q0
    p1 = load16(running_residual, at + _L) - scale * o1 + q1
    p2 = load16(running_residual, at + 2 * _L) - scale * o2 + q2
    p3 = load16(running_residual, at + 3 * _L) - scale * o3 + q3
    # Gains are kept multiplied by the scale, which does not change their order.
    current_gain = scale * (
        s0 * (p0 + p0 - q0) + s1 * (p1 + p1 - q1) + s2 * (p2 + p2 - q2) + s3 * (p3 + p3 - q3)
    )
    none = zero16()
    best = choose16(scale, none, current_gain, every16(_INFINITE))  # a row without scale stays
    code, n0, n1, n2, n3 = every16(-_ONE), s0, s1, s2, s3
    v, w, gain = _pair(inverses[group, 0], p0, p1)
    n0, n1 = choose16(gain, best, recip * v, n0), choose16(gain, best, recip * w, n1)
    n2, n3 = choose16(gain, best, none, n2), choose16(gain, best, none, n3)
    code, best = choose16(gain, best, none, code), choose16(gain, best, gain, best)
    v, w, gain = _pair(inverses[group, 1], p0, p2)
    n0, n2 = choose16(gain, best, recip * v, n0), choose16(gain, best, recip * w, n2)
    n1, n3 = choose16(gain, best, none, n1), choose16(gain, best, none, n3)
    code, best = choose16(gain, best, every16(_ONE), code), choose16(gain, best, gain, best)
    v, w, gain = _pair(inverses[group, 2], p0, p3)
    n0, n3 = choose16(gain, best, recip * v, n0), choose16(gain, best, recip * w, n3)
    n1, n2 = choose16(gain, best, none, n1), choose16(gain, best, none, n2)
    code, best = choose16(gain, best, every16(2 * _ONE), code), choose16(gain, best, gain, best)
    v, w, gain = _pair(inverses[group, 3], p1, p2)
    n1, n2 = choose16(gain, best, recip * v, n1), choose16(gain, best, recip * w, n2)
    n0, n3 = choose16(gain, best, none, n0), choose16(gain, best, none, n3)
    code, best = choose16(gain, best, every16(3 * _ONE), code), choose16(gain, best, gain, best)
    v, w, gain = _pair(inverses[group, 4], p1, p3)
    n1, n3 = choose16(gain, best, recip * v, n1), choose16(gain, best, recip * w, n3)
    n0, n2 = choose16(gain, best, none, n0), choose16(gain, best, none, n2)
    code, best = choose16(gain, best, every16(4 * _ONE), code), choose16(gain, best, gain, best)
    v, w, gain = _pair(inverses[group, 5], p2, p3)
    n2, n3 = choose16(gain, best, recip * v, n2), choose16(gain, best, recip * w, n3)
    n0, n1 = choose16(gain, best, none, n0), choose16(gain, best, none, n1)
    code = choose16(gain, best, every16(5 * _ONE), code)
    store16(codes, group * _L, code)
    store16(change, at, n0 - s0)
    store16(change, at + _L, n1 - s1)
    store16(change, at + 2 * _L, n2 - s2)
    store16(change, at + 3 * _L, n3 - s3)
    store16(current, at, n0)
    store16(current, at + _L, n1)
    store16(current, at + 2 * _L, n2)
    store16(current, at + 3 * _L, n3)


@njit(**_JIT)
def gather(running_residual, current, couplings, residual, core, gram_left, first):  # type: ignore[no-untyped-def]
    """A panel of 4 rows of every block: its R, S and G, lanes last."""
    count, size = gram_left.shape[0], gram_left.shape[1]
    for lane in range(count):
        for row in range(4):
            at = lane * size + first + row
            for col in range(size):
                running_residual[row, col, lane] = residual[at, col]
                current[row, col, lane] = core[at, col]
                couplings[row, col, lane] = gram_left[lane, first + row, col]


@njit(**_JIT)
def scatter(core, choice, current, codes, count, size, first):  # type: ignore[no-untyped-def]
    """The panel's values and codes back to where they belong."""
    for lane in range(count):
        for row in range(4):
            at = lane * size + first + row
            for col in range(size):
                core[at, col] = current[row, col, lane]
            for group in range(codes.shape[1]):
                if codes[row, group, lane] >= _ZERO:
                    choice[at, group] = np.uint8(codes[row, group, lane])


@njit(**_JIT)
def _sweep_row(running_residual, current, codes, change, change_gram, gram, inverses, scale):  # type: ignore[no-untyped-def]
    """One row of every block: its groups in order, then its row of dS H."""
    size = running_residual.shape[0]
    recip = choose16(scale, zero16(), every16(_ONE) / scale, zero16())
    for group in range(size // 4):
        base, none = 4 * group, zero16()
        o0, o1, o2, o3 = times_gram(change, gram, 0, base, base, none, none, none, none)
        _group(
            running_residual,
            current,
            change,
            codes,
            gram,
            inverses,
            group,
            scale,
            recip,
            o0,
            o1,
            o2,
            o3,
        )
        at = base * _L
        store16(change_gram, at, o0)
        store16(change_gram, at + _L, o1)
        store16(change_gram, at + 2 * _L, o2)
        store16(change_gram, at + 3 * _L, o3)
    for col in range(0, size, 4):
        at = col * _L
        m0, m1 = load16(change_gram, at), load16(change_gram, at + _L)
        m2, m3 = load16(change_gram, at + 2 * _L), load16(change_gram, at + 3 * _L)
        m0, m1, m2, m3 = times_gram(change, gram, col, size, col, m0, m1, m2, m3)
        store16(change_gram, at, m0)
        store16(change_gram, at + _L, m1)
        store16(change_gram, at + 2 * _L, m2)
        store16(change_gram, at + 3 * _L, m3)


@njit(**_JIT)
def _sweep_lanes(residual, core, choice, gram_left, gram, inverses):  # type: ignore[no-untyped-def]
    """At most 16 blocks of (n*b, b) matrices in place; `gram_left` (n, b, b), H (b, b)."""
    count, size = gram_left.shape[0], gram_left.shape[1]
    running_residual = np.zeros((4, size, _L), np.float32)
    current = np.zeros((4, size, _L), np.float32)
    couplings = np.zeros((4, size, _L), np.float32)
    codes = np.empty((4, size // 4, _L), np.float32)
    change = np.empty((size, _L), np.float32)
    change_gram = np.empty((size, size, _L), np.float32)  # dS H
    for first in range(0, size, 4):
        gather(running_residual, current, couplings, residual, core, gram_left, first)
        earlier_panels(running_residual, couplings, change_gram, first, size)
        for row in range(first, first + 4):
            earlier_rows(running_residual, couplings, change_gram, first, row, size)
            scale = load16(couplings, ((row - first) * size + row) * _L)
            _sweep_row(
                running_residual[row - first],
                current[row - first],
                codes[row - first],
                change,
                change_gram[row],
                gram,
                inverses,
                scale,
            )
        scatter(core, choice, current, codes, count, size, first)


@njit(parallel=True, **_JIT)
def sweep_blocks(residual, core, choice, gram_left, gram_right, inverses, threads):  # type: ignore[no-untyped-def]
    """Sweep every block of (i*b, j*b) float32 matrices in place, see `numba.sweep`."""
    row_blocks, col_blocks = gram_left.shape[0], gram_right.shape[0]
    size = gram_left.shape[1]
    # Full vectors, unless threads would be idle.
    parts = max(
        (row_blocks + _L - 1) // _L, min(row_blocks, (threads + col_blocks - 1) // col_blocks)
    )
    step = (row_blocks + parts - 1) // parts
    for task in prange(parts * col_blocks):
        part, j = task // col_blocks, task % col_blocks
        start, stop = part * step, min((part + 1) * step, row_blocks)
        if start < stop:
            rows = slice(start * size, stop * size)
            cols = slice(j * size, (j + 1) * size)
            _sweep_lanes(
                residual[rows, cols],
                core[rows, cols],
                choice[rows, j * (size // 4) : (j + 1) * (size // 4)],
                gram_left[start:stop],
                gram_right[j],
                inverses[j],
            )
