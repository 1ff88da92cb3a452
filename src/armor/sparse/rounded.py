"""Rounded: what the stored values of a layer are multiples of."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from armor.sparse.levels import INT8, SCALE_GROUP, Levels


@dataclass(frozen=True)
class Rounded:
    """The scales of a layer with a rounded core. Their dtype is that of the dense weight.

    Attributes:
        levels: of the core.
        core_scales: (out, n), one for each `SCALE_GROUP` kept values of a row.
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
    return scales.repeat_interleave(SCALE_GROUP, dim=1)[:, :kept]


def encode(
    levels: Levels, values: Float[Tensor, "*shape"], scales: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The codes of values on the grid, or those nearest to them; as floats.

    Args:
        scales: of each value, or broadcast to them. Where one is 0 the code is the middle one.
    """
    return levels.nearest((values / scales).nan_to_num(0.0))


def encode_blocks(
    blocks: Float[Tensor, "count b b"], scales: Float[Tensor, "count b"]
) -> Shaped[Tensor, "count b b"]:
    """Wrapper blocks as int8 codes."""
    scales = scales.to(blocks.dtype).unsqueeze(-1)
    return encode(INT8, blocks, scales.expand_as(blocks)).to(torch.int8)


def decode_blocks(
    codes: Shaped[Tensor, "count b b"], scales: Float[Tensor, "count b"]
) -> Float[Tensor, "count b b"]:
    """Wrapper blocks of their codes, in the dtype of `scales`."""
    return codes.to(scales.dtype) * scales.unsqueeze(-1)
