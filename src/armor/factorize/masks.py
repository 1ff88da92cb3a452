"""The masks that a group of the core may take in the solvers, and their codes."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import torch
from torch import Tensor

from armor.pattern import TWO_OF_FOUR, Pattern

#: Entries to a group where the pattern has none: an unstructured core.
FREE_GROUP = 4
#: A pivot below this share of its diagonal entry counts as zero.
_LEAST_PIVOT = 1e-5


def group_of(pattern: Pattern) -> int:
    """Consecutive entries that are set together, M."""
    return pattern.group or FREE_GROUP


@cache
def masks_of(pattern: Pattern) -> tuple[tuple[int, ...], ...]:
    """The kept positions of each mask; its place is its code. By their number, then in order.

    An unstructured group may take all ``2^M``.
    """
    if not pattern.is_unstructured:
        return pattern.masks
    return tuple(
        mask for kept in range(FREE_GROUP + 1) for mask in combinations(range(FREE_GROUP), kept)
    )


def mask_of(choice: Tensor, pattern: Pattern = TWO_OF_FOUR) -> Tensor:
    """Kept positions, bool (rows, M*groups), of the codes `choice`, uint8 (rows, groups)."""
    masks = masks_of(pattern)
    table = torch.zeros(len(masks), group_of(pattern), dtype=torch.bool)
    for code, mask in enumerate(masks):
        table[code, list(mask)] = True
    return table.to(choice.device)[choice.long()].flatten(1)


def choice_of(mask: Tensor, pattern: Pattern = TWO_OF_FOUR) -> Tensor:
    """The inverse of `mask_of`: uint8 (rows, groups)."""
    group = group_of(pattern)
    bits = mask.view(torch.uint8)
    keys = bits[:, ::group].clone()
    for place in range(1, group):
        keys |= bits[:, place::group] << place
    table = torch.zeros(2**group, dtype=torch.uint8, device=mask.device)
    for code, kept in enumerate(masks_of(pattern)):
        table[sum(1 << place for place in kept)] = code
    return table[keys.int()]


def gain_tables(gram_right: Tensor, pattern: Pattern) -> Tensor:
    """What each mask of each group gains, as quadratic forms of the force p on the group.

    With E the inverse of a mask's part of H, embedded in zeros, ``p^T E p`` is the gain and ``E p``
    the values. A coordinate that the ones before it leave (nearly) no room gets none, so that gains
    stay exact and values finite.

    Args:
        gram_right: H, (j, b, b), positive semi-definite.

    Returns:
        (j, b/M, M*(M+1)/2, masks), in the dtype of `gram_right`: the upper triangle of E, row by
        row, entries off the diagonal doubled.
    """
    width = group_of(pattern)
    masks = masks_of(pattern)
    blocks, size, _ = gram_right.shape
    groups = size // width
    corner = gram_right.double().reshape(blocks, groups, width, groups, width)
    corner = corner.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    rows = {pair: n for n, pair in enumerate(_triangle(width))}
    tables = gram_right.new_zeros(blocks, groups, len(rows), len(masks))
    for kept in sorted({len(mask) for mask in masks} - {0}):
        codes = [code for code, mask in enumerate(masks) if len(mask) == kept]
        places = torch.tensor([masks[code] for code in codes], device=corner.device)
        parts = corner[:, :, places.unsqueeze(2), places.unsqueeze(1)]
        inverses = _inverses(parts).to(gram_right.dtype)
        first, last = codes[0], codes[-1] + 1  # masks of a size are neighbours
        for one in range(kept):
            for two in range(one, kept):
                at = [rows[masks[code][one], masks[code][two]] for code in codes]
                entry = inverses[..., one, two] * (1 if one == two else 2)
                columns = torch.arange(first, last, device=corner.device)
                tables[:, :, torch.tensor(at, device=corner.device), columns] = entry
    return tables


def _triangle(width: int) -> list[tuple[int, int]]:
    return [(one, two) for one in range(width) for two in range(one, width)]


def _inverses(parts: Tensor) -> Tensor:
    """Inverses of symmetric (..., k, k) by pivots in order, without those that are zero."""
    least = _LEAST_PIVOT * parts.diagonal(dim1=-2, dim2=-1)
    swept = parts.clone()
    used = torch.zeros_like(least, dtype=torch.bool)
    for place in range(parts.shape[-1]):
        pivot = swept[..., place, place]
        room = pivot > least[..., place]
        used[..., place] = room
        column = torch.where(room.unsqueeze(-1), swept[..., place], 0.0)
        scaled = column / torch.where(room, pivot, 1.0).unsqueeze(-1)
        swept = swept - scaled.unsqueeze(-1) * column.unsqueeze(-2)
        held = torch.where(room.unsqueeze(-1), scaled, swept[..., place])
        own = torch.where(room, -1 / torch.where(room, pivot, 1.0), swept[..., place, place])
        swept[..., place, :] = held
        swept[..., :, place] = held
        swept[..., place, place] = own
    both = used.unsqueeze(-1) & used.unsqueeze(-2)
    return torch.where(both, -swept, 0.0)
