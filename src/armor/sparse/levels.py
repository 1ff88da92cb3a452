"""The levels of a core whose kept values are rounded to few bits, and how they are stored.

A kept value is ``(code + offset) * scale``. `SCALE_GROUP` neighbouring kept values of a row share a
scale; the last ones of a row may be fewer. Wrappers are rounded row by row: ``code * scale``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, Shaped, UInt8
from torch import Tensor

from armor.errors import ArmorError

#: Kept values of a row that share a scale.
SCALE_GROUP = 64


@dataclass(frozen=True)
class Levels:
    """A grid of values, in units of a scale: ``code + offset``, for each code of a range.

    Attributes:
        name: what the settings and the checkpoint call it.
        lowest, highest: code. offset: added to it.
        dtype: of the stored values. per_byte: how many of them a byte of it holds.
    """

    name: str
    lowest: int
    highest: int
    offset: float
    dtype: torch.dtype
    per_byte: int

    @property
    def largest(self) -> float:
        """The largest magnitude, in units of the scale."""
        return self.highest + self.offset

    def nearest(self, ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The codes nearest to values over their scale, as floats."""
        return (ratio - self.offset).round_().clamp_(self.lowest, self.highest)

    def values(
        self, codes: Shaped[Tensor, "*shape"], scales: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """What codes stand for, in the dtype of `scales`."""
        return (codes.to(scales.dtype) + self.offset) * scales

    def store(self, codes: Shaped[Tensor, "rows kept"]) -> Shaped[Tensor, "rows bytes"]:
        """Codes, whatever their dtype, as they are stored; of int4 two a byte, low bits first."""
        if self.per_byte == 1:
            return codes.to(self.dtype)
        places = (codes - self.lowest).to(torch.uint8)
        return places[:, 0::2] | places[:, 1::2] << 4

    def load(self, stored: Shaped[Tensor, "rows bytes"]) -> Shaped[Tensor, "rows kept"]:
        """The inverse of `store`: int8."""
        if self.per_byte == 1:
            return stored
        places = torch.stack((stored & 15, stored >> 4), dim=-1).flatten(1)
        return places.to(torch.int8) + self.lowest


INT8 = Levels("int8", -127, 127, 0.0, torch.int8, 1)
INT4 = Levels("int4", -8, 7, 0.5, torch.uint8, 2)
#: By name. What a core may be rounded to.
CORES = {levels.name: levels for levels in (INT8, INT4)}
#: What wrappers may be rounded to.
WRAPPERS = {INT8.name: INT8}


def scale_count(kept: int) -> int:
    """How many scales a row with so many kept values has."""
    return -(-kept // SCALE_GROUP)
