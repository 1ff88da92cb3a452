"""The packed form of a core: its kept values, and where they are."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Shaped, UInt8
from torch import Tensor

from armor.errors import ArmorError
from armor.sparse import positions
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

# The packed form of 2:4. A group of 4 holds 2 values and a nibble `first | second << 2` of their
# ascending positions; a byte holds the nibbles of two groups, the first in the low bits. Of other
# patterns `armor.sparse.positions` says where the values are.
_PADDING_NIBBLE = 0b0100  # positions 0 and 1: a group that pads an odd number of groups


def packed_shapes(
    out_features: int,
    in_features: int,
    pattern: Pattern = TWO_OF_FOUR,
    count: int | None = None,
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """The shapes of `values` and `indices` for a core (out, in).

    Args:
        count: kept entries of an unstructured core; by default as many as the pattern says.
    """
    width = -(-positions.row_bits(pattern, in_features) // 8)
    if pattern.is_unstructured:
        kept = pattern.count((out_features, in_features)) if count is None else count
        return (kept,), (out_features, width)
    groups = -(-in_features // pattern.group)
    if pattern == TWO_OF_FOUR:
        width = -(-groups // 2)
    return (out_features, pattern.kept * groups), (out_features, width)


def pack(
    core: Shaped[Tensor, "out in"], mask: Bool[Tensor, "out in"], pattern: Pattern = TWO_OF_FOUR
) -> tuple[Shaped[Tensor, ...], UInt8[Tensor, "out bytes"]]:
    """A core as its kept values and their positions.

    Args:
        core: any dtype. mask: N of every M kept; of a last partial group at most N are, and
            positions in its padding stand for the missing ones.

    Returns:
        values, core's dtype, in order of position: (out, N*ceil(in/M)), 0 in the padding; of an
        unstructured core flat, row by row;
        indices, uint8: of 2:4 (out, ceil(ceil(in/4)/2)), four 2-bit positions a byte, low bits
        first; else (out, ceil(bits/8)), see `armor.sparse.positions.encode`.

    Raises:
        ArmorError: some group does not keep exactly N.
    """
    if pattern.is_unstructured:
        return core[mask], positions.encode(mask, pattern)
    rows, cols = core.shape
    kept, size = pattern.kept, pattern.group
    pad = -cols % size
    groups = torch.nn.functional.pad(mask, (0, pad)).reshape(rows, -1, size)
    if pad:
        last = groups[:, -1]
        missing = kept - last.sum(-1, keepdim=True)
        last[:, size - pad :] = torch.arange(pad, dtype=torch.int64, device=mask.device) < missing
    if not bool((groups.sum(-1) == kept).all()):
        raise ArmorError(
            f"the mask does not keep exactly {kept} of every {size}: it cannot be packed as"
            f" {pattern}"
        )
    # A stable sort of "dropped" puts the kept positions first, ascending.
    places = (~groups).to(torch.uint8).argsort(dim=-1, stable=True)[..., :kept]
    padded = torch.nn.functional.pad(core.masked_fill(~mask, 0), (0, pad)).reshape(rows, -1, size)
    values = padded.gather(-1, places).reshape(rows, -1)
    if pattern != TWO_OF_FOUR:
        return values, positions.encode(groups.flatten(1), pattern)
    nibbles = (places[..., 0] | places[..., 1] << 2).to(torch.uint8)
    nibbles = torch.nn.functional.pad(nibbles, (0, nibbles.shape[1] % 2), value=_PADDING_NIBBLE)
    return values, nibbles[:, 0::2] | nibbles[:, 1::2] << 4


def unpack(
    values: Shaped[Tensor, ...],
    indices: UInt8[Tensor, "out bytes"],
    in_features: int,
    pattern: Pattern = TWO_OF_FOUR,
) -> Shaped[Tensor, "out {in_features}"]:
    """The core of `pack`, in the dtype of `values`; differentiable in `values`."""
    rows = len(indices)
    if pattern.is_unstructured:
        return values.new_zeros(rows, in_features).masked_scatter(
            positions.bitmap(indices, in_features), values
        )
    groups = -(-in_features // pattern.group)
    core = values.new_zeros(rows, groups, pattern.group)
    places = _positions(indices, in_features, pattern)
    core = core.scatter(-1, places, values.reshape(rows, groups, pattern.kept))
    return core.reshape(rows, -1)[:, :in_features]


def kept_of(
    matrix: Shaped[Tensor, "out in"],
    indices: UInt8[Tensor, "out bytes"],
    pattern: Pattern = TWO_OF_FOUR,
) -> Shaped[Tensor, ...]:
    """What a matrix has where `indices` keep an entry, in the order of packed values; 0 in the
    padding. So it turns the gradient of a core into that of its values."""
    rows, cols = matrix.shape
    if pattern.is_unstructured:
        return matrix[positions.bitmap(indices, cols)]
    padded = torch.nn.functional.pad(matrix, (0, -cols % pattern.group))
    places = _positions(indices, cols, pattern)
    return padded.reshape(rows, -1, pattern.group).gather(-1, places).reshape(rows, -1)


def unpack_mask(
    indices: UInt8[Tensor, "out bytes"], in_features: int, pattern: Pattern = TWO_OF_FOUR
) -> Bool[Tensor, "out {in_features}"]:
    """The mask of `pack`."""
    if pattern.is_unstructured:
        return positions.bitmap(indices, in_features)
    rows, groups = len(indices), -(-in_features // pattern.group)
    mask = torch.zeros(rows, groups, pattern.group, dtype=torch.bool, device=indices.device)
    mask.scatter_(-1, _positions(indices, in_features, pattern), True)
    return mask.reshape(rows, -1)[:, :in_features]


def valid_indices(
    indices: UInt8[Tensor, "*shape"],
    pattern: Pattern = TWO_OF_FOUR,
    in_features: int | None = None,
) -> bool:
    """Whether `indices` (some rows of those of `pack`) name N ascending positions of M each.

    Of 2:4 any bytes can be asked about; else `in_features` is needed. How many entries a bitmap
    keeps is for the caller to count.
    """
    if pattern != TWO_OF_FOUR:
        assert in_features is not None
        return positions.are_valid(indices, pattern, in_features)
    return all(
        bool(((nibbles & 3) < (nibbles >> 2)).all()) for nibbles in (indices & 15, indices >> 4)
    )


def _positions(indices: Tensor, in_features: int, pattern: Pattern) -> Tensor:
    """Positions of the kept entries inside their group, int64 (out, groups, kept)."""
    if pattern != TWO_OF_FOUR:
        return positions.positions(indices, pattern, in_features)
    groups = -(-in_features // 4)
    nibbles = torch.stack((indices & 15, indices >> 4), dim=-1).flatten(1)[:, :groups]
    return torch.stack((nibbles & 3, nibbles >> 2), dim=-1).long()
