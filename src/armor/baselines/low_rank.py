"""SparseGPT and a matrix of low rank: the sparse core S, and U V for what it misses.

The obvious other way to spend the bytes of wrappers (as in SLiM, arXiv 2410.09615, and, for
quantised weights, LQER, arXiv 2402.02446): ``U V`` is the matrix of rank r that takes most off
``tr((W - S - UV) X (W - S - UV)^T)``.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from armor.baselines.sparsegpt import DAMPING, sparsegpt
from armor.factorize.problem import Problem
from armor.sparse.factors import Factors, everything
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

#: The core and U V are made again and again, each for what the other misses: at most so often, and
#: until a round gains less than this share of the loss.
ROUNDS = 30
LEAST_GAIN = 1e-3
#: Subspace iterations of a round after the first, which begin where the one before has ended.
_STEPS = 2


def sparsegpt_low_rank(problem: Problem, pattern: Pattern = TWO_OF_FOUR, rank: int = 0) -> Factors:
    """``S + U V`` with S by SparseGPT and U V of `rank`."""
    target = problem.target
    best, least = target, float("inf")
    correction, span = torch.zeros_like(target), None
    for _ in range(ROUNDS):
        core = sparsegpt(Problem(target - correction, problem.moment), pattern).core
        if rank:
            error = (target - core).double()
            span = leading_span(error, problem.moment, rank, span)
            correction = (span @ (span.mT @ error)).to(target.dtype)
        weight = core + correction
        before, loss = least, problem.loss(weight)
        if loss < least:
            best, least = weight, loss
        if not loss < (1 - LEAST_GAIN) * before:
            break
    return everything(best)


def leading_span(
    error: Float64[Tensor, "out in"],
    moment: Float[Tensor, "in in"],
    rank: int,
    start: Float64[Tensor, "out rank"] | None = None,
) -> Float64[Tensor, "out rank"]:
    """An orthonormal Q, so that ``Q Q^T E`` is the matrix of `rank` closest to `error` E in the
    measure ``tr(E X E^T)``.

    X gets SparseGPT's damping. With ``X = L L^T`` the answer is that of the singular value
    decomposition of ``E L``: its leading left vectors, which are the eigenvectors of ``E X E^T``.

    Args:
        start: a guess, from which a few subspace iterations are made; None: exact.
    """
    wide = moment.to(torch.float64, copy=True)
    wide.diagonal().add_(DAMPING * wide.diagonal().mean())
    gram = error @ wide @ error.mT
    if start is None:
        rank = min(rank, *error.shape)
        return torch.linalg.eigh(gram).eigenvectors[:, -rank:]
    for _ in range(_STEPS):
        start = torch.linalg.qr(gram @ start).Q
    return start
