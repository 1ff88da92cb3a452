"""State: what one batch of windows is between two blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class State:
    """One batch between two blocks; or the gradients by it.

    Attributes:
        hidden: hidden states, (batch, seq, width), in some models with more dimensions before.
        carried: tensors that earlier blocks have left for later ones, such as keys and values that
            are shared, by name; none in most models.
    """

    hidden: Float[Tensor, "... batch seq width"]
    carried: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> State:
        """The same on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self.carried.items()}
        return State(self.hidden.to(device), moved)

    def named(self, batch: str) -> dict[str, Tensor]:
        """As named tensors, the form in which states travel; `states` is the inverse."""
        carried = {f"{batch}/{name}": tensor for name, tensor in self.carried.items()}
        return {batch: self.hidden, **carried}


def states(part: Mapping[str, Tensor]) -> Iterator[tuple[str, State]]:
    """The batches of a part of the windows: the number of each, and its state."""
    for batch, hidden in part.items():
        if "/" not in batch:
            yield batch, State(hidden, of_batch(part, batch))


def of_batch(part: Mapping[str, Tensor], batch: str) -> dict[str, Tensor]:
    """The tensors of `part` that are called ``BATCH/NAME``, by ``NAME``."""
    prefix = f"{batch}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in part.items()
        if name.startswith(prefix)
    }
