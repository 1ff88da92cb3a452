"""The steps of the solver as a GPU wants them: few launches, no copies, products of tensor cores.

They minimise the same as those of `Workspace`; the tests compare them. Two things differ. The sweep
moves rows of a block by sets, and columns of blocks by twos. And the products with a full moment
are made in another way: an iteration takes two of them, not three. Where blocks are solved in turn,
each panel of columns gets its part of ``S B X`` of the point as it is by then. So no change has to
be made up for before; what the panels behind it change is added afterwards, and the step over A has
S B X for half a product.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from armor.factorize.masks import group_size
from armor.factorize.problem import Problem
from armor.factorize.products import Operand, add_product, product
from armor.factorize.state import State
from armor.factorize.sweep import SweepColumns, sweep_gain
from armor.factorize.workspace import Workspace
from armor.sparse.pattern import TWO_OF_FOUR, Pattern


class GpuWorkspace(Workspace):
    """`Workspace` on a GPU.

    Under the full objective two columns of blocks are swept at once where one would leave half of a
    GPU idle (`reference.sweep_two_columns`). One rule for every GPU: another gives another result.

    For a full moment it holds another matrix of the problem's size, S B, and where tensor cores
    multiply, two parts each of the moment, of S B and of `scratch`.
    """

    chunks, panel_columns = 1, 512
    #: Of a launch of the sweep: as many as a GPU has processors, about.
    most_blocks = 128

    def __init__(self, problem: Problem, block: int, pattern: Pattern = TWO_OF_FOUR) -> None:
        super().__init__(problem, block, pattern)
        if problem.is_full:
            self._moment = Operand.of(self.problem.moment)
            self._right_product = Operand.growing(torch.empty_like(self.scratch))  # S B
            self._changes = Operand.growing(self.scratch)  # S dB, later G dS

    def step_wrappers(self, state: State) -> None:
        """`step_right`, then `step_left`, which is left less to do."""
        self.step_right(state)
        if not self.problem.is_full:
            self.step_left(state)
            return
        for panel in self._panels():
            first, width = self._width(panel)
            later = self._changes[:, first:], self._moment[first:, width]
            add_product(self.error_moment[:, width], *later)
        self._step_left(state, self._right_product.matrix, self.error_moment)

    def _right_in_turn(
        self,
        state: State,
        left_core: Float[Tensor, "j rows b"],
        inverse_curvature: Float[Tensor, "j b b"],
    ) -> None:
        """Leaves S B, and S B X but for the changes dB of each panel and those behind it.

        S dB takes the place of A S in `scratch`.
        """
        self._refresh_right_product(state)
        moment, changes = self.problem.moment, torch.empty_like(state.right)
        for panel in self._panels():
            first, width = self._width(panel)
            out = self.error_moment[:, width]
            product(self._right_product, self._moment[:, width], out=out)
            residual = self.target_moment[:, width] - self._times_left(state.left, out)
            product_change = torch.empty_like(residual)  # A S dB
            for j in panel:
                span = self._span(j)
                own = slice(span.start - first, span.stop - first)
                if j > panel.start:
                    before = product_change[:, : own.start]
                    residual[:, own].addmm_(before, moment[first : span.start, span], alpha=-1)
                half = inverse_curvature[j] @ (left_core[j].T @ residual[:, own])
                torch.mm(half, self.inverse_moment_blocks[j], out=changes[j])
                if j < panel.stop - 1:
                    torch.mm(left_core[j], changes[j], out=product_change[:, own])
            some = slice(panel.start, panel.stop)
            state.right[some] += changes[some]
            core = state.core[:, width]
            self._times_right(core, changes[some], self.scratch[:, width])
            self._changes.refresh(width)
            self._times_right(core, state.right[some], self._right_product.matrix[:, width])
            if panel.stop < self.col_blocks:
                self._right_product.refresh(width)

    def _core_right(
        self, state: State
    ) -> tuple[Float[Tensor, "rows cols"], Float[Tensor, "rows cols"]]:
        if not self.problem.is_full:
            return super()._core_right(state)
        self._refresh_right_product(state)
        core_right_moment = product(self._right_product, self._moment, out=self.error_moment)
        return self._right_product.matrix, core_right_moment

    def _refresh_right_product(self, state: State) -> None:
        self._times_right(state.core, state.right, self._right_product.matrix)
        self._right_product.refresh(slice(0, self.scratch.shape[1]))

    def _sweep_columns(
        self,
        state: State,
        residual: Float[Tensor, "rows cols"],
        gram_left: Float[Tensor, "i b b"],
        gram_right: Float[Tensor, "j b b"],
        sweep_blocks: SweepColumns,
        measure_gain: bool,
        in_turn: bool,
    ) -> Float[Tensor, ""]:
        first_core = state.core.clone()
        groups = self.block // group_size(self.pattern)
        for panel in self._panels():
            first, width = self._width(panel)
            above = self._gram_right_above(state.right, panel)
            if first:
                add_product(residual[:, width], self._changes[:, :first], above[:first], -1.0)
            for some in self._sets(panel, in_turn):
                span = slice(some.start * self.block, some.stop * self.block)
                running_residual, core = residual[:, span], state.core[:, span]
                coupled = above[first : span.stop, span.start - first : span.stop - first]
                if some.start > panel.start:
                    earlier, done = slice(first, span.start), span.start - first
                    running_residual.addmm_(self.scratch[:, earlier], coupled[:done], alpha=-1)
                choice = state.choice[:, some.start * groups : some.stop * groups]
                old_choice = choice.clone() if len(some) > 1 else None
                blocks = slice(some.start, some.stop)
                sweep_blocks(blocks, running_residual, core, choice, gram_left)
                change = core - first_core[:, span]
                gram_change = self._times_left(gram_left, change, self.scratch[:, span])
                if old_choice is not None:
                    own = coupled[span.start - first :, self.block :]
                    stays = self._second_stays(change, gram_change, running_residual, own)
                    self._take_back(stays, core, first_core[:, span])
                    self._take_back(stays, choice, old_choice)
                    self._in_row_blocks(gram_change[:, self.block :]).mul_(stays)
            if panel.stop < self.col_blocks:
                self._changes.refresh(width)
        if not measure_gain:
            return torch.zeros_like(state.loss)
        change = torch.sub(state.core, first_core, out=first_core)
        return sweep_gain(change, residual, self._times_right(self.scratch, gram_right))

    def _sets(self, panel: range, in_turn: bool) -> Iterator[range]:
        """The columns of blocks to be swept at once."""
        size = 1 if in_turn or 2 * self.row_blocks > self.most_blocks else 2
        for start in range(panel.start, panel.stop, size):
            yield range(start, min(start + size, panel.stop))

    def _second_stays(
        self,
        change: Float[Tensor, "rows two"],
        gram_change: Float[Tensor, "rows two"],
        residual: Float[Tensor, "rows two"],
        coupled: Float[Tensor, "two b"],
    ) -> Bool[Tensor, "i 1 1"]:
        """Whether what the second of two columns changed in a row of blocks lowers the loss.

        Both were swept as if the other stood still. The residual of the second becomes what it is
        after the first.

        Args:
            change, gram_change: dS and G dS. coupled: H of both with the second.
        """
        first, second = slice(0, self.block), slice(self.block, None)
        own = residual[:, second]
        own.addmm_(gram_change[:, first], coupled[first], alpha=-1)
        gain = own.mul(2.0).addmm_(gram_change[:, second], coupled[second], alpha=-1)
        gain = self._in_row_blocks(gain.mul_(change[:, second]))
        return gain.sum((1, 2), keepdim=True) >= 0

    def _take_back(
        self,
        stays: Bool[Tensor, "i 1 1"],
        new: Shaped[Tensor, "rows width"],
        old: Shaped[Tensor, "rows width"],
    ) -> None:
        """The right half of `new` becomes that of `old` where it does not stay."""
        second = slice(new.shape[1] // 2, None)
        right = self._in_row_blocks(new[:, second])
        right.copy_(torch.where(stays, right, self._in_row_blocks(old[:, second])))

    def _in_row_blocks(self, matrix: Shaped[Tensor, "rows width"]) -> Shaped[Tensor, "i b width"]:
        """Of any strides, seen as (i, b, width)."""
        return matrix.unflatten(0, (-1, self.block))

    def _gram_right_above(
        self, right: Float[Tensor, "j b b"], panel: range
    ) -> Float[Tensor, "above width"]:
        _, width = self._width(panel)
        moment = self.problem.moment[: width.stop, width]
        moment_right = self._times_right(moment, right[panel.start : panel.stop].mT)
        return self._times_left(right[: panel.stop], moment_right)

    def _width(self, panel: range) -> tuple[int, slice]:
        """The first column of a panel, and its columns."""
        first = panel.start * self.block
        return first, slice(first, panel.stop * self.block)

    def _times_right(
        self,
        matrix: Float[Tensor, "rows cols"],
        blocks: Float[Tensor, "j b b"],
        out: Float[Tensor, "rows cols"] | None = None,
    ) -> Float[Tensor, "rows cols"]:
        out = torch.empty_like(matrix) if out is None else out
        torch.bmm(self._by_col_blocks(matrix), blocks, out=self._by_col_blocks(out))
        return out


def workspace(problem: Problem, block: int, pattern: Pattern = TWO_OF_FOUR) -> Workspace:
    """The workspace that fits the device of the problem."""
    kind = Workspace if problem.target.device.type == "cpu" else GpuWorkspace
    return kind(problem, block, pattern)
