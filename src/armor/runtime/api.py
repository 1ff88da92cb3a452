"""linear and linears: the functions that modules call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from armor.runtime import reference
from armor.runtime.frontend import run, run_shared
from armor.runtime.operator import linear_operator, linears_operator
from armor.runtime.semi_structured.compressed import whole
from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

#: Of a layer: core_values, core_indices, left, right, bias, packed.
Arguments: TypeAlias = tuple[
    Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None
]


def linear(
    x: Tensor,
    core_values: Tensor,
    core_indices: Tensor,
    left: Tensor | None = None,
    right: Tensor | None = None,
    bias: Tensor | None = None,
    packed: Tensor | None = None,
    pattern: Pattern = TWO_OF_FOUR,
) -> Tensor:
    """``A (S (B x)) + bias`` on the fastest backend that can, or the one `use` asks for.

    Args:
        x: (..., in), any strides, the dtype of `core_values`.
        core_values, core_indices: the packed core, see `armor.sparse.pack.pack`.
        left: A, (ceil(out/b), b, b), or None for no wrappers. right: B, (ceil(in/b), b, b) or None.
        bias: (out,) or None.
        packed: what `pack` made of these tensors, or None.
        pattern: of the core.

    Returns:
        (..., out), the dtype of `x`.

    Raises:
        ArmorError: the backend that was asked for cannot compute it.
    """
    weights = (core_values, left, right, bias)
    if torch.is_grad_enabled() and any(w is not None and w.requires_grad for w in weights):
        layer = PackedLayer(x.shape[-1], core_values, core_indices, left, right, pattern)
        y = reference.matmul(x.reshape(-1, x.shape[-1]), whole(layer, packed), bias, None)
        return y.view(*x.shape[:-1], y.shape[-1])
    # The operator's dispatch costs microseconds: only where a graph or a gradient needs it.
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        kept, group = pattern.kept, pattern.group
        return linear_operator(x, core_values, core_indices, left, right, bias, packed, kept, group)
    layer = PackedLayer(x.shape[-1], core_values, core_indices, left, right, pattern)
    return run(x, layer, bias, packed)


def linears(x: Tensor, calls: Sequence[Arguments]) -> list[Tensor]:
    """`linear` of each of several 2:4 layers with the same input, together where that is faster.

    Args:
        x: (..., in), without a gradient.
    """
    values, indices, left, right, bias, packed = (list(c) for c in zip(*calls, strict=True))
    if torch.compiler.is_compiling():
        return linears_operator(x, values, indices, left, right, bias, packed)
    tensors = zip(values, indices, left, right, strict=True)
    layers = [PackedLayer(x.shape[-1], *each) for each in tensors]
    return run_shared(x, layers, bias, packed)
