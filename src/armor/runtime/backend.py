"""What a backend is: a module with the four functions of `Backend`."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from armor.packed import PackedLayer


class Verdict(NamedTuple):
    """Yes, or no with the reason; true in a condition if yes."""

    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason


YES = Verdict()


class Backend(Protocol):
    """One way of computing ``y = A (S (B x)) + bias``; stateless."""

    def is_available(self) -> Verdict:
        """Whether this machine and installation can run it at all."""
        ...

    def is_supported(
        self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, batch: int
    ) -> Verdict:
        """Whether it computes such a layer: shape (out, in), `batch` rows of input."""
        ...

    def pack(self, layer: PackedLayer) -> Tensor | None:
        """What it needs besides the stored tensors, or None; see `armor.runtime.prepare`."""
        ...

    def matmul(
        self, x: Tensor, layer: PackedLayer, bias: Tensor | None, packed: Tensor | None
    ) -> Tensor:
        """(batch, in) -> (batch, out), contiguous, in the dtype of x; `packed` is of `pack`."""
        ...
