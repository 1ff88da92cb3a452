"""What every way of tuning is given: its text, and what keeps its state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from armor.checkpoint.tuning import Curve


class Keeper(Protocol):
    """What keeps the state of a run, see `armor.tuning.state`."""

    def load(self) -> tuple[int, Curve, dict[str, Tensor]] | None:
        """How far the run was, the curve, and tensors by name, as they were saved last."""
        ...

    def save(self, step: int, curve: Curve, tensors: dict[str, Tensor]) -> None:
        """Keep them in the place of what was saved before."""
        ...


@dataclass(frozen=True)
class Text:
    """Windows of token ids, (samples, seq): to train on, and to judge by."""

    train: Tensor
    held_out: Tensor
