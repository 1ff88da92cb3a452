"""multiply_out: a loaded model without any layer of armor's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from armor.errors import ArmorError
from armor.linear import ArmorLinear, armor_layers, prepare
from armor.models.expert import Experts
from armor.models.experts import put_together
from armor.models.fused import JoinedLinear
from armor.models.modules import put_module
from armor.models.transposed import make_transposed


def multiply_out(
    model: nn.Module, fused: Mapping[str, nn.Module], dtype: torch.dtype | None = None
) -> None:
    """Give `model` plain linears, in place, and the modules that it had before it was split.

    Args:
        fused: experts before they were split, by their name, their weights of no account.
        dtype: of the weights that were pruned; None keeps theirs.

    Raises:
        ArmorError: layers that are offloaded.
    """
    layers = list(armor_layers(model))
    if away := [name for name, layer in layers if layer.core_values.is_meta]:
        raise ArmorError(
            f"{away[0]} is offloaded: load the model without offloading to multiply it out, or run"
            " `armor export`"
        )
    for name, layer in layers:
        linear = _linear(layer, dtype)
        put_module(model, name, make_transposed(linear) if layer.transposed else linear)
    for name, module in list(model.named_modules()):
        if isinstance(module, JoinedLinear):
            put_module(model, name, module.whole())
        elif isinstance(module, Experts) and name in fused:
            put_module(model, name, put_together(module, fused[name]))
    prepare(model)  # modules that ran as one are their own again


def _linear(layer: ArmorLinear, dtype: torch.dtype | None) -> nn.Linear:
    weight = layer.dense_weight().to(dtype or layer.packed().dtype)
    linear = nn.Linear(
        layer.in_features, layer.out_features, layer.bias is not None, "meta", weight.dtype
    )
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias.to(dtype or layer.bias.dtype), requires_grad=False)
    return linear.train(layer.training)
