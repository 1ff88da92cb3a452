"""The core sweep of any pattern in Numba: the gains of all masks of a group at once.

They are a product of the group's table and the M*(M+1)/2 products of its forces: contiguous over
the masks, so that the 70 of 4:8 are nine vectors of eight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from torch import Tensor

_JIT: dict[str, Any] = {"cache": True, "fastmath": True, "error_model": "numpy", "nogil": True}


def sweep(
    residual: Tensor,
    core: Tensor,
    choice: Tensor,
    gram_left: Tensor,
    gram_right: Tensor,
    tables: Tensor,
    first: Tensor,
    last: Tensor,
    costs: Tensor,
) -> None:
    """Sweep every block of (i*b, j*b) matrices in place; see `reference_masks.sweep_block`.

    Args:
        residual, core: (i*b, j*b). choice: (i*b, j*b/M).
        gram_left: (i, b, b). gram_right: (j, b, b). tables: `masks.gain_tables`.
        first, last: int64 (masks,). costs: (masks,).
    """
    _sweep_blocks(
        residual.numpy(),
        core.numpy(),
        choice.numpy(),
        gram_left.contiguous().numpy(),
        gram_right.contiguous().numpy(),
        tables.contiguous().numpy(),
        first.numpy(),
        last.numpy(),
        costs.to(core.dtype).numpy(),
    )


@njit(**_JIT)
def _sweep_block(  # type: ignore[no-untyped-def]
    residual, core, choice, gram_left, gram_right, tables, first, last, costs
):
    size = residual.shape[0]
    groups, pairs, masks = tables.shape
    width = size // groups
    kind = residual.dtype.type
    moved = np.empty((size, size), residual.dtype)  # dS H
    pull = np.empty(size, residual.dtype)
    force = np.empty(width, residual.dtype)
    values = np.empty(width, residual.dtype)
    products = np.empty(pairs, residual.dtype)
    gains = np.empty(masks, residual.dtype)
    for row in range(size):
        scale = gram_left[row, row]
        for col in range(size):
            pull[col] = residual[row, col]
            moved[row, col] = kind(0)
        if scale <= kind(0):
            continue
        for other in range(row):
            weight = gram_left[row, other]
            for col in range(size):
                pull[col] -= weight * moved[other, col]
        own = moved[row]
        recip = kind(1) / scale
        for group in range(groups):
            base = width * group
            now = choice[row, group]
            # Gains are kept multiplied by `scale`, which does not change their order.
            held = -costs[now]
            for a in range(width):
                part = kind(0)
                for c in range(width):
                    part += core[row, base + c] * gram_right[base + c, base + a]
                part *= scale
                force[a] = pull[base + a] - scale * own[base + a] + part
                held += core[row, base + a] * (force[a] + force[a] - part)
            held *= scale
            n = 0
            for a in range(width):
                for c in range(a, width):
                    products[n] = force[a] * force[c]
                    n += 1
            start, stop = first[now], last[now]
            table = tables[group]
            for code in range(start, stop):
                gains[code] = -scale * costs[code]
            n = 0
            while n + 4 <= pairs:
                q0, q1, q2, q3 = products[n], products[n + 1], products[n + 2], products[n + 3]
                for code in range(start, stop):
                    gains[code] += (q0 * table[n, code] + q1 * table[n + 1, code]) + (
                        q2 * table[n + 2, code] + q3 * table[n + 3, code]
                    )
                n += 4
            while n < pairs:
                for code in range(start, stop):
                    gains[code] += products[n] * table[n, code]
                n += 1
            best = gains[start]
            for code in range(start + 1, stop):
                best = max(best, gains[code])
            if not best > held:
                continue
            code = start
            while code < stop - 1 and gains[code] != best:
                code += 1
            for a in range(width):
                values[a] = kind(0)
            n = 0
            for a in range(width):
                values[a] += table[n, code] * force[a]
                n += 1
                for c in range(a + 1, width):
                    half = kind(0.5) * table[n, code]
                    values[a] += half * force[c]
                    values[c] += half * force[a]
                    n += 1
            choice[row, group] = code
            for a in range(width):
                change = recip * values[a] - core[row, base + a]
                core[row, base + a] = recip * values[a]
                if change != kind(0):
                    line = gram_right[base + a]
                    for col in range(size):
                        own[col] += change * line[col]


@njit(parallel=True, **_JIT)
def _sweep_blocks(  # type: ignore[no-untyped-def]
    residual, core, choice, gram_left, gram_right, tables, first, last, costs
):
    size = gram_left.shape[1]
    groups = tables.shape[1]
    rights = gram_right.shape[0]
    for block in prange(gram_left.shape[0] * rights):
        i = block // rights
        j = block % rights
        rows = slice(i * size, (i + 1) * size)
        cols = slice(j * size, (j + 1) * size)
        _sweep_block(
            residual[rows, cols],
            core[rows, cols],
            choice[rows, j * groups : (j + 1) * groups],
            gram_left[i],
            gram_right[j],
            tables[j],
            first,
            last,
            costs,
        )
