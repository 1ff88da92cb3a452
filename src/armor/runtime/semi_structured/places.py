"""Where the hardware's 2:4 layout puts the positions, found out by asking it.

A backend that rearranges the positions would need them twice: as it wants them, and as they are
stored, for decoding and for saving. Instead the rearranged ones are kept alone, with the place of
each: 16 bits of positions (4 groups of one row) go to ``rows[row] + columns[unit]``, which all
known layouts are. `learn` marks every unit with its number and looks where it comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from armor.sparse.layer import PackedLayer

_NIBBLES = (0b0100, 0b1000, 0b1100, 0b1001, 0b1101, 0b1110)  # two ascending positions
_DIGITS = len(_NIBBLES) ** 4  # what 16 bits of positions can say


@dataclass(frozen=True)
class Places:
    """Of 16-bit units in the rearranged positions: int32 (out,) and (in/16,), to be added."""

    rows: Tensor
    columns: Tensor

    def stored(self, tail: Tensor, layer: PackedLayer) -> Tensor:
        """The positions as they are stored: uint8 (out, ceil(in/8)), out of the rearranged."""
        words = tail.view(torch.int16)[(self.rows[:, None] + self.columns).long()]
        groups = layer.core_values.shape[1] // 2
        return words.view(torch.uint8)[: layer.shape[0], : -(-groups // 2)].contiguous()


def learn(
    rows: int, units: int, arrange: Callable[[Tensor], Tensor], device: torch.device
) -> Places | None:
    """The places in a layout, or None if it is of another kind.

    Args:
        rows, units: of 16 bits of positions in a row.
        arrange: rearranges positions, uint8 (rows, 2*units); int16 (rows*units,).
    """
    count = rows * units
    words = [a | b << 4 | c << 8 | d << 12 for a, b, c, d in product(_NIBBLES, repeat=4)]
    digits = torch.tensor(words, dtype=torch.int32, device=device).to(torch.int16)
    value = torch.full((2**16,), -1, device=device)
    value[digits.int() & 0xFFFF] = torch.arange(_DIGITS, device=device)
    number = torch.arange(count, device=device)
    found = torch.zeros_like(number)
    weight = 1
    while weight < count or weight == 1:
        marked = digits[number // weight % _DIGITS].view(rows, units)
        came_out = arrange(marked.view(torch.uint8))
        if came_out.numel() != count:
            return None
        digit = value[came_out.int() & 0xFFFF]
        if bool((digit < 0).any()):
            return None
        found += digit * weight
        weight *= _DIGITS
    place = torch.full_like(found, -1)
    if int(found.max()) >= count:
        return None
    place[found] = number
    place = place.view(rows, units)
    first, across = place[:, 0], place[0] - place[0, 0]
    if not torch.equal(first[:, None] + across, place):
        return None
    return Places(first.int(), across.int())
