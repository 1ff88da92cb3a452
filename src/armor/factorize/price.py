"""Keeping an unstructured core to its number of entries."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from armor.factorize.masks import choice_from_mask, mask_from_choice
from armor.factorize.problem import Problem
from armor.factorize.state import State
from armor.factorize.workspace import Workspace
from armor.sparse.pattern import Pattern

#: How far the logarithm of the price moves for entries too many, as a share of those kept or
#: dropped (the fewer); and the most that it moves at once.
RESPONSE, MAX_LOG_STEP = 0.5, 1.0


class Price:
    """What an entry has to take off the loss to be kept, so that about `count` are.

    Attributes:
        value: the price, (), in units of the loss.
    """

    def __init__(self, problem: Problem, count: int) -> None:
        target = problem.target
        worth = (target.square() * problem.mean_square.clamp_min(0)).flatten()
        tiny = torch.finfo(target.dtype).tiny
        least = worth.kthvalue(max(1, worth.numel() - count)).values
        # A price of 0 would have entries without any worth kept.
        self.value = least.clamp_min(1e-6 * worth.mean() + tiny)
        self._count = count
        self._fewer = max(1, min(count, worth.numel() - count))

    def update(self, state: State, pattern: Pattern) -> None:
        """Raise the price where the core keeps too many, lower it where too few."""
        kept = mask_from_choice(state.choice, pattern).sum()
        log_step = RESPONSE * (kept - self._count) / self._fewer
        self.value = self.value * log_step.clamp(-MAX_LOG_STEP, MAX_LOG_STEP).exp()


def fill_mask(mask: Bool[Tensor, "out in"], count: int) -> Bool[Tensor, "out in"]:
    """`mask` (out, in) with exactly `count` kept.

    A group may have preferred padding to entries without any effect; the first ones that are free
    take its place.
    """
    flat = mask.flatten().clone()
    free = (~flat).nonzero().flatten()
    flat[free[: count - int(flat.sum())]] = True
    return flat.view_as(mask)


def project_to_count(work: Workspace, state: State, count: int) -> None:
    """Let the core keep exactly `count` entries: the least drop out, or the best come in.

    An entry is worth what it alone takes off the loss. Those that come in hold 0 as yet.
    """
    work.step_right(state)
    work.step_left(state)
    mask = mask_from_choice(state.choice, work.pattern)
    missing = count - int(mask[: work.rows, : work.cols].sum())
    if missing == 0:
        return
    gram_left, gram_right, residual = work.core_quadratic(state)
    row_scales = gram_left.diagonal(dim1=1, dim2=2).flatten().unsqueeze(1)
    col_scales = gram_right.diagonal(dim1=1, dim2=2).flatten()
    curvature = row_scales * col_scales
    if missing < 0:
        worth = -(state.core.square() * curvature).masked_fill(~mask, torch.inf)
    else:
        worth = torch.where(curvature > 0, residual.square() / curvature, 0.0)
        worth = worth.masked_fill(mask, -torch.inf)
    worth = worth[: work.rows, : work.cols].flatten()
    order = worth.argsort(descending=True, stable=True)[: abs(missing)]
    row, col = order // work.cols, order % work.cols
    mask[row, col] = missing > 0
    state.core.mul_(mask)
    state.choice = choice_from_mask(mask, work.pattern)
