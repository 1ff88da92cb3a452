"""Products of two large matrices: on a GPU by tensor cores, all but as exact as in float32.

A float32 number is the sum of a TF32 number (11 leading bits) and a rest of 13 bits. Of the four
products of these parts the one of both rests is below what float32 can tell; the other three are
summed up in float32. So the relative error is about 2^-21 of each factor, and it takes about a
third of the time of a product in float32. (One TF32 product alone has 2^-11, which the differences
``T X - A S B X`` do not survive.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

_REST = 13  # bits of a float32 number that a TF32 number lacks


def product(
    left: Float[Tensor, "rows inner"],
    right: Float[Tensor, "inner cols"],
    out: Float[Tensor, "rows cols"] | None = None,
) -> Float[Tensor, "rows cols"]:
    """``left @ right``."""
    if not _by_tensor_cores(left):
        return torch.mm(left, right, out=out)
    if out is None:
        out = left.new_empty(left.shape[0], right.shape[1])
    return _add_parts(out.zero_(), left, right, 1.0)


def less_product(
    matrix: Float[Tensor, "rows cols"],
    left: Float[Tensor, "rows inner"],
    right: Float[Tensor, "inner cols"],
    out: Float[Tensor, "rows cols"],
) -> Float[Tensor, "rows cols"]:
    """``matrix - left @ right``; `out` may be `matrix`."""
    if not _by_tensor_cores(left):
        return torch.addmm(matrix, left, right, alpha=-1, out=out)
    if out is not matrix:
        out.copy_(matrix)
    return _add_parts(out, left, right, -1.0)


def _add_parts(out: Tensor, left: Tensor, right: Tensor, sign: float) -> Tensor:
    (high, low), (right_high, right_low) = _split(left), _split(right)
    with _tf32():
        out.addmm_(low, right_high, alpha=sign)
        out.addmm_(high, right_low, alpha=sign)
        return out.addmm_(high, right_high, alpha=sign)


def _split(
    matrix: Float[Tensor, "rows cols"],
) -> tuple[Float[Tensor, "rows cols"], Float[Tensor, "rows cols"]]:
    """The leading bits, exact in TF32, and the rest."""
    high = (matrix.view(torch.int32) & -(2**_REST)).view(torch.float32)
    return high, matrix - high


def _by_tensor_cores(matrix: Tensor) -> bool:
    """Whether the GPU has TF32."""
    if matrix.device.type != "cuda" or matrix.dtype != torch.float32:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(matrix.device) >= (8, 0)


@contextmanager
def _tf32() -> Iterator[None]:
    """Products of float32 matrices are of TF32, while active."""
    settings = torch.backends.cuda.matmul
    # The older name is refused where the program has used the newer.
    name, value = ("fp32_precision", "tf32")
    if not hasattr(settings, name):
        name, value = "allow_tf32", True  # type: ignore[assignment]
    before = getattr(settings, name)
    setattr(settings, name, value)
    try:
        yield
    finally:
        setattr(settings, name, before)
