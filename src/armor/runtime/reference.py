"""The reference backend: plain torch on any device and dtype. It unpacks the core at every call."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from armor.sparsity import unpack


def linear(
    x: Tensor,
    core_values: Tensor,
    core_indices: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """``A (S (B x)) + bias``.

    Args:
        x: (..., in), the dtype of `core_values`.
        core_values, core_indices: the packed core, see `armor.sparsity.pack`.
        left: A, (ceil(out/b), b, b), or None for no wrappers. right: B, (ceil(in/b), b, b) or None.
        bias: (out,) or None.

    Returns:
        (..., out), the dtype of `x`.
    """
    core = unpack(core_values, core_indices, x.shape[-1])
    if right is not None:
        x = times_blocks(x, right)
    y = functional.linear(x, core)
    if left is not None:
        y = times_blocks(y, left)
    return y if bias is None else y + bias


def times_blocks(x: Tensor, blocks: Tensor) -> Tensor:
    """``blockdiag(blocks) x`` for each vector of `x` (..., n); a last partial block is padded.

    Args:
        x: (..., n). blocks: (count, b, b) with (count - 1)*b < n <= count*b.
    """
    count, size, _ = blocks.shape
    features = x.shape[-1]
    flat = functional.pad(x.reshape(-1, features), (0, count * size - features))
    product = torch.bmm(flat.view(-1, count, size).transpose(0, 1), blocks.mT)
    return product.transpose(0, 1).reshape(*x.shape[:-1], count * size)[..., :features]
