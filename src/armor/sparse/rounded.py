"""Rounded factors: their scales, and values as codes and back.

A kept value of the core is ``(code + offset) * scale``; `SCALE_GROUP` neighbouring ones of a row
share a scale, of 8-bit floats the whole row. A value of a wrapper is ``code * scale``, with a scale
for each row of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int8, Shaped
from torch import Tensor

from armor.sparse.levels import INT8, SCALE_GROUP, Levels

_FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Rounded:
    """The scales of a layer with a rounded core. Their dtype is that of the dense weight.

    Attributes:
        levels: of the core.
        core_scales: (out, n), n as `Levels.scale_count` says.
        left_scales, right_scales: (i, b) and (j, b), one for each row of a block of a wrapper that
            is rounded to `INT8`; None where wrappers are not.
    """

    levels: Levels
    core_scales: Float[Tensor, "out n"]
    left_scales: Float[Tensor, "i b"] | None = None
    right_scales: Float[Tensor, "j b"] | None = None

    def to(self, device: str | torch.device) -> Rounded:
        """On `device`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        moved = {name: part.to(device) for name, part in tensors.items() if part is not None}
        return replace(self, **moved)


def steps(scales: Float[Tensor, "rows n"], kept: int) -> Float[Tensor, "rows {kept}"]:
    """The scale of each kept value."""
    if scales.shape[1] == 1:
        return scales.expand(-1, kept)
    return scales.repeat_interleave(SCALE_GROUP, dim=1)[:, :kept]


def encode(
    levels: Levels, values: Float[Tensor, "*shape"], scales: Float[Tensor, "*any"]
) -> Float[Tensor, "*shape"]:
    """The codes of the levels nearest to `values`, as floats.

    Args:
        scales: of each value, or broadcast to them. Where one is 0 the code is the middle one.
    """
    ratio = (values / scales).nan_to_num(0.0)
    if levels.is_float:
        return ratio.clamp_(levels.lowest, levels.highest).to(_FP8).to(ratio.dtype)
    return (ratio - levels.offset).round_().clamp_(levels.lowest, levels.highest)


def decode(
    levels: Levels, codes: Shaped[Tensor, "*shape"], scales: Float[Tensor, "*any"]
) -> Float[Tensor, "*shape"]:
    """What codes stand for, in the dtype of `scales`."""
    return (codes.to(scales.dtype) + levels.offset) * scales


def store_codes(levels: Levels, codes: Shaped[Tensor, "rows kept"]) -> Shaped[Tensor, "rows bytes"]:
    """Codes, whatever their dtype, as they are stored; of two in a byte the first in low bits."""
    if levels.is_float:
        return codes.to(_FP8).view(torch.uint8)
    if levels.per_byte == 1:
        return codes.to(torch.int8)
    places = (codes - levels.lowest).to(torch.uint8)
    return places[:, 0::2] | places[:, 1::2] << 4


def load_codes(levels: Levels, stored: Shaped[Tensor, "rows bytes"]) -> Shaped[Tensor, "rows kept"]:
    """The inverse of `store_codes`: int8, or float32."""
    if levels.is_float:
        return stored.view(_FP8).float()
    if levels.per_byte == 1:
        return stored
    places = torch.stack((stored & 15, stored >> 4), dim=-1).flatten(1)
    return places.to(torch.int8) + levels.lowest


def encode_blocks(
    blocks: Float[Tensor, "count b b"], scales: Float[Tensor, "count b"]
) -> Int8[Tensor, "count b b"]:
    """Wrapper blocks as codes."""
    return encode(INT8, blocks, scales.to(blocks.dtype).unsqueeze(-1)).to(torch.int8)


def decode_blocks(
    codes: Int8[Tensor, "count b b"], scales: Float[Tensor, "count b"]
) -> Float[Tensor, "count b b"]:
    """Wrapper blocks of their codes, in the dtype of `scales`."""
    return decode(INT8, codes, scales.unsqueeze(-1))
