"""``torch.ops.armor.linear`` and ``linears``: the runtime as opaque operators.

Compilers see its shapes and nothing else, so there is no graph break, and the backend is chosen
anew at every call (decode and prefill differ) without a recompilation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from armor.runtime.backend import Call
from armor.runtime.dispatch import run, run_together
from armor.runtime.reference import times_blocks
from armor.sparse.layer import PackedLayer
from armor.sparse.pack import unpack
from armor.sparse.pattern import Pattern

# An operator takes tensors and numbers, so a `Call` is taken apart; `_call` puts it together again.
_LINEAR = (
    "(Tensor x, Tensor core_values, Tensor core_indices, Tensor? left, Tensor? right,"
    " Tensor? bias, Tensor? prepared, str prepared_by, str pattern) -> Tensor"
)
_LINEAR_BACKWARD = (
    "(Tensor grad, int in_features, Tensor core_values, Tensor core_indices, Tensor? left,"
    " Tensor? right, str pattern) -> Tensor"
)
_LINEARS = (
    "(Tensor x, Tensor[] core_values, Tensor[] core_indices, Tensor?[] left, Tensor?[] right,"
    " Tensor?[] bias, Tensor?[] prepared, str[] prepared_by, str[] pattern) -> Tensor[]"
)


def call_linear(x: Tensor, call: Call) -> Tensor:
    """The operator ``armor::linear``: as `armor.runtime.linear`, with gradients for x only."""
    return linear_operator(x, *arguments(call))


def call_linears(x: Tensor, calls: Sequence[Call]) -> list[Tensor]:
    """The operator ``armor::linears``: as `armor.runtime.api.linears`."""
    return linears_operator(x, *map(list, zip(*map(arguments, calls), strict=True)))


def arguments(call: Call) -> tuple[Any, ...]:
    """What the operators take of a call, after x."""
    layer = call.layer
    return (
        *(layer.core_values, layer.core_indices, layer.left, layer.right),
        *(call.bias, call.prepared, call.prepared_by, str(layer.pattern)),
    )


def _call(
    in_features: int,
    values: Tensor,
    indices: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    bias: Tensor | None,
    prepared: Tensor | None,
    prepared_by: str,
    pattern: str,
) -> Call:
    layer = PackedLayer(in_features, values, indices, left, right, Pattern.parse(pattern))
    return Call(layer, bias, prepared, prepared_by)


@torch.library.custom_op("armor::linear", mutates_args=(), schema=_LINEAR)
def linear_operator(x: Tensor, *arguments: Any) -> Tensor:
    """See `call_linear`."""
    return run(x, _call(x.shape[-1], *arguments))


@linear_operator.register_fake
def _(x: Tensor, core_values: Tensor, core_indices: Tensor, *others: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], core_indices.shape[0])


@torch.library.custom_op("armor::linear_backward", mutates_args=(), schema=_LINEAR_BACKWARD)
def backward_operator(
    grad: Tensor,
    in_features: int,
    values: Tensor,
    indices: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    pattern: str,
) -> Tensor:
    """``B^T S^T A^T grad``, in plain torch."""
    if left is not None:
        grad = times_blocks(grad, left.mT)
    grad = grad @ unpack(values, indices, in_features, Pattern.parse(pattern))
    return grad if right is None else times_blocks(grad, right.mT)


@backward_operator.register_fake
def _(grad: Tensor, in_features: int, *others: Any) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], in_features)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, indices, left, right, _, _, _, pattern = inputs
    ctx.in_features, ctx.pattern = x.shape[-1], pattern
    ctx.save_for_backward(values, indices, left, right)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return backward_operator(grad, ctx.in_features, *ctx.saved_tensors, ctx.pattern), *[None] * 8


linear_operator.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("armor::linears", mutates_args=(), schema=_LINEARS)
def linears_operator(x: Tensor, *arguments: Sequence[Any]) -> list[Tensor]:
    """See `call_linears`."""
    calls = [_call(x.shape[-1], *each) for each in zip(*arguments, strict=True)]
    return run_together(x, calls)


@linears_operator.register_fake
def _(x: Tensor, values: list[Tensor], indices: list[Tensor], *others: Any) -> list[Tensor]:
    return [x.new_empty(*x.shape[:-1], each.shape[0]) for each in indices]
