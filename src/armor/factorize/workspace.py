"""The padded problem, its buffers, and the three exact steps of the solver.

docs/algorithm.md derives every line; a product carries the names of its factors in order
(`left_core` is A S, `core_right_moment` is S B X).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from armor.factorize.grid import Grid
from armor.factorize.masks import choice_from_mask, group_size
from armor.factorize.problem import Problem
from armor.factorize.ridge import ridge_inverse
from armor.factorize.state import State
from armor.factorize.sweep import SweepColumns, column_sweep, sweep_gain
from armor.sparse.factors import Factors
from armor.sparse.masks import nm_mask
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

_MIN_CHUNK = 2**16  # entries: fewer are not worth a call


class Workspace:
    """One problem cut into blocks. Each step minimises the loss exactly over its variable.

    Notation: T the target, X the moment, ``E = T - A S B`` the error, ``E X`` the error times the
    moment: minus half the gradient of the loss over ``A S B``. For the full moment a step costs one
    (rows, in) x (in, in) product, or half of one where blocks are solved in turn: each looks left
    at what the blocks before it changed.

    Besides the problem it holds two matrices of its size, for the full moment a third; products
    pass through them a few rows at a time. `gpu_workspace` has the same steps for a GPU.

    Attributes:
        row_blocks, col_blocks: how many blocks down (i) and across (j), after padding.
        target_moment: T X, (i*b, j*b), of a full moment only.
        moment_blocks: the diagonal blocks X_jj, (j, b, b).
        input_rms: square root of E[x_k^2], (j*b,).
        scratch: what a step needs in passing, (i*b, j*b).
        error_moment: E X after `step_left`, for the steps of the core; else in passing, too.
    """

    #: Parts that temporary products have; columns that are coupled in products of their own.
    chunks, panel_columns = 8, 192

    def __init__(self, problem: Problem, block: int, pattern: Pattern = TWO_OF_FOUR) -> None:
        self.rows, self.cols = problem.target.shape
        self.block = block
        self.pattern = pattern
        bottom, side = -self.rows % block, -self.cols % block
        target, moment = problem.target, problem.moment
        if bottom or side:
            target = pad(target, (0, side, 0, bottom))
            moment = pad(moment, (0, side, 0, side) if problem.is_full else (0, side))
        self.problem = Problem(target.contiguous(), moment.contiguous())
        self.row_blocks = target.shape[0] // block
        self.col_blocks = target.shape[1] // block
        # Row blocks to a chunk: a share of the matrix, or what is worth a call.
        self.chunk_blocks = max(
            -(-self.row_blocks // self.chunks), _MIN_CHUNK // (block * target.shape[1]), 1
        )
        if problem.is_full:
            self.target_moment = self.problem.times_moment(target)
            spans = [self._span(j) for j in range(self.col_blocks)]
            self.moment_blocks = torch.stack([self.problem.moment[span, span] for span in spans])
            self.inverse_moment_blocks = ridge_inverse(self.moment_blocks)
        else:
            self.moment_blocks = torch.diag_embed(self.problem.moment.view(self.col_blocks, block))
        self.input_rms = self.problem.mean_square.clamp_min(0).sqrt()
        self.scratch = torch.empty_like(target)
        self.error_moment = torch.empty_like(target)

    def start(self, factors: Factors) -> State:
        """Factors as a state; without wrappers with identities around them."""
        target = self.problem.target
        eye = torch.eye(self.block, dtype=target.dtype, device=target.device)
        left, right = factors.left, factors.right
        padding = (0, target.shape[1] - self.cols, 0, target.shape[0] - self.rows)
        mask = pad(factors.mask, padding)
        if any(padding) and not self.pattern.is_unstructured:
            # Padding keeps (zero) values of every group like everything else.
            mask = nm_mask(mask.to(target.dtype), self.pattern.kept, self.pattern.group)
        state = State(
            left=eye.repeat(self.row_blocks, 1, 1) if left is None else left.clone(),
            right=eye.repeat(self.col_blocks, 1, 1) if right is None else right.clone(),
            core=pad(factors.core, padding).contiguous(),
            choice=choice_from_mask(mask, self.pattern),
            loss=torch.zeros((), dtype=torch.float64, device=target.device),
        )
        state.loss = self.loss(state)
        return state

    def loss(self, state: State) -> Float[Tensor, ""]:
        """The proxy loss, float64 (). Overwrites `scratch`."""
        left_core = self._times_left(state.left, state.core, self.scratch)
        total = torch.zeros((), dtype=torch.float64, device=left_core.device)
        for rows in self._chunks():
            error = self.problem.target[rows] - self._times_right(left_core[rows], state.right)
            total += (self.problem.times_moment(error) * error).sum(dtype=torch.float64)
        return total

    def iterate(self, state: State) -> None:
        """The three steps in turn, in place, and the loss they end at."""
        self.step_wrappers(state)
        self.step_core(state)

    def anneal(
        self,
        state: State,
        noise: float,
        generator: torch.Generator,
        price: Float[Tensor, ""] | None = None,
    ) -> None:
        """`iterate`, but the core is fitted to a target with random errors.

        They are white in the measure of the loss, and `noise` times as large as the present ones
        (root mean square); 0 for none. The loss left in the state is that before the core moved.
        Under a `price` of kept entries their number may change.
        """
        self.step_wrappers(state)
        size = noise * (state.loss / (self.rows * self.cols)).sqrt()
        for chunk in self._chunks() if noise else ():
            rows = slice(chunk.start, min(chunk.stop, self.rows))  # padding stays zero
            errors = torch.empty_like(self.error_moment[rows], dtype=torch.float32)
            errors.normal_(generator=generator)  # the same ones for every dtype
            errors = errors.to(self.error_moment.dtype)
            self.error_moment[rows].addcmul_(errors, self.input_rms * size)
        self._sweep_core(state, measure_gain=False, price=price)

    def step_wrappers(self, state: State) -> None:
        """`step_right`, then `step_left`."""
        self.step_right(state)
        self.step_left(state)

    def step_right(self, state: State) -> None:
        """Minimise over each B_j in turn."""
        left_core = self._by_col_blocks(self._times_left(state.left, state.core, self.scratch))
        inverse_curvature = ridge_inverse(torch.bmm(left_core.mT, left_core))
        if self.problem.is_full:
            self._right_in_turn(state, left_core, inverse_curvature)
            return
        for rows in self._chunks():  # E itself: D_j cancels, and the blocks do not meet
            whole = self._times_right(self.scratch[rows], state.right)
            torch.sub(self.problem.target[rows], whole, out=self.error_moment[rows])
        right_residual = torch.bmm(left_core.mT, self._by_col_blocks(self.error_moment))
        state.right += torch.bmm(inverse_curvature, right_residual)

    def _right_in_turn(
        self,
        state: State,
        left_core: Float[Tensor, "j rows b"],
        inverse_curvature: Float[Tensor, "j b b"],
    ) -> None:
        """`step_right` of a full moment. `left_core` is A S, in `scratch`."""
        moment = self.problem.moment
        for rows in self._chunks():
            whole = self._times_right(self.scratch[rows], state.right)  # A S B
            out = self.error_moment[rows]
            torch.addmm(self.target_moment[rows], whole, moment, alpha=-1, out=out)
        product_change = self.scratch  # A S dB takes the place of A S block by block
        for panel in self._panels():
            first = panel.start * self.block
            others = self.error_moment[:, first : panel.stop * self.block]
            coupling = moment[:first, first : panel.stop * self.block]
            torch.addmm(others, product_change[:, :first], coupling, alpha=-1, out=others)
            for j in panel:
                span, earlier = self._span(j), slice(first, j * self.block)
                coupled = product_change[:, earlier] @ moment[earlier, span]
                right_residual = left_core[j].T @ (self.error_moment[:, span] - coupled)
                change = inverse_curvature[j] @ right_residual @ self.inverse_moment_blocks[j]
                state.right[j] += change
                product_change[:, span] = left_core[j] @ change

    def step_left(self, state: State) -> None:
        """Minimise over A; leaves E X in `error_moment` and the loss in the state."""
        self._step_left(state, *self._core_right(state))

    def _step_left(
        self,
        state: State,
        core_right: Float[Tensor, "rows cols"],
        core_right_moment: Float[Tensor, "rows cols"],
    ) -> None:
        """`step_left` with S B, and S B X, which may be in `error_moment`."""
        first, second = self.problem.target, core_right_moment
        if self.problem.is_full:
            first, second = self.target_moment, core_right
        curvature = torch.bmm(
            self._by_row_blocks(core_right_moment), self._by_row_blocks(core_right).mT
        )
        left_residual = torch.bmm(self._by_row_blocks(first), self._by_row_blocks(second).mT)
        left_residual -= torch.bmm(state.left, curvature)
        state.left += torch.bmm(left_residual, ridge_inverse(curvature))
        self._measure(state, core_right, core_right_moment)

    def measure(self, state: State) -> None:
        """What `step_left` leaves, E X in `error_moment` and the loss, of the state as it is."""
        self._measure(state, *self._core_right(state))

    def _core_right(
        self, state: State
    ) -> tuple[Float[Tensor, "rows cols"], Float[Tensor, "rows cols"]]:
        """S B in `scratch`, and S B X in `error_moment`."""
        core_right = self._times_right(state.core, state.right, self.scratch)
        multiply = torch.mm if self.problem.is_full else torch.mul
        return core_right, multiply(core_right, self.problem.moment, out=self.error_moment)

    def _measure(
        self,
        state: State,
        core_right: Float[Tensor, "rows cols"],
        core_right_moment: Float[Tensor, "rows cols"],
    ) -> None:
        """The loss, and E X row by row in the place of S B X."""
        target, moment = self.problem.target, self.problem.moment
        state.loss = torch.zeros_like(state.loss)
        for rows in self._chunks():
            left = self._left_of(state.left, rows)
            target_moment = (
                self.target_moment[rows] if self.problem.is_full else target[rows] * moment
            )
            product_moment = self._times_left(left, core_right_moment[rows])
            error_moment = torch.sub(target_moment, product_moment, out=self.error_moment[rows])
            error = target[rows] - self._times_left(left, core_right[rows])
            state.loss += error.mul_(error_moment).sum(dtype=torch.float64)

    def step_core(self, state: State, grid: Grid | None = None) -> None:
        """One sweep over the groups of the core; needs E X in `error_moment`, and the loss.

        On a `grid` each group takes the values of it that are best. A gain that is not finite, or
        larger than the loss, is made of rounding errors: the loss of such a state is infinite.
        """
        loss = state.loss - self._sweep_core(state, grid=grid)
        state.loss = torch.where(loss >= 0, loss, torch.inf)

    def core_quadratic(
        self, state: State
    ) -> tuple[Float[Tensor, "i b b"], Float[Tensor, "j b b"], Float[Tensor, "rows cols"]]:
        """G (i, b, b), the blocks H_jj (j, b, b) and ``R = A^T E X B^T`` (i*b, j*b).

        R takes the place of E X in `error_moment`.
        """
        left_t, right_t = state.left.mT, state.right.mT
        gram_left = torch.bmm(left_t, state.left)
        gram_right = torch.bmm(torch.bmm(state.right, self.moment_blocks), right_t)
        left_error_moment = self._times_left(left_t, self.error_moment, self.scratch)
        residual = self._times_right(left_error_moment, right_t, self.error_moment)
        return gram_left, gram_right, residual

    def _sweep_core(
        self,
        state: State,
        measure_gain: bool = True,
        price: Float[Tensor, ""] | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, ""]:
        """The sweep, and what it takes off the loss that E X belongs to; 0 if not asked for."""
        gram_left, gram_right, residual = self.core_quadratic(state)
        sweep_blocks = (
            column_sweep(gram_right, self.pattern, price)
            if grid is None
            else grid.column_sweep(gram_right)
        )
        gain = torch.zeros_like(state.loss)
        if not self.problem.is_full:
            before = self.scratch.copy_(state.core)
            every = slice(0, self.col_blocks)
            sweep_blocks(every, residual, state.core, state.choice, gram_left)
            for rows in self._chunks() if measure_gain else ():
                change = state.core[rows] - before[rows]
                gram_change = self._times_left(self._left_of(gram_left, rows), change)
                gain += sweep_gain(
                    change, residual[rows], self._times_right(gram_change, gram_right)
                )
            return gain
        in_turn = grid is not None or price is not None  # more than the loss decides
        return self._sweep_columns(
            state, residual, gram_left, gram_right, sweep_blocks, measure_gain, in_turn
        )

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
        """The sweep of a full moment: columns of blocks in turn. `residual` is R at the entry.

        Args:
            in_turn: whether they must be, also on a GPU.
        """
        gain = torch.zeros_like(state.loss)
        groups = self.block // group_size(self.pattern)
        for panel in self._panels():
            first = panel.start * self.block
            above = self._gram_right_above(state.right, panel)
            others = residual[:, first : panel.stop * self.block]
            # `scratch` holds G dS of the columns so far.
            torch.addmm(others, self.scratch[:, :first], above[:first], alpha=-1, out=others)
            for j in panel:
                span, earlier = self._span(j), slice(first, j * self.block)
                own, codes = slice(j, j + 1), slice(j * groups, (j + 1) * groups)
                coupled = above[earlier, span.start - first : span.stop - first]
                running_residual = residual[:, span] - self.scratch[:, earlier] @ coupled
                # Copies, as strided columns are slow.
                core, choice = state.core[:, span], state.choice[:, codes]
                new_core = core.clone(memory_format=torch.contiguous_format)
                new_choice = choice.clone(memory_format=torch.contiguous_format)
                sweep_blocks(own, running_residual, new_core, new_choice, gram_left)
                change = new_core - core
                gram_change = self._times_left(gram_left, change)
                if measure_gain:
                    gain += sweep_gain(change, running_residual, gram_change @ gram_right[j])
                self.scratch[:, span] = gram_change
                core.copy_(new_core)
                choice.copy_(new_choice)
        return gain

    def _gram_right_above(
        self, right: Float[Tensor, "j b b"], panel: range
    ) -> Float[Tensor, "above width"]:
        """Of the columns of ``H = B X B^T`` in `panel`, its rows down to the end of that."""
        width = slice(panel.start * self.block, panel.stop * self.block)
        moment_right = torch.bmm(
            self._by_col_blocks(self.problem.moment[: width.stop, width]),
            right[panel.start : panel.stop].mT,
        )
        return self._times_left(
            right[: panel.stop], moment_right.transpose(0, 1).reshape(width.stop, -1)
        )

    def _panels(self) -> Iterator[range]:
        """The column blocks, as many at a time as make products wide enough to be fast."""
        size = max(1, self.panel_columns // self.block)
        for start in range(0, self.col_blocks, size):
            yield range(start, min(start + size, self.col_blocks))

    def _chunks(self) -> Iterator[slice]:
        """The rows, a few blocks at a time: what bounds the memory of temporary products."""
        height = self.chunk_blocks * self.block
        total = self.row_blocks * self.block
        for start in range(0, total, height):
            yield slice(start, min(start + height, total))

    def _span(self, j: int) -> slice:
        """The columns of block j."""
        return slice(j * self.block, (j + 1) * self.block)

    def _left_of(self, blocks: Float[Tensor, "i b b"], rows: slice) -> Float[Tensor, "some b b"]:
        """Those of (i, b, b) `blocks` that meet `rows`, whole blocks."""
        return blocks[rows.start // self.block : rows.stop // self.block]

    def _by_row_blocks(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, "i b cols"]:
        """(i*b, cols) seen as (i, b, cols)."""
        return matrix.view(-1, self.block, matrix.shape[1])

    def _by_col_blocks(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, "j rows b"]:
        """(rows, j*b) seen as (j, rows, b)."""
        return matrix.view(matrix.shape[0], -1, self.block).transpose(0, 1)

    def _times_left(
        self,
        blocks: Float[Tensor, "i b b"],
        matrix: Float[Tensor, "rows cols"],
        out: Float[Tensor, "rows cols"] | None = None,
    ) -> Float[Tensor, "rows cols"]:
        """``blockdiag(blocks) @ matrix``."""
        out_blocks = None if out is None else self._by_row_blocks(out)
        return torch.bmm(blocks, self._by_row_blocks(matrix), out=out_blocks).view(matrix.shape)

    def _times_right(
        self,
        matrix: Float[Tensor, "rows cols"],
        blocks: Float[Tensor, "j b b"],
        out: Float[Tensor, "rows cols"] | None = None,
    ) -> Float[Tensor, "rows cols"]:
        """``matrix @ blockdiag(blocks)``."""
        out = torch.empty_like(matrix) if out is None else out
        height = self.chunk_blocks * self.block
        for start in range(0, matrix.shape[0], height):
            rows = slice(start, start + height)
            product = torch.bmm(self._by_col_blocks(matrix[rows]), blocks)
            self._by_col_blocks(out[rows]).copy_(product)
        return out
