"""Wanda (Sun et al., "A Simple and Effective Pruning Approach", arXiv 2306.11695)."""

from __future__ import annotations

from armor.baselines.select import select_by_row
from armor.factorize.problem import Problem
from armor.sparse.factors import Factors
from armor.sparse.pattern import TWO_OF_FOUR, Pattern


def wanda(problem: Problem, pattern: Pattern = TWO_OF_FOUR) -> Factors:
    """Keep the largest ``|W_ij| sqrt(E[x_j^2])``, of every group or row, values unchanged."""
    # Rounding may leave a dead channel's mean square a hair below zero.
    scale = problem.mean_square.clamp_min(0).sqrt()
    mask = select_by_row(problem.target.abs() * scale, pattern)
    return Factors(problem.target * mask, mask, pattern=pattern)
