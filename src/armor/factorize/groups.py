"""Single groups of 4, many at once: drawing them, and setting each to its best pair."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from armor.factorize.kernels.reference import PAIRS


@dataclass
class Groups:
    """Groups with all else fixed. Leading dims (...) are free.

    Attributes:
        force: half the negated gradient over the four values, (..., 4).
        held: the values, (..., 4). choice: the kept pair, uint8 (...).
        scale: the row's entry of A^T A, (...). corner: the group's of H, (..., 4, 4).
        inverses: of the six pairs of `corner`, (..., 6, 3), see `reference.pair_inverses`.
    """

    force: Tensor
    held: Tensor
    choice: Tensor
    scale: Tensor
    corner: Tensor
    inverses: Tensor

    def column(self, j: int) -> Groups:
        """Those of column `j` of (i, j) groups, as a copy."""
        return Groups(*(getattr(self, field.name)[:, j].clone() for field in fields(self)))

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        """Best values (..., 4) and pair (...) of all six, and what they take off the loss (...).

        A group that none of them betters keeps its own.
        """
        first = torch.tensor([one for one, _ in PAIRS], device=self.held.device)
        second = torch.tensor([two for _, two in PAIRS], device=self.held.device)
        own = self.scale.unsqueeze(-1) * (self.held.unsqueeze(-2) @ self.corner).squeeze(-2)
        pull = self.force + own  # with the group itself taken out
        recip = torch.where(self.scale > 0, 1 / self.scale, 0.0).unsqueeze(-1)
        one, two = pull[..., first], pull[..., second]
        inv11, inv12, inv22 = self.inverses.unbind(-1)
        value1 = recip * (inv11 * one + inv12 * two)
        value2 = recip * (inv12 * one + inv22 * two)
        best, code = (one * value1 + two * value2).max(-1, keepdim=True)
        gain = best - (self.held * (2 * pull - own)).sum(-1, keepdim=True)
        better = gain > 0
        values = torch.zeros_like(self.held)
        values.scatter_(-1, first[code], value1.gather(-1, code))
        values.scatter_(-1, second[code], value2.gather(-1, code))
        return (
            torch.where(better, values, self.held),
            torch.where(better, code, self.choice.unsqueeze(-1)).squeeze(-1).to(torch.uint8),
            torch.where(better, gain, 0.0).squeeze(-1),
        )


def pick(weights: Tensor, chance: Tensor) -> Tensor:
    """Indices (...) drawn with probability proportional to `weights` (..., n).

    Args:
        chance: uniform in [0, 1), (...).
    """
    sums = weights.cumsum(-1)
    below = sums <= (chance * sums[..., -1]).unsqueeze(-1)
    return below.sum(-1).clamp_(max=weights.shape[-1] - 1)
