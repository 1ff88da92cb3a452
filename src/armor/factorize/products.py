"""Products of two large matrices: on a GPU by tensor cores, all but as exact as in float32.

A float32 number is the sum of a TF32 number (11 leading bits) and a rest of 13 bits. Of the four
products of these parts the one of both rests is below what float32 can tell; the other three are
summed up in float32. So the relative error is about 2^-21 of each factor, and it takes about a
third of the time of a product in float32. (One TF32 product alone has 2^-11, which the differences
``T X - A S B X`` do not survive.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from armor.device import float32_products

_REST = 13  # bits of a float32 number that a TF32 number lacks


class Operand:
    """A matrix that meets several others: its parts are made once.

    Attributes:
        matrix: float32 or float64, as a whole.
        parts: its leading bits and rests, where tensor cores multiply; else None.
    """

    def __init__(self, matrix: Tensor, parts: tuple[Tensor, Tensor] | None) -> None:
        self.matrix = matrix
        self.parts = parts

    @classmethod
    def of(cls, matrix: Tensor) -> Operand:
        """Of a matrix that stays as it is."""
        return cls(matrix, _split(matrix) if _by_tensor_cores(matrix) else None)

    @classmethod
    def growing(cls, matrix: Tensor) -> Operand:
        """Of a matrix that is filled column by column: see `refresh`."""
        if not _by_tensor_cores(matrix):
            return cls(matrix, None)
        return cls(matrix, (torch.empty_like(matrix), torch.empty_like(matrix)))

    def refresh(self, columns: slice) -> None:
        """These columns of `matrix` have changed."""
        if self.parts is not None:
            high, low = self.parts
            _split(self.matrix[:, columns], (high[:, columns], low[:, columns]))

    def __getitem__(self, place: tuple[slice, slice]) -> Operand:
        """A part of it, in the same memory."""
        parts = None if self.parts is None else (self.parts[0][place], self.parts[1][place])
        return Operand(self.matrix[place], parts)


def product(
    left: Operand | Float[Tensor, "rows inner"],
    right: Operand | Float[Tensor, "inner cols"],
    out: Float[Tensor, "rows cols"] | None = None,
) -> Float[Tensor, "rows cols"]:
    """``left @ right``."""
    first, second = _operand(left), _operand(right)
    if first.parts is None or second.parts is None:
        return torch.mm(first.matrix, second.matrix, out=out)
    if out is None:
        out = first.matrix.new_empty(first.matrix.shape[0], second.matrix.shape[1])
    (high, low), (right_high, right_low) = first.parts, second.parts
    with float32_products("tf32"):
        torch.mm(low, right_high, out=out)
        return out.addmm_(high, right_low).addmm_(high, right_high)


def add_product(
    matrix: Float[Tensor, "rows cols"],
    left: Operand | Float[Tensor, "rows inner"],
    right: Operand | Float[Tensor, "inner cols"],
    sign: float = 1.0,
) -> None:
    """``matrix += sign * left @ right``, in place."""
    first, second = _operand(left), _operand(right)
    if first.parts is None or second.parts is None:
        matrix.addmm_(first.matrix, second.matrix, alpha=sign)
        return
    (high, low), (right_high, right_low) = first.parts, second.parts
    with float32_products("tf32"):
        matrix.addmm_(low, right_high, alpha=sign)
        matrix.addmm_(high, right_low, alpha=sign)
        matrix.addmm_(high, right_high, alpha=sign)


def _operand(matrix: Operand | Tensor) -> Operand:
    return matrix if isinstance(matrix, Operand) else Operand.of(matrix)


def _split(
    matrix: Float[Tensor, "rows cols"], out: tuple[Tensor, Tensor] | None = None
) -> tuple[Float[Tensor, "rows cols"], Float[Tensor, "rows cols"]]:
    """The leading bits, exact in TF32, and the rest; into `out`."""
    high, low = (torch.empty_like(matrix), torch.empty_like(matrix)) if out is None else out
    leading = -(2**_REST)
    torch.bitwise_and(matrix.view(torch.int32), leading, out=high.view(torch.int32))
    return high, torch.sub(matrix, high, out=low)


def _by_tensor_cores(matrix: Tensor) -> bool:
    """Whether the GPU has TF32."""
    if matrix.device.type != "cuda" or matrix.dtype != torch.float32:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(matrix.device) >= (8, 0)
