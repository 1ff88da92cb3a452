"""Rounding a factorised matrix to few bits inside the solver's steps.

The exact solver's result, rounded to the nearest, is the point to start from. Then come iterations
like the solver's: B, then A, each the exact minimiser with all else as it is stored, and then
rounded itself as it is stored; then a sweep in which every group of four takes the mask and the
levels that are best. What one factor loses by its rounding the others make up for. The best point
is kept, so the result is never worse than rounding to the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from armor.factorize.gpu_workspace import workspace
from armor.factorize.grid import Grid
from armor.factorize.masks import choice_from_mask, mask_from_choice
from armor.factorize.problem import Problem
from armor.factorize.state import State
from armor.sparse.factors import Factors, with_wrappers
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import CORES, WRAPPERS, Levels
from armor.sparse.masks import nm_mask
from armor.sparse.rounded import Rounded, decode_blocks, encode_blocks

ITERATIONS = 12


@dataclass(frozen=True)
class Storage:
    """How the factors of a layer are stored.

    Attributes:
        core: what the values of S are rounded to, a key of `CORES`.
        wrappers: what those of A and B are, a key of `WRAPPERS`; None for `dtype`.
        dtype: of scales, and of wrappers that are not rounded.
    """

    core: str
    wrappers: str | None
    dtype: torch.dtype

    @property
    def levels(self) -> Levels:
        """Of the core."""
        return CORES[self.core]

    def blocks(
        self, blocks: Float[Tensor, "count b b"]
    ) -> tuple[Float[Tensor, "count b b"], Float[Tensor, "count b"] | None]:
        """Wrapper blocks as they are stored, in their own dtype, and their scales."""
        if self.wrappers is None:
            return blocks.to(self.dtype).to(blocks.dtype), None
        levels = WRAPPERS[self.wrappers]
        largest = blocks.abs().amax(dim=2) / levels.largest
        # The second has identities, and all that is a multiple of it, exact.
        tried = (largest, torch.exp2(torch.log2(largest).ceil()).nan_to_num(0.0))
        scales = least = torch.zeros_like(largest)
        for number, scale in enumerate(tried):
            scale = scale.to(self.dtype).to(blocks.dtype)
            error = (decode_blocks(encode_blocks(blocks, scale), scale) - blocks).square().sum(2)
            is_better = error < least if number else torch.ones_like(error, dtype=torch.bool)
            scales = torch.where(is_better, scale, scales)
            least = torch.where(is_better, error, least)
        return decode_blocks(encode_blocks(blocks, scales), scales), scales.to(self.dtype)


def round_factors(
    problem: Problem,
    factors: Factors,
    storage: Storage,
    row_scale: Float[Tensor, "out 1"] | None = None,
    iterations: int = ITERATIONS,
) -> tuple[Factors, Factors, list[float]]:
    """Round 2:4 factors with wrappers, so that the loss rises as little as it can.

    Args:
        problem: of which the loss is.
        factors: in the dtype of `problem`.
        row_scale: what A is multiplied by, row by row, before it is stored: of a problem whose
            target has been divided by it. None for 1.
        iterations: how many.

    Returns:
        The factors for `problem` with A multiplied by `row_scale`, in float32, with their scales;
        the same merely rounded to the nearest; the losses of the best point, at first of that one,
        then after each iteration, relative to that of a zero weight: they never rise.
    """
    assert factors.left is not None
    assert factors.right is not None
    stored = _Stored(storage, row_scale, factors.left.shape[:2])
    work = workspace(problem, factors.left.shape[-1], factors.pattern)
    state = work.start(equalised(factors))
    stored.divide_left(state)
    stored.round_right(state)
    stored.round_left(state)
    gram_right = torch.bmm(torch.bmm(state.right, work.moment_blocks), state.right.mT)
    weights = gram_right.diagonal(dim1=1, dim2=2).flatten()
    grid = Grid.fitted(storage.levels, state.core, state.choice, weights, storage.dtype)
    state.core = grid.nearest(state.core, state.choice)
    state.core[:, work.cols :] = 0  # entries of padding are not stored
    work.measure(state)
    nearest = stored.factors(state, grid, factors)
    found, best, zero = nearest, state.loss, problem.zero_loss()
    losses = [best / zero]
    for turn in range(iterations):
        if turn:  # at first the wrappers are the best ones for the values before rounding
            work.step_right(state)
            stored.round_right(state)
            work.step_left(state)
            stored.round_left(state)
            work.measure(state)
        work.step_core(state, grid)
        state.core[:, work.cols :] = 0
        if state.loss < best:
            found, best = stored.factors(state, grid, factors), state.loss
        losses.append(best / zero)
    return found, nearest, torch.stack(losses).tolist()


def round_core(problem: Problem, factors: Factors, storage: Storage) -> Factors:
    """A 2:4 matrix without wrappers, rounded to the nearest; in float32."""
    core = factors.core.to(problem.target.dtype)
    padding = (0, -core.shape[1] % 4)
    padded = torch.nn.functional.pad(core, padding)
    mask = nm_mask(torch.nn.functional.pad(factors.mask, padding).to(core.dtype))
    choice = choice_from_mask(mask, factors.pattern)
    weights = torch.nn.functional.pad(problem.mean_square.clamp_min(0), padding)
    grid = Grid.fitted(storage.levels, padded, choice, weights, storage.dtype)
    return replace(
        factors,
        core=grid.nearest(padded.float(), choice)[:, : core.shape[1]].contiguous(),
        rounded=Rounded(storage.levels, grid.scales.to(storage.dtype)),
    )


def between_identities(factors: Factors, block: int, storage: Storage | None) -> Factors:
    """Factors as they are stored, between wrappers that do nothing."""
    found = with_wrappers(factors, block)
    if storage is None or found.rounded is None or found.left is None or found.right is None:
        return found
    left, right = storage.blocks(found.left)[1], storage.blocks(found.right)[1]
    return replace(found, rounded=replace(found.rounded, left_scales=left, right_scales=right))


def equalised(factors: Factors) -> Factors:
    """The same product with columns of S of equal size (root mean square), the rest moved into B.

    So no column, the outliers' neither, sets the scale of others.
    """
    assert factors.right is not None
    kept = factors.mask.sum(dim=0).clamp_min(1)
    size = (factors.core.square().sum(dim=0) / kept).sqrt()
    size = torch.where(size > 0, size, 1.0)
    size = size / size.log().mean().exp()
    blocks, width, _ = factors.right.shape
    padded = torch.nn.functional.pad(size, (0, blocks * width - size.numel()), value=1.0)
    right = factors.right * padded.view(blocks, width, 1)
    return replace(factors, core=factors.core / size, right=right)


class _Stored:
    """Rounds the wrappers of states as they are stored.

    Args:
        row_scale: see `round_factors`. shape: (i, b) of A.

    Attributes:
        scales: of A and B when they were last rounded.
    """

    def __init__(self, storage: Storage, row_scale: Tensor | None, shape: tuple[int, ...]) -> None:
        self.scales: tuple[Tensor | None, Tensor | None] = None, None
        self._storage = storage
        self._rows: Tensor | None = None
        if row_scale is not None:
            missing = shape[0] * shape[1] - row_scale.numel()
            flat = torch.nn.functional.pad(row_scale.flatten(), (0, missing), value=1.0)
            self._rows = flat.view(*shape, 1)

    def divide_left(self, state: State) -> None:
        """A of the weight as that of the problem, in place."""
        if self._rows is not None:
            state.left = state.left / self._rows

    def round_left(self, state: State) -> None:
        """A of the problem, in place."""
        left = state.left if self._rows is None else state.left * self._rows
        left, scales = self._storage.blocks(left)
        state.left = left if self._rows is None else left / self._rows
        self.scales = scales, self.scales[1]

    def round_right(self, state: State) -> None:
        """B, in place."""
        state.right, scales = self._storage.blocks(state.right)
        self.scales = self.scales[0], scales

    def factors(self, state: State, grid: Grid, given: Factors) -> Factors:
        """What is stored of a state, in float32; of the shape of `given`."""
        rows, cols = given.core.shape
        count = grid.levels.scale_count(2 * -(-cols // 4))  # padding has its own
        scales = grid.scales[:rows, :count].to(self._storage.dtype)
        left = state.left if self._rows is None else state.left * self._rows
        mask = mask_from_choice(state.choice, given.pattern)
        found = replace(
            given,
            core=_copied(state.core[:rows, :cols]),
            mask=mask[:rows, :cols].contiguous(),
            left=_copied(left),
            right=_copied(state.right),
            rounded=Rounded(grid.levels, scales, *self.scales),
        )
        if self._rows is None:
            return found
        # Divided and multiplied again: exact only as stored.
        return PackedLayer.from_factors(found).to_factors()


def _copied(tensor: Tensor) -> Tensor:
    """In float32, apart from the state, which moves on in place."""
    return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
