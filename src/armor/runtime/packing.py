"""Packing ahead of the first call, for backends with a layout of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from armor.runtime.backend import Sharing
from armor.runtime.frontend import DECODE_ROWS, backend, forced, order
from armor.runtime.semi_structured.compressed import positions
from armor.runtime.sharing import SharedInputs
from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import TWO_OF_FOUR


def pack(layer: PackedLayer) -> Tensor | None:
    """What `armor.runtime.linear` takes as `packed`; None where the stored tensors are enough.

    It begins with the kept values in their stored order, so that the layer can share them.
    """
    if layer.pattern != TWO_OF_FOUR:
        return None
    values = layer.core_values
    for name in order(values.device, DECODE_ROWS + 1):
        candidate = backend(name)
        if candidate.is_available() and candidate.is_supported(
            layer.shape, values.dtype, values.device, DECODE_ROWS + 1
        ):
            return candidate.pack(layer)
    return None


def stored_indices(layer: PackedLayer, packed: Tensor) -> Tensor | None:
    """`core_indices` of the layer out of what `pack` made; None if they cannot be told."""
    found = positions(layer, packed)
    return None if found is None else found[1].stored(found[0], layer)


def prepare(model: nn.Module) -> None:
    """Pack every `ArmorLinear` of `model`, and let those with the same input run together.

    ``from_pretrained`` does it. Call it again after moving a model to another device or changing
    its dtype, both of which drop what was packed, and before compiling or capturing a graph.
    Layers that are offloaded are left alone. On the CPU nothing is packed: its backend reads the
    stored tensors.
    """
    from armor.linear import ArmorLinear

    for module in model.modules():
        if isinstance(module, ArmorLinear):
            module.shared = None
            if _is_here(module):
                module.prepare()
    for parent in model.modules():
        siblings: dict[int, list[ArmorLinear]] = {}
        for child in parent.children():
            if isinstance(child, ArmorLinear) and child.pattern == TWO_OF_FOUR and _is_here(child):
                siblings.setdefault(child.in_features, []).append(child)
        for group in siblings.values():
            if len(group) > 1 and _gains_from_sharing(group[0].core_values.device):
                together = SharedInputs(group)
                for number, layer in enumerate(group):
                    layer.shared = (together, number)


def _is_here(module: nn.Module) -> bool:
    """Not offloaded."""
    return not any(tensor.is_meta for tensor in module.parameters())


def _gains_from_sharing(device: torch.device) -> bool:
    """Whether a backend that is used on `device` gains from layers with the same input."""
    wanted = forced()
    names = order(device, 1) if wanted is None else (wanted,)
    return any(isinstance(backend(name), Sharing) for name in names)
