"""The small systems of the groups, solved beforehand: pairs of 2:4, and any other masks.

With s the kept values of a group, p its partial residual (`armor.factorize.sweep`) and H_mm the
part of H that a mask keeps, the best values are ``s = H_mm^-1 p_m / G_rr`` and what they take off
the loss is ``p_m^T H_mm^-1 p_m / G_rr``. The inverses are the same for every row of the core.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import pad

from armor.factorize.masks import PAIRS, group_masks, group_size
from armor.sparse.pattern import Pattern

#: Terms of a mask are summed so many at a time.
TERMS_AT_A_TIME = 5
#: A pivot below this share of its diagonal entry counts as zero. Far above rounding: values that
#: all but cancel soak up the noise of the first iterations, and grow without end.
MIN_PIVOT = 1e-3


def pair_inverses(gram_right: Float[Tensor, "j b b"]) -> Float[Tensor, "j groups 6 3"]:
    """Inverses of the six 2x2 systems of every group of 4.

    The oracle of this is `reference.pair_inverses`, which shares nothing with it but `MIN_PIVOT`.

    Args:
        gram_right: H, (j, b, b), positive semi-definite.

    Returns:
        (j, b/4, 6, 3): entries 11, 12, 22 of each inverse. A (near-)singular pair gets the inverse
        on its larger coordinate alone, so that its gain is exact and its values stay finite.
    """
    groups = gram_right.shape[-1] // 4
    # (j, 4, 4, b/4): H of each group; slices, as index tensors would wait for the device.
    group_grams = gram_right.reshape(-1, groups, 4, groups, 4).diagonal(dim1=1, dim2=3)
    h11 = torch.stack([group_grams[:, one, one] for one, _ in PAIRS], -1)
    h12 = torch.stack([group_grams[:, one, two] for one, two in PAIRS], -1)
    h22 = torch.stack([group_grams[:, two, two] for _, two in PAIRS], -1)
    det = h11 * h22 - h12 * h12
    regular = det > MIN_PIVOT * h11 * h22
    det = torch.where(regular, det, 1.0)
    use_first = h11 >= h22
    alone1 = torch.where(use_first & (h11 > 0), 1 / h11, 0.0)
    alone2 = torch.where(~use_first, 1 / h22, 0.0)
    return torch.stack(
        [
            torch.where(regular, h22 / det, alone1),
            torch.where(regular, -h12 / det, 0.0),
            torch.where(regular, h11 / det, alone2),
        ],
        dim=-1,
    )


@dataclass(frozen=True)
class GainTerms:
    """The products of two partial residuals that the masks' gains are sums of, mask after mask.

    Attributes:
        one, two: int64 (terms,), the positions that meet, one <= two. Each mask's are filled up to
            a multiple of `TERMS_AT_A_TIME`, with 0 and 0 to the weight 0.
        starts: int64 (masks + 1,): mask m has ``starts[m]:starts[m+1]``.
        sizes: int64 (masks,), positions kept.
    """

    one: Int64[Tensor, " terms"]
    two: Int64[Tensor, " terms"]
    starts: Int64[Tensor, " bounds"]
    sizes: Int64[Tensor, " masks"]


@cache
def gain_terms(pattern: Pattern) -> GainTerms:
    """The terms of `group_masks` of the pattern."""
    ones: list[int] = []
    twos: list[int] = []
    starts = [0]
    for mask in group_masks(pattern):
        pairs = list(combinations_with_replacement(mask, 2))
        pairs += [(0, 0)] * (-len(pairs) % TERMS_AT_A_TIME)
        ones += [one for one, _ in pairs]
        twos += [two for _, two in pairs]
        starts.append(len(ones))
    sizes = [len(mask) for mask in group_masks(pattern)]
    return GainTerms(*map(torch.tensor, (ones, twos, starts, sizes)))


def gain_tables(
    gram_right: Float[Tensor, "j b b"], pattern: Pattern
) -> Float[Tensor, "j groups terms"]:
    """What each mask of each group gains, as quadratic forms of the group's partial residual p.

    With Q the inverse of a mask's part of H, embedded in zeros, ``p^T Q p`` is the gain and ``Q p``
    the values, both times G_rr. A coordinate that the ones before it leave (nearly) no room gets
    none, so that gains stay exact and values finite.

    Args:
        gram_right: H, (j, b, b), positive semi-definite.

    Returns:
        (j, b/M, terms), in the dtype of `gram_right`: the entries of Q that `gain_terms` names,
        those off the diagonal doubled.
    """
    width = group_size(pattern)
    masks = group_masks(pattern)
    blocks, size, _ = gram_right.shape
    groups = size // width
    group_grams = gram_right.double().reshape(blocks, groups, width, groups, width)
    group_grams = group_grams.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    tables = []
    for kept in sorted({len(mask) for mask in masks} - {0}):  # masks of a size are neighbours
        same_size = [mask for mask in masks if len(mask) == kept]
        places = torch.tensor(same_size, dtype=torch.int64, device=group_grams.device)
        inverses = _pivoted_inverses(group_grams[:, :, places.unsqueeze(2), places.unsqueeze(1)])
        device = group_grams.device
        one, two = torch.triu_indices(kept, kept, dtype=torch.int64, device=device)
        entries = inverses[..., one, two] * (1 + (one != two).to(inverses.dtype))
        tables.append(pad(entries, (0, -len(one) % TERMS_AT_A_TIME)).flatten(2))
    return torch.cat(tables, -1).to(gram_right.dtype)


def _pivoted_inverses(systems: Float[Tensor, "*many k k"]) -> Float[Tensor, "*many k k"]:
    """Inverses of symmetric (..., k, k) by pivots in order, without those that are zero."""
    least = MIN_PIVOT * systems.diagonal(dim1=-2, dim2=-1)
    swept = systems.clone()
    used = torch.zeros_like(least, dtype=torch.bool)
    for place in range(systems.shape[-1]):
        pivot = swept[..., place, place]
        is_regular = pivot > least[..., place]
        used[..., place] = is_regular
        divisor = torch.where(is_regular, pivot, 1.0)
        column = torch.where(is_regular.unsqueeze(-1), swept[..., place], 0.0)
        scaled = column / divisor.unsqueeze(-1)
        swept = swept - scaled.unsqueeze(-1) * column.unsqueeze(-2)
        new_column = torch.where(is_regular.unsqueeze(-1), scaled, swept[..., place])
        new_pivot = torch.where(is_regular, -1 / divisor, swept[..., place, place])
        swept[..., place, :] = new_column
        swept[..., :, place] = new_column
        swept[..., place, place] = new_pivot
    both = used.unsqueeze(-1) & used.unsqueeze(-2)
    return torch.where(both, -swept, 0.0)
