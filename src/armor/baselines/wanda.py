"""Wanda (Sun et al., "A Simple and Effective Pruning Approach", arXiv 2306.11695)."""

from __future__ import annotations

from armor.factorize.factors import Factors
from armor.factorize.problem import Problem
from armor.sparsity import nm_mask


def wanda(problem: Problem, n: int = 2, m: int = 4) -> Factors:
    """Keep the `n` largest ``|W_ij| sqrt(E[x_j^2])`` of every `m` in a row, values unchanged."""
    # Rounding may leave a dead channel's mean square a hair below zero.
    scale = problem.mean_square.clamp_min(0).sqrt()
    mask = nm_mask(problem.target.abs() * scale, n, m)
    return Factors(problem.target * mask, mask)
