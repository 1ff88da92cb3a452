"""``torch.ops.armor.linear`` and ``linears``: the runtime as opaque operators.

Compilers see its shapes and nothing else, so there is no graph break, and the backend is chosen
anew at every call (decode and prefill differ) without a recompilation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from armor.runtime.frontend import run, run_shared
from armor.runtime.reference import times_blocks
from armor.runtime.semi_structured.compressed import whole
from armor.sparse.layer import PackedLayer
from armor.sparse.pack import unpack
from armor.sparse.pattern import Pattern

_SCHEMA = (
    "(Tensor x, Tensor core_values, Tensor core_indices, Tensor? left, Tensor? right,"
    " Tensor? bias, Tensor? packed, int kept, int group) -> Tensor"
)


@torch.library.custom_op("armor::linear", mutates_args=(), schema=_SCHEMA)
def linear_operator(
    x: Tensor,
    core_values: Tensor,
    core_indices: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    bias: Tensor | None,
    packed: Tensor | None,
    kept: int,
    group: int,
) -> Tensor:
    """See `armor.runtime.linear`; gradients with respect to x only.

    The pattern is `kept` of every `group`, both 0 if unstructured.
    """
    pattern = Pattern(kept, group)
    layer = PackedLayer(x.shape[-1], core_values, core_indices, left, right, pattern)
    return run(x, layer, bias, packed)


@linear_operator.register_fake
def _(x: Tensor, core_values: Tensor, core_indices: Tensor, *others: Any) -> Tensor:
    unstructured = others[-1] == 0
    rows = (core_indices if unstructured else core_values).shape[0]
    return x.new_empty(*x.shape[:-1], rows)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, indices, left, right, _, packed, kept, group = inputs
    ctx.in_features, ctx.pattern = x.shape[-1], Pattern(kept, group)
    ctx.save_for_backward(values, indices, left, right, packed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """``B^T S^T A^T grad``, in plain torch: the runtime is for inference."""
    values, indices, left, right, packed = ctx.saved_tensors
    layer = whole(PackedLayer(ctx.in_features, values, indices), packed)
    if left is not None:
        grad = times_blocks(grad, left.mT)
    grad = grad @ unpack(values, layer.core_indices, ctx.in_features, ctx.pattern)
    if right is not None:
        grad = times_blocks(grad, right.mT)
    return grad, None, None, None, None, None, None, None, None


@torch.library.custom_op(
    "armor::linears",
    mutates_args=(),
    schema="(Tensor x, Tensor[] core_values, Tensor[] core_indices, Tensor?[] left,"
    " Tensor?[] right, Tensor?[] bias, Tensor?[] packed) -> Tensor[]",
)
def linears_operator(
    x: Tensor,
    core_values: list[Tensor],
    core_indices: list[Tensor],
    left: list[Tensor | None],
    right: list[Tensor | None],
    bias: list[Tensor | None],
    packed: list[Tensor | None],
) -> list[Tensor]:
    """See `armor.runtime.api.linears`; 2:4, no gradients."""
    tensors = zip(core_values, core_indices, left, right, strict=True)
    layers = [PackedLayer(x.shape[-1], *each) for each in tensors]
    return run_shared(x, layers, bias, packed)


@linears_operator.register_fake
def _(x: Tensor, core_values: list[Tensor], *others: list[Tensor | None]) -> list[Tensor]:
    return [x.new_empty(*x.shape[:-1], values.shape[0]) for values in core_values]


linear_operator.register_autograd(_backward, setup_context=_keep)
