"""Packing ahead of the first call, for backends with a layout of their own."""

from __future__ import annotations

from torch import Tensor, nn

from armor.packed import PackedLayer
from armor.runtime.frontend import DECODE_ROWS, backend, order


def pack(layer: PackedLayer) -> Tensor | None:
    """What `armor.runtime.linear` takes as `packed`; None where the stored tensors are enough.

    May begin with the kept values in their stored order, so that the layer can share them.
    """
    values = layer.core_values
    for name in order(values.device, DECODE_ROWS + 1):
        candidate = backend(name)
        if candidate.is_available() and candidate.is_supported(
            layer.shape, values.dtype, values.device, DECODE_ROWS + 1
        ):
            return candidate.pack(layer)
    return None


def prepare(model: nn.Module) -> None:
    """Pack every `ArmorLinear` of `model`; ``from_pretrained`` does it.

    Call it again after moving a model to another device or changing its dtype, both of which drop
    what was packed, and before compiling or capturing a graph. Nothing happens on the CPU, whose
    backend reads the stored tensors.
    """
    from armor.linear import ArmorLinear

    for module in model.modules():
        if isinstance(module, ArmorLinear):
            module.prepare()
