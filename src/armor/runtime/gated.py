"""A gated MLP, ``down(act(gate(x)) * up(x))``, which some backends compute as a whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from armor.runtime.backend import Backend, Call, Verdict


def _relu2(x: Tensor) -> Tensor:
    return functional.relu(x).square()


#: Activations that kernels know, by name.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "relu2": _relu2,
}


class Gated(NamedTuple):
    """The layers of a gated MLP; gate and up are (n, in), down is (out, n).

    Attributes:
        activation: of `ACTIVATIONS`.
    """

    gate: Call
    up: Call
    down: Call
    activation: str

    @property
    def calls(self) -> list[Call]:
        """Gate, up and down."""
        return [self.gate, self.up, self.down]

    def between(self, gate: Tensor, up: Tensor) -> Tensor:
        """What down takes, of the outputs of the other two."""
        return ACTIVATIONS[self.activation](gate) * up


@runtime_checkable
class Gating(Backend, Protocol):
    """A backend that computes a gated MLP faster as a whole."""

    def takes_gated(self, gated: Gated) -> Verdict:
        """Whether it computes such layers as a whole; each of them it supports."""
        ...

    def matmul_gated(
        self, x: Float[Tensor, "batch in"], gated: Gated
    ) -> Float[Tensor, "batch out"]:
        """``down(act(gate(x)) * up(x))``, contiguous, in the dtype of x."""
        ...
