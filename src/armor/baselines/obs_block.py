"""The inner loop of SparseGPT: one lazy block of columns, in Numba, Triton (2:4) or torch.

All take the block transposed, (columns, rows), prune `n` of every `m` columns per row in place,
mark what was kept in `mask` and return the scaled errors that the columns to the right still owe.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from armor.baselines import obs_triton
from armor.simd.cache import is_kept
from armor.sparse.masks import nm_mask

_TILE = 64  # rows a task: a (128, 64) float32 tile and its errors stay in the L2 cache


def prune_block(weight: Tensor, upper: Tensor, mask: Tensor, n: int, m: int) -> Tensor:
    """Prune one block in place with the faster backend for its device.

    Args:
        weight: (columns, rows), contiguous; on return pruned and corrected.
        upper: (columns, columns), the block's part of ``U``.
        mask: bool (columns, rows), all False; on return True where kept.
        n, m: kept of every `m`; with `n` 0 `mask` says beforehand what is kept.

    Returns:
        (columns, rows): ``(w_j - q_j) / U_jj`` for each column j.
    """
    if obs_triton.runs(weight, n, m):
        return obs_triton.prune_block(weight, upper, mask)
    if weight.device.type != "cpu":
        return prune_block_torch(weight, upper, mask, n, m)
    error = torch.zeros_like(weight)
    _prune_block_numba(weight.numpy(), upper.numpy(), mask.numpy(), error.numpy(), n, m)
    return error


def prune_block_torch(weight: Tensor, upper: Tensor, mask: Tensor, n: int, m: int) -> Tensor:
    """`prune_block` with torch operations, group by group, on any device."""
    error = torch.zeros_like(weight)
    diagonal = upper.diagonal()[:, None]
    for start in range(0, len(weight), m):
        end = min(start + m, len(weight))
        scores = (weight[start:end] / diagonal[start:end]).square()
        if n:
            mask[start:end] = nm_mask(scores.T, n, m).T
        for j in range(start, end):
            error[j] = torch.where(mask[j], 0, weight[j] / diagonal[j])
            weight[j] *= mask[j]
            weight[j + 1 : end] -= upper[j, j + 1 : end, None] * error[j]
        weight[end:].addmm_(upper[start:end, end:].T, error[start:end], alpha=-1)
    return error


@numba.njit(cache=is_kept(), parallel=True, error_model="numpy")
def _prune_block_numba(
    weight: Any, upper: Any, mask: Any, error: Any, n: int, m: int
) -> None:  # pragma: no cover - compiled
    rows = weight.shape[1]
    for task in numba.prange((rows + _TILE - 1) // _TILE):
        first = task * _TILE
        last = min(first + _TILE, rows)
        _prune_tile(weight[:, first:last], upper, mask[:, first:last], error[:, first:last], n, m)


@numba.njit(cache=is_kept(), error_model="numpy", fastmath={"contract"})
def _prune_tile(
    weight: Any, upper: Any, mask: Any, error: Any, n: int, m: int
) -> None:  # pragma: no cover - compiled
    columns, rows = weight.shape
    scores = np.empty(m, weight.dtype)
    for start in range(0, columns, m):
        end = min(start + m, columns)
        for row in range(rows):
            for j in range(start, end):
                scores[j - start] = (weight[j, row] / upper[j, j]) ** 2
            for _ in range(min(n, end - start)):
                best = 0
                for j in range(1, end - start):
                    if scores[j] > scores[best]:
                        best = j
                scores[best] = -1.0
                mask[start + best, row] = True
        for j in range(start, end):
            for row in range(rows):
                if not mask[j, row]:
                    error[j, row] = weight[j, row] / upper[j, j]
                    weight[j, row] = 0.0
            for k in range(j + 1, columns):
                factor = upper[j, k]
                for row in range(rows):
                    weight[k, row] -= factor * error[j, row]
