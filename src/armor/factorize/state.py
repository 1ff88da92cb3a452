"""A point (A, B, S) of the factorisation, and moving from point to point."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor


@dataclass
class State:
    """One point, padded to whole blocks.

    Attributes:
        left: A, (i, b, b). right: B, (j, b, b). core: S, (i*b, j*b).
        choice: code of each group's mask (`masks.group_masks`), uint8 (i*b, j*b/M).
        loss: proxy loss, float64 ().
    """

    left: Float[Tensor, "i b b"]
    right: Float[Tensor, "j b b"]
    core: Float[Tensor, "rows cols"]
    choice: UInt8[Tensor, "rows groups"]
    loss: Float[Tensor, ""]

    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        return [getattr(self, field.name) for field in fields(self)]

    def copy(self) -> State:
        """An independent copy."""
        return State(*(tensor.clone() for tensor in self.tensors()))

    def extrapolate_from(self, best: State, step: Float[Tensor, ""]) -> None:
        """Become the point `step` beyond `best` on the line from here to it.

        Values of the core move only where both have the same mask. A step of 0 gives `best`, even
        where this point is not finite.
        """
        group = self.core.shape[1] // self.choice.shape[1]
        kept = (self.choice == best.choice).repeat_interleave(group, dim=1)
        for own, best_own in ((self.left, best.left), (self.right, best.right)):
            own.sub_(best_own).nan_to_num_(0.0, 0.0, 0.0).mul_(-step).add_(best_own)
        self.core.sub_(best.core).nan_to_num_(0.0, 0.0, 0.0).mul_(kept)
        self.core.mul_(-step).add_(best.core)
        self.choice.copy_(best.choice)


def better_first(best: State, new: State) -> tuple[State, State, Bool[Tensor, ""]]:
    """``(better, other, whether new was better)``; on a GPU without waiting for the answer.

    What was given is not to be used any more.
    """
    improved = new.loss < best.loss
    if improved.device.type == "cpu":
        return (new, best, improved) if improved else (best, new, improved)
    pairs = list(zip(best.tensors(), new.tensors(), strict=True))
    better = State(*(torch.where(improved, two, one) for one, two in pairs))
    other = State(*(torch.where(improved, one, two) for one, two in pairs))
    return better, other, improved
