"""The core sweep in Numba: blocks in parallel, everything inside a block in cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

_JIT: dict[str, Any] = {"cache": True, "fastmath": True, "error_model": "numpy", "nogil": True}


@njit(**_JIT)
def _sweep_block(residual, core, choice, gram_left, gram_right, inverses, moved, pull):  # type: ignore[no-untyped-def]
    """`reference.sweep_block`, keeping ``moved = dS H`` (b, b); `pull` (b,) is scratch too."""
    size = residual.shape[0]
    for row in range(size):
        scale = gram_left[row, row]
        for col in range(size):
            pull[col] = residual[row, col]
            moved[row, col] = 0.0
        if scale <= 0.0:
            continue
        for other in range(row):
            weight = gram_left[row, other]
            for col in range(size):
                pull[col] -= weight * moved[other, col]
        own = moved[row]
        recip = 1.0 / scale
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
            p0 = pull[base] - scale * own[base] + q0
            p1 = pull[base + 1] - scale * own[base + 1] + q1
            p2 = pull[base + 2] - scale * own[base + 2] + q2
            p3 = pull[base + 3] - scale * own[base + 3] + q3
            # Gains are kept multiplied by `scale`, which does not change their order.
            held = scale * (
                s0 * (2 * p0 - q0) + s1 * (2 * p1 - q1) + s2 * (2 * p2 - q2) + s3 * (2 * p3 - q3)
            )
            inv = inverses[group]
            g0 = inv[0, 0] * p0 * p0 + 2 * inv[0, 1] * p0 * p1 + inv[0, 2] * p1 * p1
            g1 = inv[1, 0] * p0 * p0 + 2 * inv[1, 1] * p0 * p2 + inv[1, 2] * p2 * p2
            g2 = inv[2, 0] * p0 * p0 + 2 * inv[2, 1] * p0 * p3 + inv[2, 2] * p3 * p3
            g3 = inv[3, 0] * p1 * p1 + 2 * inv[3, 1] * p1 * p2 + inv[3, 2] * p2 * p2
            g4 = inv[4, 0] * p1 * p1 + 2 * inv[4, 1] * p1 * p3 + inv[4, 2] * p3 * p3
            g5 = inv[5, 0] * p2 * p2 + 2 * inv[5, 1] * p2 * p3 + inv[5, 2] * p3 * p3
            best = g0
            code = 0
            one = 0
            two = 1
            pa = p0
            pb = p1
            if g1 > best:
                best, code, two, pb = g1, 1, 2, p2
            if g2 > best:
                best, code, two, pb = g2, 2, 3, p3
            if g3 > best:
                best, code, one, two, pa, pb = g3, 3, 1, 2, p1, p2
            if g4 > best:
                best, code, one, two, pa, pb = g4, 4, 1, 3, p1, p3
            if g5 > best:
                best, code, one, two, pa, pb = g5, 5, 2, 3, p2, p3
            if not best > held:
                continue
            va = recip * (inv[code, 0] * pa + inv[code, 1] * pb)
            vb = recip * (inv[code, 1] * pa + inv[code, 2] * pb)
            core[row, base] = 0.0
            core[row, base + 1] = 0.0
            core[row, base + 2] = 0.0
            core[row, base + 3] = 0.0
            core[row, base + one] = va
            core[row, base + two] = vb
            choice[row, group] = code
            d0 = core[row, base] - s0
            d1 = core[row, base + 1] - s1
            d2 = core[row, base + 2] - s2
            d3 = core[row, base + 3] - s3
            r0 = gram_right[base]
            r1 = gram_right[base + 1]
            r2 = gram_right[base + 2]
            r3 = gram_right[base + 3]
            for col in range(size):
                own[col] += d0 * r0[col] + d1 * r1[col] + d2 * r2[col] + d3 * r3[col]


def is_available() -> bool:
    """Always: Numba is a dependency. Runs on the CPU only."""
    return True


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
    _sweep_blocks(
        residual.numpy(),
        core.numpy(),
        choice.numpy(),
        gram_left.contiguous().numpy(),
        gram_right.contiguous().numpy(),
        inverses.numpy(),
    )


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
    lefts = gram_left.shape[0]
    rights = gram_right.shape[0]
    for block in prange(lefts * rights):
        i = block // rights
        j = block % rights
        rows = slice(i * size, (i + 1) * size)
        cols = slice(j * size, (j + 1) * size)
        moved = np.empty((size, size), residual.dtype)
        pull = np.empty(size, residual.dtype)
        _sweep_block(
            residual[rows, cols],
            core[rows, cols],
            choice[rows, j * (size // 4) : (j + 1) * (size // 4)],
            gram_left[i],
            gram_right[j],
            inverses[j],
            moved,
            pull,
        )
