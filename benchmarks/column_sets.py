"""An order of the full-objective sweep that armor does not have: columns of blocks by sets.

Used by solver_study.py, to say what it would cost. The columns of a set are swept at once, each as
if the others stood still; then, in order and for each row of blocks, what a column changed there is
kept if it lowers the loss next to what is kept of those before it: two blocks of a row change it by
``2 <dS_1 H_12, G dS_2>`` more than each alone. So the loss never rises, as with sets of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from armor.factorize.gpu_workspace import GpuWorkspace
from armor.factorize.masks import group_size
from armor.factorize.products import add_product
from armor.factorize.state import State
from armor.factorize.sweep import SweepColumns, sweep_gain


class ColumnSets(GpuWorkspace):
    """`GpuWorkspace`, its full-objective sweep `together` columns of blocks at a time.

    Attributes:
        kept, swept: changed blocks that were kept, and all that were changed, but for the first
            column of each set.
    """

    together = 2
    kept = swept = 0

    def _sweep_columns(
        self,
        state: State,
        residual: Tensor,
        gram_left: Tensor,
        gram_right: Tensor,
        sweep_blocks: SweepColumns,
        measure_gain: bool,
    ) -> Tensor:
        first_core = state.core.clone()
        groups = self.block // group_size(self.pattern)
        for panel in self._panels():
            first, width = self._width(panel)
            above = self._gram_right_above(state.right, panel)
            if first:
                add_product(residual[:, width], self._changes[:, :first], above[:first], -1.0)
            for start in range(panel.start, panel.stop, self.together):
                some = range(start, min(start + self.together, panel.stop))
                columns = slice(some.start * self.block, some.stop * self.block)
                local = slice(columns.start - first, columns.stop - first)
                running = residual[:, columns]
                if start > panel.start:
                    earlier = slice(first, columns.start)
                    running.addmm_(self.scratch[:, earlier], above[earlier, local], alpha=-1)
                codes = state.choice[:, some.start * groups : some.stop * groups]
                before = codes.clone()
                core = state.core[:, columns]
                sweep_blocks(slice(some.start, some.stop), running, core, codes, gram_left)
                change = core - first_core[:, columns]
                self._keep(change, running, above[columns, local], gram_left, gram_right[some])
                stays = change.unflatten(0, (-1, self.block)).unflatten(2, (-1, self.block))
                stays = stays.ne(0).any(3).any(1)  # (i, columns)
                stays = stays.repeat_interleave(self.block, 0).repeat_interleave(groups, 1)
                codes.copy_(torch.where(stays, codes, before))
                core.copy_(first_core[:, columns] + change)
                self._times_left(gram_left, change, self.scratch[:, columns])
            if panel.stop < self.col_blocks:
                self._changes.refresh(width)
        if not measure_gain:
            return torch.zeros_like(state.loss)
        change = torch.sub(state.core, first_core, out=first_core)
        return sweep_gain(change, residual, self._times_right(self.scratch, gram_right))

    def _keep(
        self, change: Tensor, running: Tensor, coupled: Tensor, gram_left: Tensor, own: Tensor
    ) -> None:
        """Set to 0 what is not kept; `running` is then what each column would have met in turn.

        Args:
            coupled: H of the set, (columns, columns).
        """
        size = self.block
        spans = [slice(size * n, size * (n + 1)) for n in range(len(own))]
        for number, span in enumerate(spans):
            part = change[:, span]
            left = self._times_left(gram_left, part, torch.empty_like(part))
            gain = self._by_row_block(part * (2 * running[:, span] - left @ coupled[span, span]))
            lost = torch.zeros_like(gain)
            for other in spans[:number]:
                lost += 2 * self._by_row_block(left * (change[:, other] @ coupled[other, span]))
            stays = (lost <= 0) | (gain > lost)
            if number:
                moved = self._by_row_block(part.ne(0).to(part.dtype)) > 0
                type(self).swept += int(moved.sum())
                type(self).kept += int((moved & stays).sum())
            part *= stays.repeat_interleave(size).unsqueeze(1)
        for number, span in enumerate(spans):
            for other in spans[:number]:
                left = self._times_left(
                    gram_left, change[:, other], torch.empty_like(change[:, other])
                )
                running[:, span].addmm_(left, coupled[other, span], alpha=-1)

    def _by_row_block(self, terms: Tensor) -> Tensor:
        """(rows, b) summed up to (i,)."""
        return terms.unflatten(0, (-1, self.block)).sum((1, 2))
