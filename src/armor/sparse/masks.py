"""N:M masks from scores."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def nm_mask(
    scores: Float[Tensor, "rows cols"], n: int = 2, m: int = 4
) -> Bool[Tensor, "rows cols"]:
    """The `n` largest scores of every `m` consecutive entries of a row, ties to the lower index.

    Args:
        scores: a last partial group is treated as padded with -inf.

    Returns:
        Exactly `n` True in every full group.
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
