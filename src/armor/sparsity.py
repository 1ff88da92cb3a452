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
