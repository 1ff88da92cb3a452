"""What a backend is: a module with the four functions of `Backend`, or the five of `Sharing`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import Pattern


class Verdict(NamedTuple):
    """Yes, or no with the reason; true in a condition if yes."""

    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason


YES = Verdict()


class Call(NamedTuple):
    """What computes ``A (S (B x)) + bias``: everything but x.

    Attributes:
        layer: the stored tensors. bias: (out,), the dtype of the layer, or None.
        prepared: what `Backend.prepare` made of the layer, or None.
        prepared_by: the name of the backend that made it; other backends do not get to see it.
    """

    layer: PackedLayer
    bias: Tensor | None = None
    prepared: Tensor | None = None
    prepared_by: str = ""

    def tensors(self) -> list[Tensor]:
        """All of them."""
        found = [*self.layer.tensors().values(), self.bias, self.prepared]
        return [tensor for tensor in found if tensor is not None]


@runtime_checkable
class Backend(Protocol):
    """One way of computing ``y = A (S (B x)) + bias``; stateless."""

    def is_available(self) -> Verdict:
        """Whether this machine and installation can run it at all."""
        ...

    def is_supported(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        batch: int,
        pattern: Pattern,
    ) -> Verdict:
        """Whether it computes such a layer: shape (out, in), `batch` rows of input."""
        ...

    def prepare(self, layer: PackedLayer) -> Tensor | None:
        """The form of the layer that it computes from, or None if that is the stored one.

        Contiguous. Where it begins with the kept values in their stored order, the module that
        holds both keeps these once.
        """
        ...

    def matmul(self, x: Float[Tensor, "batch in"], call: Call) -> Float[Tensor, "batch out"]:
        """Contiguous, in the dtype of x; `call.prepared` is of its own `prepare`, or None."""
        ...


@runtime_checkable
class Sharing(Backend, Protocol):
    """A backend that computes several layers of the same input faster together."""

    def matmul_shared(
        self, x: Float[Tensor, "batch in"], calls: Sequence[Call]
    ) -> list[Float[Tensor, "batch _"]]:
        """`matmul` of each; the layers have the same number of inputs."""
        ...
