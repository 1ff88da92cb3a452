"""Magnitude pruning (Han et al., "Learning both Weights and Connections", arXiv 1506.02626)."""

from __future__ import annotations

from armor.factorize.factors import Factors
from armor.factorize.problem import Problem
from armor.sparsity import nm_mask


def magnitude(problem: Problem, n: int = 2, m: int = 4) -> Factors:
    """Keep the `n` largest ``|W|`` of every `m` in a row; the inputs play no part."""
    mask = nm_mask(problem.target.abs(), n, m)
    return Factors(problem.target * mask, mask)
