"""Layers of random codes that stand for a packed one, to be timed: values make no difference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from armor.linear import ArmorLinear
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import CORES


def random_codes(
    packed: PackedLayer, core: str, wrappers: bool, bias: Tensor | None = None
) -> ArmorLinear:
    """`packed` (2:4, not rounded) with random codes of about its size in place of its values.

    Args:
        core: a key of `CORES`. wrappers: whether those of A and B are int8, too.
    """
    levels = CORES[core]
    rows, kept = packed.core_values.shape
    floats: dict[str, Any] = {"dtype": packed.dtype, "device": "cpu"}
    size = float(packed.core_values.float().std()) / levels.largest
    if core == "int4":
        values = torch.randint(0, 256, (rows, kept // 2), dtype=torch.uint8, device="cpu")
    else:
        values = torch.randint(-120, 121, (rows, kept), dtype=torch.int8, device="cpu")
    parts = {
        "core_values": values.view(torch.uint8) if core == "fp8" else values,
        "core_indices": packed.core_indices,
        "core_scales": torch.rand(rows, levels.scale_count(kept), **floats) * size,
    }
    for name, blocks in (("left", packed.left), ("right", packed.right)):
        if blocks is None:
            continue
        parts[name] = blocks
        if wrappers:
            codes = torch.randint(-127, 128, blocks.shape, dtype=torch.int8, device="cpu")
            parts[name] = codes
            parts[f"{name}_scales"] = torch.rand(blocks.shape[:2], **floats) / 127
    return ArmorLinear.from_packed(PackedLayer.of(packed.in_features, parts), bias)
