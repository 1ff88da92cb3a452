"""Single groups of 4, many at once: drawing them, and setting each to its best pair."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from armor.factorize.masks import PAIRS


@dataclass
class Groups:
    """Groups with all else fixed. Leading dims (...) are free.

    Attributes:
        residual: R on the group, minus half the gradient over its four values, (..., 4).
        current: the values, (..., 4). choice: code of the kept pair, uint8 (...).
        scale: G_rr of the row, (...). group_gram: H of the group, (..., 4, 4).
        inverses: of the six pairs, (..., 6, 3), see `inverses.pair_inverses`.
    """

    residual: Float[Tensor, "*many 4"]
    current: Float[Tensor, "*many 4"]
    choice: UInt8[Tensor, "*many"]
    scale: Float[Tensor, "*many"]
    group_gram: Float[Tensor, "*many 4 4"]
    inverses: Float[Tensor, "*many 6 3"]

    def column(self, j: int) -> Groups:
        """Those of column `j` of (i, j) groups, as a copy."""
        return Groups(*(getattr(self, field.name)[:, j].clone() for field in fields(self)))

    def best_pairs(
        self,
    ) -> tuple[Float[Tensor, "*many 4"], UInt8[Tensor, "*many"], Float[Tensor, "*many"]]:
        """Best values (..., 4) and pair (...) of all six, and what they take off the loss (...).

        A group that none of them betters keeps its own.
        """
        first, second = _pairs(self.current.device)
        contribution = self.scale.unsqueeze(-1) * (
            self.current.unsqueeze(-2) @ self.group_gram
        ).squeeze(-2)
        partial_residual = self.residual + contribution  # the group itself taken out
        recip = torch.where(self.scale > 0, 1 / self.scale, 0.0).unsqueeze(-1)
        one, two = partial_residual[..., first], partial_residual[..., second]
        inv11, inv12, inv22 = self.inverses.unbind(-1)
        value1 = recip * (inv11 * one + inv12 * two)
        value2 = recip * (inv12 * one + inv22 * two)
        best, code = (one * value1 + two * value2).max(-1, keepdim=True)
        gain = best - (self.current * (2 * partial_residual - contribution)).sum(-1, keepdim=True)
        better = gain > 0
        values = torch.zeros_like(self.current)
        values.scatter_(-1, first[code], value1.gather(-1, code))
        values.scatter_(-1, second[code], value2.gather(-1, code))
        return (
            torch.where(better, values, self.current),
            torch.where(better, code, self.choice.unsqueeze(-1)).squeeze(-1).to(torch.uint8),
            torch.where(better, gain, 0.0).squeeze(-1),
        )


@cache
def _pairs(device: torch.device) -> tuple[Int64[Tensor, " 6"], Int64[Tensor, " 6"]]:
    """The first and the second positions of `PAIRS`; made once, as a copy has to be waited for."""
    both = torch.tensor(PAIRS, dtype=torch.int64, device=device)
    return both[:, 0].contiguous(), both[:, 1].contiguous()


def pick(
    weights: Float[Tensor, "*many n"], chance: Float[Tensor, "*many"]
) -> Int64[Tensor, "*many"]:
    """Indices (...) drawn with probability proportional to `weights` (..., n).

    Args:
        chance: uniform in [0, 1), (...).
    """
    sums = weights.cumsum(-1)
    below = sums <= (chance * sums[..., -1]).unsqueeze(-1)
    return below.sum(-1).clamp_(max=weights.shape[-1] - 1)
