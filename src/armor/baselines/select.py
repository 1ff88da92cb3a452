"""Which entries a score keeps under a pattern."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from armor.sparse.masks import nm_mask
from armor.sparse.pattern import Pattern


def select(scores: Float[Tensor, "rows cols"], pattern: Pattern) -> Bool[Tensor, "rows cols"]:
    """The largest of `scores` (rows, cols), ties to the lower index: bool, the same shape.

    Of every group; or of the whole matrix, for an unstructured pattern.
    """
    if pattern.is_unstructured:
        return largest(scores, pattern.count((scores.shape[0], scores.shape[1])))
    return nm_mask(scores, pattern.kept, pattern.group)


def select_by_row(
    scores: Float[Tensor, "rows cols"], pattern: Pattern
) -> Bool[Tensor, "rows cols"]:
    """`select`, but an unstructured pattern keeps as many in every row, one more or less.

    Together they are those of the whole matrix.
    """
    if not pattern.is_unstructured:
        return select(scores, pattern)
    rows, cols = scores.shape
    places = torch.arange(rows + 1, dtype=torch.int64, device=scores.device)
    quota = (places * pattern.count((rows, cols)) // rows).diff()
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(cols, dtype=torch.int64, device=scores.device)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(1, order, ranks < quota.unsqueeze(1))


def largest(scores: Float[Tensor, "rows cols"], count: int) -> Bool[Tensor, "rows cols"]:
    """The `count` largest of all `scores`, ties to the lower index: bool, the same shape."""
    flat = scores.flatten()
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.argsort(descending=True, stable=True)[:count]] = True
    return mask.view_as(scores)
