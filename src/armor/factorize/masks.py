"""The masks that a group of the core may take in the solvers, and their codes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations, combinations_with_replacement

import torch
from torch import Tensor
from torch.nn.functional import pad

from armor.sparse.pattern import TWO_OF_FOUR, Pattern

#: Entries to a group where the pattern has none: an unstructured core.
FREE_GROUP = 4
#: Terms of a mask are summed so many at a time.
CHUNK = 5
#: A pivot below this share of its diagonal entry counts as zero. Far above rounding: values that
#: all but cancel soak up the noise of the first iterations, and grow without end.
LEAST_PIVOT = 1e-3


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


@dataclass(frozen=True)
class Terms:
    """The products of two forces that the masks' gains are sums of, mask after mask.

    Attributes:
        one, two: int64 (terms,), the positions that meet, one <= two. Each mask's are filled up to
            a multiple of `CHUNK`, with 0 and 0 to the weight 0.
        starts: int64 (masks + 1,): mask m has ``starts[m]:starts[m+1]``.
        sizes: int64 (masks,), positions kept.
    """

    one: Tensor
    two: Tensor
    starts: Tensor
    sizes: Tensor


@cache
def terms_of(pattern: Pattern) -> Terms:
    """The terms of `masks_of` the pattern."""
    ones: list[int] = []
    twos: list[int] = []
    starts = [0]
    for mask in masks_of(pattern):
        pairs = list(combinations_with_replacement(mask, 2))
        pairs += [(0, 0)] * (-len(pairs) % CHUNK)
        ones += [one for one, _ in pairs]
        twos += [two for _, two in pairs]
        starts.append(len(ones))
    sizes = [len(mask) for mask in masks_of(pattern)]
    return Terms(*map(torch.tensor, (ones, twos, starts, sizes)))


def gain_tables(gram_right: Tensor, pattern: Pattern) -> Tensor:
    """What each mask of each group gains, as quadratic forms of the force p on the group.

    With E the inverse of a mask's part of H, embedded in zeros, ``p^T E p`` is the gain and ``E p``
    the values. A coordinate that the ones before it leave (nearly) no room gets none, so that gains
    stay exact and values finite.

    Args:
        gram_right: H, (j, b, b), positive semi-definite.

    Returns:
        (j, b/M, terms), in the dtype of `gram_right`: the entries of E that `terms_of` names,
        those off the diagonal doubled.
    """
    width = group_of(pattern)
    masks = masks_of(pattern)
    blocks, size, _ = gram_right.shape
    groups = size // width
    corner = gram_right.double().reshape(blocks, groups, width, groups, width)
    corner = corner.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    found = []
    for kept in sorted({len(mask) for mask in masks} - {0}):  # masks of a size are neighbours
        places = torch.tensor([mask for mask in masks if len(mask) == kept], device=corner.device)
        inverses = _inverses(corner[:, :, places.unsqueeze(2), places.unsqueeze(1)])
        one, two = torch.triu_indices(kept, kept, device=corner.device)
        entries = inverses[..., one, two] * torch.where(one == two, 1.0, 2.0)
        found.append(pad(entries, (0, -len(one) % CHUNK)).flatten(2))
    return torch.cat(found, -1).to(gram_right.dtype)


def _inverses(parts: Tensor) -> Tensor:
    """Inverses of symmetric (..., k, k) by pivots in order, without those that are zero."""
    least = LEAST_PIVOT * parts.diagonal(dim1=-2, dim2=-1)
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
