"""``torch.ops.armor.linear``, ``linears`` and ``gated``: the runtime as opaque operators.

Compilers see its shapes and nothing else, so there is no graph break, and the backend is chosen
anew at every call (decode and prefill differ) without a recompilation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from armor.runtime.backend import Call
from armor.runtime.dispatch import run, run_gated, run_together
from armor.runtime.gated import Gated
from armor.runtime.reference import plain_core, plain_wrappers, times_blocks
from armor.sparse.layer import PARTS, PackedLayer
from armor.sparse.pattern import Pattern

# An operator takes tensors and numbers, so a `Call` is taken apart; `_call` puts it together again.
_LINEAR = (
    "(Tensor x, Tensor core_values, Tensor core_indices, Tensor? left, Tensor? right,"
    " Tensor? core_scales, Tensor? left_scales, Tensor? right_scales,"
    " Tensor? bias, Tensor? prepared, str prepared_by, str pattern) -> Tensor"
)
_LINEAR_BACKWARD = (
    "(Tensor grad, int in_features, Tensor core_values, Tensor core_indices, Tensor? left,"
    " Tensor? right, Tensor? core_scales, Tensor? left_scales, Tensor? right_scales,"
    " str pattern) -> Tensor"
)
_SEVERAL = (
    "(Tensor x, Tensor[] core_values, Tensor[] core_indices, Tensor?[] left, Tensor?[] right,"
    " Tensor?[] core_scales, Tensor?[] left_scales, Tensor?[] right_scales,"
    " Tensor?[] bias, Tensor?[] prepared, str[] prepared_by, str[] pattern"
)
_LINEARS = f"{_SEVERAL}) -> Tensor[]"
_GATED = f"{_SEVERAL}, str activation) -> Tensor"


def call_linear(x: Tensor, call: Call) -> Tensor:
    """The operator ``armor::linear``: as `armor.runtime.linear`, with gradients for x only."""
    return linear_operator(x, *arguments(call))


def call_linears(x: Tensor, calls: Sequence[Call]) -> list[Tensor]:
    """The operator ``armor::linears``: as `armor.runtime.api.linears`."""
    return linears_operator(x, *map(list, zip(*map(arguments, calls), strict=True)))


def call_gated(x: Tensor, gated: Gated) -> Tensor:
    """The operator ``armor::gated``: as `armor.runtime.api.gated`."""
    return gated_operator(x, *gated_arguments(gated))


def gated_arguments(gated: Gated) -> tuple[Any, ...]:
    """What ``armor::gated`` takes after x: of gate, up and down in turn, and the activation."""
    gate, up, down, activation = gated
    columns = zip(arguments(gate), arguments(up), arguments(down), strict=True)
    return *map(list, columns), activation


def arguments(call: Call) -> tuple[Any, ...]:
    """What the operators take of a call, after x."""
    layer = call.layer
    return (
        *(getattr(layer, part) for part in PARTS),
        *(call.bias, call.prepared, call.prepared_by, str(layer.pattern)),
    )


def _call(in_features: int, *given: Any) -> Call:
    """The inverse of `arguments`."""
    *tensors, bias, prepared, prepared_by, pattern = given
    return Call(_layer(in_features, tensors, pattern), bias, prepared, prepared_by)


def _layer(in_features: int, tensors: Sequence[Tensor | None], pattern: str) -> PackedLayer:
    """Args: tensors: of `PARTS`, in order."""
    parts = {part: own for part, own in zip(PARTS, tensors, strict=True) if own is not None}
    return PackedLayer.of(in_features, parts, Pattern.parse(pattern))


@torch.library.custom_op("armor::linear", mutates_args=(), schema=_LINEAR)
def linear_operator(x: Tensor, *arguments: Any) -> Tensor:
    """See `call_linear`."""
    return run(x, _call(x.shape[-1], *arguments))


@linear_operator.register_fake
def _(x: Tensor, core_values: Tensor, core_indices: Tensor, *others: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], core_indices.shape[0])


@torch.library.custom_op("armor::linear_backward", mutates_args=(), schema=_LINEAR_BACKWARD)
def backward_operator(grad: Tensor, in_features: int, *given: Any) -> Tensor:
    """``B^T S^T A^T grad``, in plain torch."""
    *tensors, pattern = given
    layer = _layer(in_features, tensors, pattern)
    left, right = plain_wrappers(layer)
    if left is not None:
        grad = times_blocks(grad, left.mT)
    grad = grad @ plain_core(layer)
    return grad if right is None else times_blocks(grad, right.mT)


@backward_operator.register_fake
def _(grad: Tensor, in_features: int, *others: Any) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], in_features)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *given = inputs
    ctx.in_features, ctx.pattern = x.shape[-1], given[-1]
    ctx.save_for_backward(*given[: len(PARTS)])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return backward_operator(grad, ctx.in_features, *ctx.saved_tensors, ctx.pattern), *[None] * (
        len(PARTS) + 4
    )


linear_operator.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("armor::linears", mutates_args=(), schema=_LINEARS)
def linears_operator(x: Tensor, *arguments: Sequence[Any]) -> list[Tensor]:
    """See `call_linears`."""
    calls = [_call(x.shape[-1], *each) for each in zip(*arguments, strict=True)]
    return run_together(x, calls)


@linears_operator.register_fake
def _(x: Tensor, values: list[Tensor], indices: list[Tensor], *others: Any) -> list[Tensor]:
    return [x.new_empty(*x.shape[:-1], each.shape[0]) for each in indices]


@torch.library.custom_op("armor::gated", mutates_args=(), schema=_GATED)
def gated_operator(x: Tensor, *given: Any) -> Tensor:
    """See `call_gated`."""
    *columns, activation = given
    gate, up, down = zip(*columns, strict=True)
    inner = len(gate[1])  # outputs of gate
    calls = _call(x.shape[-1], *gate), _call(x.shape[-1], *up), _call(inner, *down)
    return run_gated(x, Gated(*calls, activation))


@gated_operator.register_fake
def _(x: Tensor, values: list[Tensor], indices: list[Tensor], *others: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], indices[-1].shape[0])
