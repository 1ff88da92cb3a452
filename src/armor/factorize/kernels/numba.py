"""The core sweep in Numba: blocks in parallel, everything inside a block in cache.

Float32, which `armor prune` uses, has a kernel of its own (`lockstep`); this one takes float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import get_num_threads, njit, prange
from numpy.typing import NDArray
from torch import Tensor

from armor.factorize.kernels.lockstep import sweep_blocks
from armor.simd.cache import is_kept

_JIT: dict[str, Any] = {"cache": is_kept(), "fastmath": True, "error_model": "numpy", "nogil": True}


@njit(**_JIT)
def _sweep_block(  # type: ignore[no-untyped-def]
    residual, core, choice, gram_left, gram_right, inverses, change_gram, running_residual
):
    """`reference.sweep_block`; scratch: `change_gram` dS H (b, b), `running_residual` (b,)."""
    size = residual.shape[0]
    none = residual.dtype.type(0)
    for row in range(size):
        scale = gram_left[row, row]
        for col in range(size):
            running_residual[col] = residual[row, col]
            change_gram[row, col] = none
        if scale <= none:
            continue
        for other in range(row):
            coupling = gram_left[row, other]
            for col in range(size):
                running_residual[col] -= coupling * change_gram[other, col]
        change_gram_row = change_gram[row]
        recip = residual.dtype.type(1) / scale
        for group in range(size // 4):
            base = 4 * group
            s0 = core[row, base]
            s1 = core[row, base + 1]
            s2 = core[row, base + 2]
            s3 = core[row, base + 3]
            h00 = gram_right[base, base]
            h01 = gram_right[base, base + 1]
            h02 = gram_right[base, base + 2]
            h03 = gram_right[base, base + 3]
            h11 = gram_right[base + 1, base + 1]
            h12 = gram_right[base + 1, base + 2]
            h13 = gram_right[base + 1, base + 3]
            h22 = gram_right[base + 2, base + 2]
            h23 = gram_right[base + 2, base + 3]
            h33 = gram_right[base + 3, base + 3]
            q0 = scale * (s0 * h00 + s1 * h01 + s2 * h02 + s3 * h03)
            q1 = scale * (s0 * h01 + s1 * h11 + s2 * h12 + s3 * h13)
            q2 = scale * (s0 * h02 + s1 * h12 + s2 * h22 + s3 * h23)
            q3 = scale * (s0 * h03 + s1 * h13 + s2 * h23 + s3 * h33)
            p0 = running_residual[base] - scale * change_gram_row[base] + q0
            p1 = running_residual[base + 1] - scale * change_gram_row[base + 1] + q1
            p2 = running_residual[base + 2] - scale * change_gram_row[base + 2] + q2
            p3 = running_residual[base + 3] - scale * change_gram_row[base + 3] + q3
            # Gains are kept multiplied by `scale`, which does not change their order.
            current_gain = scale * (
                s0 * (p0 + p0 - q0)
                + s1 * (p1 + p1 - q1)
                + s2 * (p2 + p2 - q2)
                + s3 * (p3 + p3 - q3)
            )
            inv = inverses[group]
            v0, w0 = inv[0, 0] * p0 + inv[0, 1] * p1, inv[0, 1] * p0 + inv[0, 2] * p1
            v1, w1 = inv[1, 0] * p0 + inv[1, 1] * p2, inv[1, 1] * p0 + inv[1, 2] * p2
            v2, w2 = inv[2, 0] * p0 + inv[2, 1] * p3, inv[2, 1] * p0 + inv[2, 2] * p3
            v3, w3 = inv[3, 0] * p1 + inv[3, 1] * p2, inv[3, 1] * p1 + inv[3, 2] * p2
            v4, w4 = inv[4, 0] * p1 + inv[4, 1] * p3, inv[4, 1] * p1 + inv[4, 2] * p3
            v5, w5 = inv[5, 0] * p2 + inv[5, 1] * p3, inv[5, 1] * p2 + inv[5, 2] * p3
            g0, g1, g2 = p0 * v0 + p1 * w0, p0 * v1 + p2 * w1, p0 * v2 + p3 * w2
            g3, g4, g5 = p1 * v3 + p2 * w3, p1 * v4 + p3 * w4, p2 * v5 + p3 * w5
            best = max(max(max(g0, g1), max(g2, g3)), max(g4, g5))
            if not best > current_gain:
                continue
            if g0 == best:
                code, n0, n1, n2, n3 = 0, v0, w0, none, none
            elif g1 == best:
                code, n0, n1, n2, n3 = 1, v1, none, w1, none
            elif g2 == best:
                code, n0, n1, n2, n3 = 2, v2, none, none, w2
            elif g3 == best:
                code, n0, n1, n2, n3 = 3, none, v3, w3, none
            elif g4 == best:
                code, n0, n1, n2, n3 = 4, none, v4, none, w4
            else:
                code, n0, n1, n2, n3 = 5, none, none, v5, w5
            d0 = recip * n0 - s0
            d1 = recip * n1 - s1
            d2 = recip * n2 - s2
            d3 = recip * n3 - s3
            core[row, base] = recip * n0
            core[row, base + 1] = recip * n1
            core[row, base + 2] = recip * n2
            core[row, base + 3] = recip * n3
            choice[row, group] = code
            r0 = gram_right[base]
            r1 = gram_right[base + 1]
            r2 = gram_right[base + 2]
            r3 = gram_right[base + 3]
            for col in range(size):
                change_gram_row[col] += d0 * r0[col] + d1 * r1[col] + d2 * r2[col] + d3 * r3[col]


def sweep(
    residual: Tensor,
    core: Tensor,
    choice: Tensor,
    gram_left: Tensor,
    gram_right: Tensor,
    inverses: Tensor,
) -> None:
    """Sweep every block of (i*b, j*b) matrices in place; see `reference.sweep_block`.

    Args:
        residual, core: (i*b, j*b). choice: (i*b, j*b/4).
        gram_left: (i, b, b). gram_right: (j, b, b). inverses: (j, b/4, 6, 3).
    """
    arrays = (
        residual.numpy(),
        core.numpy(),
        choice.numpy(),
        gram_left.contiguous().numpy(),
        gram_right.contiguous().numpy(),
        inverses.numpy(),
    )
    if residual.dtype == torch.float32:
        sweep_blocks(*arrays, get_num_threads())
    else:
        _sweep_blocks(*arrays)


@njit(parallel=True, **_JIT)
def _sweep_blocks(  # type: ignore[no-untyped-def]
    residual: NDArray[np.floating],
    core: NDArray[np.floating],
    choice: NDArray[np.uint8],
    gram_left: NDArray[np.floating],
    gram_right: NDArray[np.floating],
    inverses: NDArray[np.floating],
):
    size = gram_left.shape[1]
    row_blocks = gram_left.shape[0]
    col_blocks = gram_right.shape[0]
    for block in prange(row_blocks * col_blocks):
        i = block // col_blocks
        j = block % col_blocks
        rows = slice(i * size, (i + 1) * size)
        cols = slice(j * size, (j + 1) * size)
        change_gram = np.empty((size, size), residual.dtype)
        running_residual = np.empty(size, residual.dtype)
        _sweep_block(
            residual[rows, cols],
            core[rows, cols],
            choice[rows, j * (size // 4) : (j + 1) * (size // 4)],
            gram_left[i],
            gram_right[j],
            inverses[j],
            change_gram,
            running_residual,
        )
