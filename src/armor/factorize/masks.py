"""The masks that a group of the core may take in the solvers, and their codes."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from armor.sparse.pattern import TWO_OF_FOUR, Pattern

#: Entries of a group where the pattern has none: an unstructured core.
UNSTRUCTURED_GROUP = 4
#: The six ways to keep 2 of 4, in the order of their codes.
PAIRS = TWO_OF_FOUR.masks


def group_size(pattern: Pattern) -> int:
    """Consecutive entries that are set together, M."""
    return pattern.group or UNSTRUCTURED_GROUP


@cache
def group_masks(pattern: Pattern) -> tuple[tuple[int, ...], ...]:
    """The kept positions of each mask; its place is its code. By their number, then in order.

    An unstructured group may take all ``2^M``.
    """
    if not pattern.is_unstructured:
        return pattern.masks
    positions = range(UNSTRUCTURED_GROUP)
    return tuple(
        mask for kept in range(UNSTRUCTURED_GROUP + 1) for mask in combinations(positions, kept)
    )


def mask_from_choice(
    choice: UInt8[Tensor, "rows groups"], pattern: Pattern = TWO_OF_FOUR
) -> Bool[Tensor, "rows cols"]:
    """Kept positions, bool (rows, M*groups), of the codes `choice`, uint8 (rows, groups)."""
    masks = group_masks(pattern)
    table = torch.zeros(len(masks), group_size(pattern), dtype=torch.bool, device="cpu")
    for code, mask in enumerate(masks):
        table[code, list(mask)] = True
    return table.to(choice.device)[choice.long()].flatten(1)


def choice_from_mask(
    mask: Bool[Tensor, "rows cols"], pattern: Pattern = TWO_OF_FOUR
) -> UInt8[Tensor, "rows groups"]:
    """The inverse of `mask_from_choice`: uint8 (rows, groups)."""
    group = group_size(pattern)
    bits = mask.view(torch.uint8)
    keys = bits[:, ::group].clone()
    for place in range(1, group):
        keys |= bits[:, place::group] << place
    table = torch.zeros(2**group, dtype=torch.uint8, device=mask.device)
    for code, kept in enumerate(group_masks(pattern)):
        table[sum(1 << place for place in kept)] = code
    return table[keys.int()]
