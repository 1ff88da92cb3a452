"""Rounding to the nearest of a few levels, group by group: what fewer bits alone would give.

Symmetric: each group of `GROUP` weights in a row has one 16-bit scale, and codes from -L to L with
L = 2^(bits-1) - 1. The inputs play no part.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from armor.factorize.problem import Problem
from armor.sparse.factors import Factors, everything
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

#: Weights of a row that share a scale.
GROUP = 128


def int8(problem: Problem, _pattern: Pattern = TWO_OF_FOUR) -> Factors:
    """255 levels."""
    return everything(rounded(problem.target, 8))


def int4(problem: Problem, _pattern: Pattern = TWO_OF_FOUR) -> Factors:
    """15 levels."""
    return everything(rounded(problem.target, 4))


def int3(problem: Problem, _pattern: Pattern = TWO_OF_FOUR) -> Factors:
    """7 levels."""
    return everything(rounded(problem.target, 3))


def rounded(weight: Float[Tensor, "out in"], bits: int) -> Float[Tensor, "out in"]:
    """`weight` as its codes and scales give it back; the last group of a row may be shorter."""
    levels = 2 ** (bits - 1) - 1
    groups = []
    for group in weight.split(GROUP, dim=1):
        largest = group.abs().amax(dim=1, keepdim=True)
        scale = (largest / levels).to(torch.float16).to(weight.dtype)
        codes = (group / scale).nan_to_num(0.0).round().clamp(-levels, levels)  # 0 / 0: zeros
        groups.append(codes * scale)
    return torch.cat(groups, dim=1)


def rounded_bytes(shape: tuple[int, int], bits: int) -> int:
    """Codes and scales of a weight of `shape` (out, in); a row ends with a whole byte."""
    rows, cols = shape
    return rows * (-(-cols * bits // 8) + 2 * -(-cols // GROUP))
