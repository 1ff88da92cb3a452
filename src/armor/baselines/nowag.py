"""NoWag-P (Liu et al., "NoWag: A Unified Framework for Shape Preserving Compression",
arXiv 2504.14569)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from armor.baselines.select import select
from armor.factorize.problem import Problem
from armor.sparse.factors import Factors
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

EPSILON = 1e-5


def normalise(
    weight: Float[Tensor, "out in"],
) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"], Float[Tensor, " in"]]:
    """Divide the columns, then the rows of `weight` (out, in) by their L2 norm + 1e-5.

    Returns:
        ``(W_bar, r, c)`` of shapes (out, in), (out,), (in,) with
        ``weight = diag(r) W_bar diag(c)``.
    """
    columns = torch.linalg.vector_norm(weight, dim=0) + EPSILON
    scaled = weight / columns
    rows = torch.linalg.vector_norm(scaled, dim=1) + EPSILON
    return scaled / rows[:, None], rows, columns


def nowag(problem: Problem, pattern: Pattern = TWO_OF_FOUR) -> Factors:
    """Keep the largest ``W_bar_ij^2 E[x_j^2]``, of every group or of all, values unchanged.

    The row norm does not change the choice inside a row; the column norms do.
    """
    normalised, _, _ = normalise(problem.target)
    mask = select(normalised.square() * problem.mean_square, pattern)
    return Factors(problem.target * mask, mask, pattern=pattern)
