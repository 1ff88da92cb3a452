"""What a backend is: a module with the four functions of `Backend`, or the five of `Sharing`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from armor.sparse.layer import PackedLayer


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


@runtime_checkable
class Sharing(Backend, Protocol):
    """A backend that computes several layers of the same input faster together."""

    def matmul_shared(
        self,
        x: Tensor,
        layers: Sequence[PackedLayer],
        biases: Sequence[Tensor | None],
        packed: Sequence[Tensor | None],
    ) -> list[Tensor]:
        """`matmul` of each layer; they have the same number of inputs."""
        ...
