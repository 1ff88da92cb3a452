"""The reference backend: plain torch on any device and dtype. It unpacks the core at every call."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from armor.runtime.backend import YES, Call, Verdict
from armor.sparse.layer import PackedLayer
from armor.sparse.pack import unpack
from armor.sparse.pattern import Pattern


def is_available() -> Verdict:
    """Always."""
    return YES


def is_supported(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, batch: int, pattern: Pattern
) -> Verdict:
    """Everything."""
    return YES


def prepare(layer: PackedLayer) -> None:
    """Nothing: it reads the stored tensors."""


def matmul(x: Float[Tensor, "batch in"], call: Call) -> Float[Tensor, "batch out"]:
    """See `Backend.matmul`; differentiable in everything but the indices."""
    layer = call.layer
    left, right = plain_wrappers(layer)
    if right is not None:
        x = times_blocks(x, right)
    y = functional.linear(x, plain_core(layer))
    if left is not None:
        y = times_blocks(y, left)
    return y if call.bias is None else y + call.bias


def plain_core(layer: PackedLayer) -> Float[Tensor, "out in"]:
    """S unpacked, codes multiplied out, in the dtype of the layer."""
    values = layer.float_values().to(layer.dtype)
    return unpack(values, layer.core_indices, layer.in_features, layer.pattern)


def plain_wrappers(
    layer: PackedLayer,
) -> tuple[Float[Tensor, "i b b"] | None, Float[Tensor, "j b b"] | None]:
    """A and B with codes multiplied out, in the dtype of the layer."""
    left, right = layer.float_wrappers()
    return (
        None if left is None else left.to(layer.dtype),
        None if right is None else right.to(layer.dtype),
    )


def times_blocks(
    x: Float[Tensor, "*batch n"], blocks: Float[Tensor, "count b b"]
) -> Float[Tensor, "*batch n"]:
    """``blockdiag(blocks) x`` for each vector of `x` (..., n); a last partial block is padded.

    Args:
        x, blocks: with (count - 1)*b < n <= count*b.

    Returns:
        Contiguous.
    """
    count, size, _ = blocks.shape
    features = x.shape[-1]
    flat = functional.pad(x.reshape(-1, features), (0, count * size - features))
    product = torch.bmm(flat.view(-1, count, size).transpose(0, 1), blocks.mT)
    product = product.transpose(0, 1).reshape(*x.shape[:-1], count * size)
    return product[..., :features].contiguous()
