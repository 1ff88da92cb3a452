"""linear, linears and gated: the functions that modules call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from armor.runtime import training
from armor.runtime.backend import Call
from armor.runtime.dispatch import run, run_gated, run_together
from armor.runtime.gated import Gated
from armor.runtime.operator import call_gated, call_linear, call_linears


def linear(x: Float[Tensor, "*batch in"], call: Call) -> Float[Tensor, "*batch out"]:
    """``A (S (B x)) + bias`` on the fastest backend that can, or the one `use` asks for.

    Args:
        x: any strides, the dtype of the layer; under `torch.autocast` both are cast to its dtype.
        call: the layer, its bias and what was prepared of them.

    Returns:
        (..., out), the dtype of `x`.

    Raises:
        ArmorError: the backend that was asked for cannot compute it.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x, call = _cast(x, call, torch.get_autocast_dtype(kind))
    layer = call.layer
    weights = (layer.core_values, layer.left, layer.right, call.bias)
    if torch.is_grad_enabled() and any(w is not None and w.requires_grad for w in weights):
        y = training.matmul(x.reshape(-1, x.shape[-1]), call)
        return y.view(*x.shape[:-1], y.shape[-1])
    # The operator's dispatch costs microseconds: only where a graph or a gradient needs it.
    if torch.compiler.is_compiling():
        return call_linear(x, call)
    if torch.is_grad_enabled() and x.requires_grad:
        # A copy: models may add to it in place (Llama 4), not to a view made in an operator.
        return call_linear(x, call).clone()
    return run(x, call)


def linears(
    x: Float[Tensor, "*batch in"], calls: Sequence[Call]
) -> list[Float[Tensor, "*batch _"]]:
    """`linear` of each of several layers with the same input, together where that is faster.

    Args:
        x: without a gradient.
    """
    if torch.compiler.is_compiling():
        return call_linears(x, calls)
    return run_together(x, calls)


def gated(x: Float[Tensor, "*batch in"], layers: Gated) -> Float[Tensor, "*batch out"]:
    """A gated MLP, as a whole where that is faster.

    Args:
        x: without a gradient.
    """
    if torch.compiler.is_compiling():
        return call_gated(x, layers)
    return run_gated(x, layers)


def _cast(x: Tensor, call: Call, dtype: torch.dtype) -> tuple[Tensor, Call]:
    """What `torch.autocast` makes of a product, with the gradients of the casts."""
    if call.layer.dtype != dtype:
        call = Call(call.layer.to(dtype), None if call.bias is None else call.bias.to(dtype))
    return x.to(dtype), call
