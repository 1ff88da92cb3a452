"""SparseGPT and a matrix of low rank: the sparse core S, and U V for what it misses.

The obvious other way to spend the bytes of wrappers (as in SLiM, arXiv 2410.09615, and, for
quantised weights, LQER, arXiv 2402.02446): ``U V`` is the matrix of rank r that takes most off
``tr((W - S - UV) X (W - S - UV)^T)``.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from armor.baselines.sparsegpt import DAMPING, sparsegpt
from armor.factorize.problem import Problem
from armor.sparse.factors import Factors, everything
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

#: The core and U V are made again and again, each for what the other misses: at most so often, as
#: many as the solver has iterations, and until a round gains less than this share of the loss.
ROUNDS = 100
LEAST_GAIN = 1e-3


def sparsegpt_low_rank(problem: Problem, pattern: Pattern = TWO_OF_FOUR, rank: int = 0) -> Factors:
    """``S + U V`` with S by SparseGPT and U V of `rank`."""
    target = problem.target
    best, least = target, float("inf")
    correction = torch.zeros_like(target)
    for _ in range(ROUNDS):
        core = sparsegpt(Problem(target - correction, problem.moment), pattern).core
        correction = low_rank(target - core, problem.moment, rank)
        weight = core + correction
        before, loss = least, problem.loss(weight)
        if loss < least:
            best, least = weight, loss
        if not loss < (1 - LEAST_GAIN) * before:
            break
    return everything(best)


def low_rank(
    error: Float[Tensor, "out in"], moment: Float[Tensor, "in in"], rank: int
) -> Float[Tensor, "out in"]:
    """The matrix of `rank` closest to `error` in the measure ``tr(E X E^T)``, in its dtype.

    X gets SparseGPT's damping. With ``X = L L^T`` the answer is that of the singular value
    decomposition of ``E L``: its leading left vectors Q give ``Q Q^T E``, so L is not needed, only
    the eigenvectors of ``E X E^T``. That is computed in float64, between the factors of a QR
    decomposition, which make it as small as the shorter side of `error`.
    """
    if not rank:
        return torch.zeros_like(error)
    basis, rest = torch.linalg.qr(error.double())
    wide = moment.double()
    damping = DAMPING * float(wide.diagonal().mean())
    gram = rest @ wide @ rest.T + damping * (rest @ rest.T)
    vectors = torch.linalg.eigh(gram).eigenvectors[:, -rank:]
    return ((basis @ vectors) @ (vectors.T @ rest)).to(error.dtype)
