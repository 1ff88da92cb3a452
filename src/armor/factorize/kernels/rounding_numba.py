"""The rounding sweep in Numba: blocks in parallel; see `rounding_reference`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange
from torch import Tensor

from armor.simd.cache import is_kept
from armor.sparse.levels import Levels

_LOWEST = 5  # the smallest normal 8-bit float is 0.5 times two to minus so much
_JIT: dict[str, Any] = {"cache": is_kept(), "error_model": "numpy", "nogil": True}
_FAST: dict[str, Any] = {**_JIT, "fastmath": {"contract", "reassoc"}}


@njit(forceinline=True, **_FAST)
def _unit(ratio, units):  # type: ignore[no-untyped-def]
    """From the level at or below `ratio` to the next, see `Levels.units`."""
    if len(units) == 1:
        return units[0]
    return units[min(max(math.frexp(ratio)[1] + _LOWEST, 0), len(units) - 1)]


@njit(forceinline=True, **_FAST)
def _level(wanted, step, offset, lowest, highest, units):  # type: ignore[no-untyped-def]
    """The value nearest to `wanted`."""
    ratio = wanted / step
    unit = _unit(ratio, units)
    code = np.rint(ratio / unit - offset) * unit
    return (min(max(code, lowest), highest) + offset) * step


@njit(**_FAST)
def _sweep_block(  # type: ignore[no-untyped-def]
    residual, core, choice, steps, gram_left, gram_right, grid, units, change_gram, running
):
    """`rounding_reference.sweep_block`; `grid`: lowest and highest code, offset; two scratches."""
    size = residual.shape[0]
    lowest, highest, offset = grid[0], grid[1], grid[2]
    none = grid[3]
    first = (0, 0, 0, 1, 1, 2)
    second = (1, 2, 3, 2, 3, 3)
    p = np.empty(4, residual.dtype)
    s = np.empty(4, residual.dtype)
    for row in range(size):
        scale = gram_left[row, row]
        for col in range(size):
            running[col] = residual[row, col]
            change_gram[row, col] = none
        if not scale > none:
            continue
        for other in range(row):
            coupling = gram_left[row, other]
            for col in range(size):
                running[col] -= coupling * change_gram[other, col]
        own = change_gram[row]
        for group in range(size // 4):
            step = steps[row, group]
            if not step > none:
                continue
            base = 4 * group
            best = none
            for k in range(4):
                s[k] = core[row, base + k]
            for k in range(4):
                q = none
                for m in range(4):
                    q += s[m] * gram_right[base + m, base + k]
                # Over G_rr, which does not change the order of gains.
                p[k] = (running[base + k] - scale * own[base + k]) / scale + q
                best += s[k] * (p[k] + p[k] - q)
            code, n1, n2 = -1, none, none
            for pair in range(6):
                one, two = first[pair], second[pair]
                h11 = gram_right[base + one, base + one]
                h12 = gram_right[base + one, base + two]
                h22 = gram_right[base + two, base + two]
                p1, p2 = p[one], p[two]
                det = h11 * h22 - h12 * h12
                wanted = none
                if det > grid[4] * h11 * h22:
                    wanted = (h22 * p1 - h12 * p2) / det
                elif h11 > none:
                    wanted = p1 / h11
                ratio = min(max(wanted / step, lowest + offset), highest + offset)
                unit = _unit(ratio, units)
                below = np.floor(ratio / unit - offset) * unit
                below = min(max(below, lowest), highest - unit)
                for up in range(2):
                    v1 = (below + (unit if up else none) + offset) * step
                    rest = (p2 - h12 * v1) / h22 if h22 > none else none
                    v2 = _level(rest, step, offset, lowest, highest, units)
                    gain = (p1 + p1 - h11 * v1) * v1 + (
                        p2 + p2 - h12 * v1 * grid[5] - h22 * v2
                    ) * v2
                    if gain > best:
                        best, code, n1, n2 = gain, pair, v1, v2
            if code < 0:
                continue
            choice[row, group] = code
            for k in range(4):
                value = none
                if k == first[code]:
                    value = n1
                if k == second[code]:
                    value = n2
                core[row, base + k] = value
                change = value - s[k]
                if change != none:
                    for col in range(size):
                        own[col] += change * gram_right[base + k, col]


def sweep(
    residual: Tensor,
    core: Tensor,
    choice: Tensor,
    steps: Tensor,
    gram_left: Tensor,
    gram_right: Tensor,
    levels: Levels,
) -> None:
    """Sweep every block of (i*b, j*b) matrices in place; see `rounding_reference.sweep_block`.

    On the CPU, wherever the tensors are: on a GPU they are copied there and back.

    Args:
        residual, core: (i*b, j*b), float32 or float64. choice, steps: (i*b, j*b/4).
        gram_left: (i, b, b). gram_right: (j, b, b).
    """
    dtype = np.dtype(str(core.dtype).removeprefix("torch."))
    grid = np.array([levels.lowest, levels.highest, levels.offset, 0, 1e-3, 2], dtype)
    units = np.array(levels.units, dtype)
    given = (residual, core, choice, steps, gram_left, gram_right)
    on_cpu = [each.cpu().contiguous() for each in given]
    _sweep_blocks(*(each.numpy() for each in on_cpu), grid, units)
    core.copy_(on_cpu[1])
    choice.copy_(on_cpu[2])


@njit(parallel=True, **_JIT)
def _sweep_blocks(  # type: ignore[no-untyped-def]
    residual, core, choice, steps, gram_left, gram_right, grid, units
):
    size = gram_left.shape[1]
    col_blocks = gram_right.shape[0]
    groups = size // 4
    for block in prange(gram_left.shape[0] * col_blocks):
        i, j = block // col_blocks, block % col_blocks
        rows, cols = slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size)
        codes = slice(j * groups, (j + 1) * groups)
        _sweep_block(
            residual[rows, cols],
            core[rows, cols],
            choice[rows, codes],
            steps[rows, codes],
            gram_left[i],
            gram_right[j],
            grid,
            units,
            np.empty((size, size), residual.dtype),
            np.empty(size, residual.dtype),
        )
