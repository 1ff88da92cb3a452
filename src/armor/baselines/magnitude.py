"""Magnitude pruning (Han et al., "Learning both Weights and Connections", arXiv 1506.02626)."""

from __future__ import annotations

from armor.baselines.select import select
from armor.factorize.problem import Problem
from armor.sparse.factors import Factors
from armor.sparse.pattern import TWO_OF_FOUR, Pattern


def magnitude(problem: Problem, pattern: Pattern = TWO_OF_FOUR) -> Factors:
    """Keep the largest ``|W|``, of every group or of all; the inputs play no part."""
    mask = select(problem.target.abs(), pattern)
    return Factors(problem.target * mask, mask, pattern=pattern)
