"""N:M patterns: parsing, masks, and the packed form (kept values + positions)."""

from __future__ import annotations

import torch
from torch import Tensor

from armor.errors import ArmorError


def parse_pattern(pattern: str) -> tuple[int, int]:
    """``"2:4"`` -> ``(2, 4)``: `n` kept of every `m`. Raises `ArmorError` on anything else."""
    try:
        n, m = (int(part) for part in pattern.split(":"))
    except ValueError:
        n = m = 0
    if not 0 < n < m:
        raise ArmorError(f"pattern {pattern!r} is not of the form N:M with 0 < N < M, such as 2:4")
    return n, m


def nm_mask(scores: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """The `n` largest scores of every `m` consecutive entries of a row, ties to the lower index.

    Args:
        scores: (rows, cols), any float dtype; a last partial group is treated as padded with -inf.

    Returns:
        bool (rows, cols), exactly `n` True in every full group.
    """
    rows, cols = scores.shape
    pad = -cols % m
    if pad:
        scores = torch.nn.functional.pad(scores, (0, pad), value=float("-inf"))
    groups = scores.reshape(rows, -1, m)
    order = groups.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    mask.scatter_(-1, order[..., :n], True)
    return mask.reshape(rows, -1)[:, :cols]


# The packed form, 2:4 only. A group of 4 holds 2 values and a nibble `first | second << 2` of
# their ascending positions; a byte holds the nibbles of two groups, the first in the low bits.
_PADDING_NIBBLE = 0b0100  # positions 0 and 1: a group that pads an odd number of groups


def packed_shapes(out_features: int, in_features: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of `values` and `indices` for a core (out, in)."""
    groups = -(-in_features // 4)
    return (out_features, 2 * groups), (out_features, -(-groups // 2))


def pack(core: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A 2:4 core as its kept values and their positions.

    Args:
        core: (out, in), any dtype. mask: bool (out, in), 2 of every 4 kept; of a last partial
            group at most 2 are, and positions in its padding stand for the missing ones.

    Returns:
        values (out, 2*ceil(in/4)), core's dtype, in order of position, 0 in the padding;
        indices uint8 (out, ceil(ceil(in/4)/2)), four 2-bit positions a byte, low bits first.

    Raises:
        ArmorError: some group does not keep exactly 2.
    """
    rows, cols = core.shape
    pad = -cols % 4
    groups = torch.nn.functional.pad(mask, (0, pad)).reshape(rows, -1, 4)
    if pad:
        last = groups[:, -1]
        missing = 2 - last.sum(-1, keepdim=True)
        last[:, 4 - pad :] = torch.arange(pad, device=mask.device) < missing
    if not bool((groups.sum(-1) == 2).all()):
        raise ArmorError("the mask does not keep exactly 2 of every 4: it cannot be packed as 2:4")
    # A stable sort of "dropped" puts the kept positions first, ascending.
    positions = (~groups).to(torch.uint8).argsort(dim=-1, stable=True)[..., :2]
    padded = torch.nn.functional.pad(core.masked_fill(~mask, 0), (0, pad)).reshape(rows, -1, 4)
    values = padded.gather(-1, positions).reshape(rows, -1)
    nibbles = (positions[..., 0] | positions[..., 1] << 2).to(torch.uint8)
    nibbles = torch.nn.functional.pad(nibbles, (0, nibbles.shape[1] % 2), value=_PADDING_NIBBLE)
    return values, nibbles[:, 0::2] | nibbles[:, 1::2] << 4


def unpack(values: Tensor, indices: Tensor, in_features: int) -> Tensor:
    """The core (out, in) of `pack`, in the dtype of `values`; differentiable in `values`."""
    rows, kept = values.shape
    core = values.new_zeros(rows, kept // 2, 4)
    core = core.scatter(-1, _positions(indices, kept // 2), values.reshape(rows, -1, 2))
    return core.reshape(rows, -1)[:, :in_features]


def unpack_mask(indices: Tensor, in_features: int) -> Tensor:
    """The mask (out, in), bool, of `pack`."""
    groups = -(-in_features // 4)
    mask = torch.zeros(indices.shape[0], groups, 4, dtype=torch.bool, device=indices.device)
    mask.scatter_(-1, _positions(indices, groups), True)
    return mask.reshape(indices.shape[0], -1)[:, :in_features]


def valid_indices(indices: Tensor) -> bool:
    """Whether every nibble of `indices` (uint8) names two distinct ascending positions."""
    return all(
        bool(((nibbles & 3) < (nibbles >> 2)).all()) for nibbles in (indices & 15, indices >> 4)
    )


def _positions(indices: Tensor, groups: int) -> Tensor:
    """Positions of the kept entries inside their group, int64 (out, groups, 2)."""
    nibbles = torch.stack((indices & 15, indices >> 4), dim=-1).flatten(1)[:, :groups]
    return torch.stack((nibbles & 3, nibbles >> 2), dim=-1).long()
