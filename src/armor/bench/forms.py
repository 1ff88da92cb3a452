"""The forms that layers come in (dtype, core, pattern), and layers of random numbers in each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from armor.bench.layers import random_layer
from armor.bench.shapes import Shape
from armor.linear import ArmorLinear
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import CORES, INT8, Levels
from armor.sparse.pattern import TWO_OF_FOUR, Pattern
from armor.sparse.rounded import store_codes

_DEVIATIONS = 3.0  # of a normal distribution, that the levels of a core reach to


class Member(NamedTuple):
    """A layer to be made.

    Attributes:
        core, wrappers: what they are rounded to; None: they are not.
    """

    shape: Shape
    core: str | None = None
    wrappers: str | None = None
    bias: bool = False


def name_of(dtype: torch.dtype, core: str | None = None, pattern: Pattern = TWO_OF_FOUR) -> str:
    """Such as "int8 cores, bfloat16"."""
    name = str(dtype).removeprefix("torch.")
    if core is not None:
        return f"{core} cores, {name}"
    return name if pattern == TWO_OF_FOUR else f"{pattern}, {name}"


def dtypes_of(device: torch.device) -> tuple[torch.dtype, ...]:
    """Those of models on such a device, the usual one first."""
    if device.type == "cuda":
        return torch.bfloat16, torch.float16, torch.float32
    return torch.float32, torch.bfloat16, torch.float16


def random_member(member: Member, dtype: torch.dtype, device: torch.device) -> ArmorLinear:
    """A layer of random numbers whose outputs are about as large as its inputs; not prepared."""
    shape = member.shape
    layer = random_layer(shape, dtype, device, prepare=False).packed()
    parts = {name: part.detach() for name, part in layer.tensors().items()}
    spread = (shape.in_features * shape.pattern.density) ** -0.5
    if member.core is None:
        parts["core_values"] *= spread
    else:
        made = _codes(CORES[member.core], layer.shape[0], layer.kept, spread, dtype, device)
        parts["core_values"], parts["core_scales"] = made
    for name in ("left", "right") if shape.block is not None else ():
        count, size, _ = parts[name].shape
        if member.wrappers is None:
            parts[name] *= size**-0.5
        else:
            codes, scales = _codes(INT8, count * size, size, size**-0.5, dtype, device)
            parts[name] = codes.view(count, size, size)
            parts[f"{name}_scales"] = scales[:, 0].reshape(count, size).contiguous()
    packed = PackedLayer.of(layer.in_features, parts, layer.pattern)
    bias = _normal(layer.shape[0], device).to(dtype) if member.bias else None
    return ArmorLinear.from_packed(packed, bias)


def _codes(
    levels: Levels,
    rows: int,
    kept: int,
    spread: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """(rows, bytes) and their scales: values of about `spread`, a few as large as they can be."""
    unit = levels.largest / _DEVIATIONS
    codes = (_normal(rows * kept, device).view(rows, kept) * unit).clamp_(
        levels.lowest, levels.highest
    )
    if not levels.is_float:
        codes.round_()
    count = levels.scale_count(kept)
    scales = torch.rand(rows, count, dtype=torch.float32, device=device) + 0.5
    return store_codes(levels, codes), (scales * (spread / unit)).to(dtype)


def _normal(count: int, device: torch.device) -> Tensor:
    return torch.randn(count, dtype=torch.float32, device=device)
