"""The wrapper steps: each is the exact minimiser over A or B with all else fixed."""

from __future__ import annotations

import torch
from torch import Tensor

#: Ridge relative to each diagonal entry, towards the current value, by dtype.
RIDGE = {torch.float32: 1e-6, torch.float64: 1e-10}


def solve_right(numerator: Tensor, gram: Tensor) -> Tensor:
    """``numerator @ (gram + ridge)^-1`` for a batch of positive semi-definite systems.

    The ridge makes a singular system return 0 in its null space: used on *changes*, it leaves the
    current value there as it is.

    Args:
        numerator: (blocks, k, b). gram: (blocks, b, b).
    """
    return solve_left(gram, numerator.mT).mT


def solve_left(gram: Tensor, numerator: Tensor) -> Tensor:
    """``(gram + ridge)^-1 @ numerator`` for (blocks, b, b) and (blocks, b, k)."""
    return torch.cholesky_solve(numerator, factor(gram))


def factor(gram: Tensor) -> Tensor:
    """Lower Cholesky factor of `gram` plus the smallest ridge that makes it positive definite."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    ridge = RIDGE[gram.dtype]
    scale = diagonal + 1e-3 * mean + torch.finfo(gram.dtype).tiny / ridge
    while True:
        lower, info = torch.linalg.cholesky_ex(gram + torch.diag_embed(ridge * scale))
        if not info.any():
            return lower
        ridge *= 10.0
