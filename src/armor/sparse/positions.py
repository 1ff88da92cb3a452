"""What a core keeps, as bits: the rank of each group's mask (N:M), or a bitmap (unstructured)."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from armor.errors import ArmorError
from armor.sparse.pattern import Pattern


def code_bits(pattern: Pattern) -> int:
    """How many bits a group's code has: enough for each of its masks. One an entry in a bitmap."""
    return 1 if pattern.is_unstructured else (len(pattern.masks) - 1).bit_length()


def row_bits(pattern: Pattern, in_features: int) -> int:
    """How many bits of a row's bytes say something; the others are 0."""
    if pattern.is_unstructured:
        return in_features
    return -(-in_features // pattern.group) * code_bits(pattern)


def encode(mask: Bool[Tensor, "out in"], pattern: Pattern) -> UInt8[Tensor, "out bytes"]:
    """Codes of a mask.

    Args:
        mask: a multiple of the group wide.

    Returns:
        ceil(row_bits/8) bytes a row, low bits first.

    Raises:
        ArmorError: some group does not keep as many as the pattern says.
    """
    if pattern.is_unstructured:
        return _to_bytes(mask)
    groups = mask.reshape(mask.shape[0], -1, pattern.group)
    _, ranks = _tables(pattern, mask.device)
    weights = 2 ** torch.arange(pattern.group, dtype=torch.int64, device=mask.device)
    codes = ranks[(groups * weights).sum(-1)]
    if bool((codes < 0).any()):
        raise ArmorError(
            f"the mask does not keep exactly {pattern.kept} of every {pattern.group}: it cannot be"
            f" packed as {pattern}"
        )
    each = (
        codes.unsqueeze(-1)
        >> torch.arange(code_bits(pattern), dtype=torch.int64, device=mask.device)
        & 1
    )
    return _to_bytes(each.bool().flatten(1))


def positions(
    indices: UInt8[Tensor, "out bytes"], pattern: Pattern, in_features: int
) -> Int64[Tensor, "out groups {pattern.kept}"]:
    """Places of the kept entries inside their group, ascending."""
    table, _ = _tables(pattern, indices.device)
    return table[_codes(indices, pattern, in_features)]


def bitmap(
    indices: UInt8[Tensor, "out bytes"], in_features: int
) -> Bool[Tensor, "out {in_features}"]:
    """The mask of an unstructured core."""
    return _to_bits(indices, in_features).bool()


def are_valid(indices: UInt8[Tensor, "rows bytes"], pattern: Pattern, in_features: int) -> bool:
    """Whether every code is that of a mask, and every bit beyond them 0; any rows of `indices`."""
    used = row_bits(pattern, in_features) - 8 * (indices.shape[1] - 1)
    if used < 8 and bool((indices[:, -1] >> used).any()):
        return False
    if pattern.is_unstructured:
        return True
    return bool((_codes(indices, pattern, in_features) < len(pattern.masks)).all())


def count_ones(indices: UInt8[Tensor, ...]) -> int:
    """How many bits are set."""
    counts = torch.tensor(
        [i.bit_count() for i in range(256)], dtype=torch.int64, device=indices.device
    )
    # (A histogram instead of a look-up: it takes no memory beside the bytes.)
    return int((torch.bincount(indices.flatten(), minlength=256) * counts).sum())


def _codes(indices: Tensor, pattern: Pattern, in_features: int) -> Tensor:
    """int64 (out, groups)."""
    width = code_bits(pattern)
    groups = -(-in_features // pattern.group)
    each = _to_bits(indices, groups * width).view(len(indices), groups, width)
    weights = 2 ** torch.arange(width, dtype=torch.uint8, device=indices.device)
    return (each * weights).sum(-1)


def _to_bits(indices: Tensor, count: int) -> Tensor:
    """uint8 (out, count) of 0 and 1: the first `count` bits of each row, low bits first."""
    if indices.device.type == "cpu":
        found = np.unpackbits(indices.numpy(), axis=1, count=count, bitorder="little")
        return torch.from_numpy(found)
    shifts = torch.arange(8, dtype=torch.uint8, device=indices.device)
    return (indices.unsqueeze(-1) >> shifts & 1).flatten(1)[:, :count]


def _to_bytes(each: Tensor) -> Tensor:
    """bool (out, count) as uint8 (out, ceil(count/8)), low bits first, padded with 0."""
    each = torch.nn.functional.pad(each, (0, -each.shape[1] % 8)).view(len(each), -1, 8)
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=each.device)
    return (each * weights).sum(-1, dtype=torch.uint8)


@cache
def _tables(pattern: Pattern, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions by rank, int64 (masks, kept); rank by the mask's bits, int64, -1 for no mask."""
    table = torch.tensor(pattern.masks, dtype=torch.int64, device="cpu")
    ranks = torch.full((2**pattern.group,), -1, dtype=torch.int64, device="cpu")
    ranks[(2**table).sum(-1)] = torch.arange(len(table), dtype=torch.int64, device="cpu")
    return table.to(device), ranks.to(device)
