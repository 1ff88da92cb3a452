"""Training: ``y = A S B x + bias`` with gradients for all of it, from the packed tensors.

What is kept for the gradients are activations only. S is unpacked in passing, in the forward and in
the backward pass, and its dense gradient lives no longer than it takes to pick the kept entries.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from armor.runtime.backend import Call
from armor.runtime.reference import times_blocks
from armor.sparse.pack import kept_of, unpack
from armor.sparse.pattern import Pattern


def matmul(x: Float[Tensor, "batch in"], call: Call) -> Float[Tensor, "batch out"]:
    """As `Backend.matmul`; differentiable in x and in everything but the indices."""
    layer = call.layer
    found: Tensor = _Product.apply(
        x,
        *(layer.core_values, layer.core_indices, layer.left, layer.right, call.bias),
        layer.pattern,
    )
    return found


class _Product(torch.autograd.Function):
    """v is B x, u is S v; a gradient is named after what it is of."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        indices: Tensor,
        left: Tensor | None,
        right: Tensor | None,
        bias: Tensor | None,
        pattern: Pattern,
    ) -> Tensor:
        v = x if right is None else times_blocks(x, right)
        u = functional.linear(v, unpack(values, indices, x.shape[1], pattern))
        y = u if left is None else times_blocks(u, left)
        needs_u = left is not None and ctx.needs_input_grad[3]
        ctx.save_for_backward(x, values, indices, left, right, u if needs_u else None)
        ctx.pattern = pattern
        return y if bias is None else y + bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor | None, ...]:
        x, values, indices, left, right, u = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_left = _of_blocks(of_y, u, left) if wanted[3] else None
        of_u = of_y if left is None else times_blocks(of_y, left.mT)
        of_values = of_x = of_right = None
        if wanted[1]:
            v = x if right is None else times_blocks(x, right)
            of_values = kept_of(of_u.mT @ v, indices, ctx.pattern)
        if wanted[0] or wanted[4]:
            of_v = of_u @ unpack(values, indices, x.shape[1], ctx.pattern)
            of_right = _of_blocks(of_v, x, right) if wanted[4] else None
            if wanted[0]:
                of_x = of_v if right is None else times_blocks(of_v, right.mT)
        return of_x, of_values, None, of_left, of_right, of_y.sum(0) if wanted[5] else None, None


def _of_blocks(
    of_product: Float[Tensor, "batch n"],
    factor: Float[Tensor, "batch n"],
    blocks: Float[Tensor, "count b b"],
) -> Float[Tensor, "count b b"]:
    """The gradient of `blocks` in ``blockdiag(blocks) factor``."""
    count, size, _ = blocks.shape

    def by_blocks(matrix: Tensor) -> Tensor:
        padded = functional.pad(matrix, (0, count * size - matrix.shape[1]))
        return padded.view(-1, count, size).transpose(0, 1)

    return torch.bmm(by_blocks(of_product).mT, by_blocks(factor))
