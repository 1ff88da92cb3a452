"""The paper's solver: Adam on everything, and one group of the core per block in each iteration.

ARMOR, arXiv 2510.05528. The paper's: one Adam step (learning rate 1e-4) on A, B and the kept values
of S jointly, then in every b x b block one group of 4, drawn with probability proportional to the
L1 norm of the gradient over its four entries, gets the best of all six pairs by least squares;
20,000 such iterations; the end after 100 in a row that each take less than 1e-6 of the loss, or
1e-8, off it. Adam is outside the paper's convergence theorem.

Ours, where the paper leaves it open or for speed: Adam's other constants are torch's defaults, and
an entry kept anew begins with empty Adam averages; the draw uses the gradient at the point the
Adam step reached; the products of that gradient serve the next Adam step too, brought up to date
by a rank-one change of each block, so that an iteration costs six block-diagonal products; under a
full moment, where blocks of one row interact, their groups are set one after the other; the stop
rule is looked at every 10 iterations; and the better of the last state and of those after every
100 iterations is returned, so that the result is never worse than the start.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from armor.factorize.gpu_workspace import workspace
from armor.factorize.groups import Groups, pick
from armor.factorize.inverses import pair_inverses
from armor.factorize.masks import mask_from_choice
from armor.factorize.problem import Problem
from armor.factorize.state import State
from armor.factorize.workspace import Workspace
from armor.sparse.factors import Factors

ITERATIONS = 20_000
LEARNING_RATE = 1e-4
#: Stop after so many iterations in a row that each take less than a share of the loss off it, or
#: less than an absolute amount.
PATIENCE, MIN_RELATIVE_GAIN, MIN_ABSOLUTE_GAIN = 100, 1e-6, 1e-8
#: Iterations between two looks at the losses, and between two copies of the state.
CHECK_EVERY, RECORD_EVERY = 10, 100


def factorize_adam(
    problem: Problem,
    block: int,
    starts: list[Factors],
    iterations: int = ITERATIONS,
    seed: int = 0,
    on_iteration: Callable[[float], None] | None = None,
) -> tuple[Factors, list[float]]:
    """Factorise one matrix from the best of `starts` by the paper's loop.

    Args:
        problem: target and moment, float32 or float64; the paper's is normalised and diagonal.
        block: wrapper block b, a multiple of 4; a last partial block is padded.
        starts: sparse matrices without wrappers; the result is never worse than any of them.
        iterations: ceiling.
        seed: of the draws of groups.
        on_iteration: called with the relative loss of each iteration, `CHECK_EVERY` at a time.

    Returns:
        The factors, and the loss at the start, after every `RECORD_EVERY` iterations and after the
        last, relative to that of ``W_hat = 0``; it may rise now and then.
    """
    work = workspace(problem, block)
    zero = problem.zero_loss()
    best = min((work.start(start) for start in starts), key=lambda state: float(state.loss))
    loop = _Loop(work, best.copy(), seed)
    before = float(best.loss)
    losses = [before]
    done = stalled = 0
    while done < iterations and stalled < PATIENCE:
        count = min(CHECK_EVERY, iterations - done)
        for loss in torch.stack([loop.iterate() for _ in range(count)]).tolist():
            enough = max(MIN_RELATIVE_GAIN * before, MIN_ABSOLUTE_GAIN)
            stalled = 0 if before - loss >= enough else stalled + 1
            before = loss
            if on_iteration is not None:
                on_iteration(loss / zero)
        done += count
        if done % RECORD_EVERY == 0 or done == iterations or stalled >= PATIENCE:
            losses.append(before)
            if before < best.loss:
                best = loop.state(work)
    core = best.core[: work.rows, : work.cols].contiguous()
    mask = mask_from_choice(best.choice)[: work.rows, : work.cols].contiguous()
    return Factors(core, mask, best.left, best.right), [loss / zero for loss in losses]


class _Loop:
    """The moving point, its gradients (all halved and negated), and Adam's averages.

    Notation: `error` is ``E = T - A S B``, `error_moment` ``E X``, `error_moment_right`
    ``E X B^T``, `residual` ``R = A^T E X B^T``, minus half the gradient over all of S. Blocks are
    numbered i, j; b, its rows and columns; g = b/4 its groups.
    """

    def __init__(self, work: Workspace, start: State, seed: int) -> None:
        self.target, self.moment = work.problem.target, work.problem.moment
        self.is_full = work.problem.is_full
        self.moment_blocks = work.moment_blocks
        self.row_blocks, self.col_blocks, self.block = work.row_blocks, work.col_blocks, work.block
        self.point = start
        self.left, self.right, self.core = start.left, start.right, start.core
        self.choice = start.choice
        self.mask = mask_from_choice(start.choice).to(self.core.dtype)
        device = self.core.device
        self.random = torch.Generator(device).manual_seed(seed)
        # Halved gradients under a halved epsilon take the same steps.
        self.adam = torch.optim.Adam(
            [self.left, self.right, self.core], LEARNING_RATE, eps=0.5e-8, maximize=True, fused=True
        )
        self.i = torch.arange(self.row_blocks, dtype=torch.int64, device=device).unsqueeze(1)
        self.j = torch.arange(self.col_blocks, dtype=torch.int64, device=device)
        pairs = torch.arange(6, dtype=torch.uint8, device=device).unsqueeze(1)
        self.table = mask_from_choice(pairs).to(self.core.dtype)
        self.left_core, self.error, self.error_moment, self.error_moment_right, self.residual = (
            torch.empty_like(self.target) for _ in range(5)
        )
        self.core.grad = torch.empty_like(self.target)
        self._forward()
        self._update_residual()
        self._gradients()

    def state(self, work: Workspace) -> State:
        """A copy of the point, with its loss."""
        state = self.point.copy()
        state.loss = work.loss(state)
        return state

    def iterate(self) -> Float[Tensor, ""]:
        """One iteration; its loss, float64 ()."""
        self.adam.step()
        loss = self._forward()
        self._update_residual()
        loss = loss - self._core_step()
        self._gradients()
        return loss

    def _forward(self) -> Float[Tensor, ""]:
        """``A S``, ``E X``, and the loss."""
        torch.bmm(
            self.left, self._by_row_blocks(self.core), out=self._by_row_blocks(self.left_core)
        )
        product = torch.bmm(self._by_col_blocks(self.left_core), self.right)
        torch.sub(self._by_col_blocks(self.target), product, out=self._by_col_blocks(self.error))
        if self.is_full:
            torch.mm(self.error, self.moment, out=self.error_moment)
        else:
            torch.mul(self.error, self.moment, out=self.error_moment)
        return self.error.mul_(self.error_moment).sum(-1).sum(dtype=torch.float64)

    def _update_residual(self) -> None:
        """``E X B^T`` and R."""
        self._by_col_blocks(self.error_moment_right).copy_(
            torch.bmm(self._by_col_blocks(self.error_moment), self.right.mT)
        )
        torch.bmm(
            self.left.mT,
            self._by_row_blocks(self.error_moment_right),
            out=self._by_row_blocks(self.residual),
        )

    def _gradients(self) -> None:
        """What Adam steps along."""
        self.left.grad = torch.bmm(
            self._by_row_blocks(self.error_moment_right), self._by_row_blocks(self.core).mT
        )
        self.right.grad = torch.bmm(
            self._by_col_blocks(self.left_core).mT, self._by_col_blocks(self.error_moment)
        )
        torch.mul(self.residual, self.mask, out=self.core.grad)

    def _core_step(self) -> Float[Tensor, ""]:
        """Set one drawn group of every block; returns what that takes off the loss."""
        row, group = self._draw()
        at = (self.i, row, self.j, group)
        groups = self.block // 4
        gram_left = torch.bmm(self.left.mT, self.left)
        gram_right = torch.bmm(torch.bmm(self.right, self.moment_blocks), self.right.mT)
        drawn = Groups(
            residual=self._by_groups(self.residual)[at],
            current=self._by_groups(self.core)[at],
            choice=self.choice.view(self.row_blocks, self.block, -1, groups)[at],
            scale=gram_left[self.i, row, row],
            group_gram=gram_right.view(-1, groups, 4, groups, 4)[self.j, group, :, group],
            inverses=pair_inverses(gram_right)[self.j, group],
        )
        right_rows = self.right.view(-1, groups, 4, self.block)[self.j, group]
        if self.is_full:
            couplings = gram_left[self.i.unsqueeze(-1), row.unsqueeze(-1), row.unsqueeze(1)]
            values, codes, gain = self._best_in_turn(drawn, right_rows, couplings)
        else:
            values, codes, gain = drawn.best_pairs()
        self._by_groups(self.core)[at] = values
        self.choice.view(self.row_blocks, self.block, -1, groups)[at] = codes
        kept = self.table[codes.long()]
        self._by_groups(self.mask)[at] = kept
        for average in ("exp_avg", "exp_avg_sq"):
            self._by_groups(self.adam.state[self.core][average])[at] *= kept
        self._update_products(row, group, values - drawn.current, right_rows, gram_left)
        return gain.sum(dtype=torch.float64)

    def _best_in_turn(
        self,
        drawn: Groups,
        right_rows: Float[Tensor, "i j 4 b"],
        couplings: Float[Tensor, "i j j"],
    ) -> tuple[Float[Tensor, "i j 4"], UInt8[Tensor, "i j"], Float[Tensor, "i j"]]:
        """The best of each group after those to the left in its row of blocks have change_right.

        Args:
            right_rows: of B, those of the groups, (i, j, 4, b).
            couplings: G_rr' between the rows drawn, (i, j, j).
        """
        change_right_moment = self.target.new_empty(
            self.row_blocks, self.col_blocks, self.target.shape[1]
        )
        found = []
        for j in range(self.col_blocks):
            span = slice(j * self.block, (j + 1) * self.block)
            one = drawn.column(j)
            before = torch.einsum(
                "ij,ijc->ic", couplings[:, j, :j], change_right_moment[:, :j, span]
            )
            one.residual -= torch.einsum("ic,ikc->ik", before, right_rows[:, j])
            found.append(one.best_pairs())
            change = found[-1][0] - one.current
            change_right = torch.einsum("ik,ikc->ic", change, right_rows[:, j])
            torch.mm(change_right, self.moment[span], out=change_right_moment[:, j])
        values, codes, gains = (torch.stack(each, 1) for each in zip(*found, strict=True))
        return values, codes, gains

    def _update_products(
        self,
        row: Int64[Tensor, "i j"],
        group: Int64[Tensor, "i j"],
        change: Float[Tensor, "i j 4"],
        right_rows: Float[Tensor, "i j 4 b"],
        gram_left: Float[Tensor, "i b b"],
    ) -> None:
        """Bring all products up to date with the `change` dS (i, j, 4) of the drawn groups."""
        across = row.unsqueeze(1).expand(-1, self.block, -1)
        columns = self.left.gather(2, across)  # of A, (i, b, j)
        spread = self.target.new_zeros(self.row_blocks, self.col_blocks, self.block // 4, 4)
        spread[self.i, self.j, group] = change
        self._subtract_outer(self.left_core, columns, -spread.flatten(2))
        change_right = torch.einsum("ijk,ijkc->ijc", change, right_rows)
        if self.is_full:
            moment_rows = self.moment.view(self.col_blocks, self.block, -1)
            change_right_moment = torch.einsum("ijc,jcd->ijd", change_right, moment_rows)
            change_gram = self._times_right_t(change_right_moment.flatten(0, 1)).view(
                change_right_moment.shape
            )
        else:
            change_right_moment = change_right * self.moment.view(-1, self.block)
            change_gram = self._times_right_t(change_right_moment.flatten(1)).view(
                change_right_moment.shape
            )
        self._subtract_outer(self.error_moment, columns, change_right_moment)
        self._subtract_outer(self.error_moment_right, columns, change_gram)
        self._subtract_outer(self.residual, gram_left.gather(2, across), change_gram)

    def _subtract_outer(
        self,
        matrix: Float[Tensor, "rows cols"],
        columns: Float[Tensor, "i b j"],
        rows: Float[Tensor, "i j _"],
    ) -> None:
        """Take out of row i of blocks ``columns[i] @ rows[i]``, (b, j) times (j, j*b); or, where
        rows is (i, j, b), of each block alone the outer product."""
        if rows.shape[-1] == self.block:
            blocks = matrix.view(self.row_blocks, self.block, self.col_blocks, self.block)
            blocks.addcmul_(columns.unsqueeze(-1), rows.unsqueeze(1), value=-1.0)
        else:
            self._by_row_blocks(matrix).baddbmm_(columns, rows, alpha=-1.0)

    def _draw(self) -> tuple[Int64[Tensor, "i j"], Int64[Tensor, "i j"]]:
        """A row and a group for each block, (i, j), by the L1 norm of the gradient."""
        sizes = (
            self.residual.abs()
            .view(self.row_blocks, self.block, self.col_blocks, self.block)
            .sum(-1)
        )
        uniform = torch.rand(
            (2, self.row_blocks, self.col_blocks),
            generator=self.random,
            dtype=self.core.dtype,
            device=self.core.device,
        )
        row = pick(sizes.transpose(1, 2), uniform[0])
        inside = self._by_groups(self.residual)[self.i, row, self.j].abs().sum(-1)
        return row, pick(inside, uniform[1])

    def _times_right_t(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
        """``matrix @ blockdiag(B)^T``."""
        return (
            torch.bmm(self._by_col_blocks(matrix), self.right.mT)
            .transpose(0, 1)
            .reshape(matrix.shape)
        )

    def _by_groups(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, "i b j g 4"]:
        """(i*b, j*b) seen as (i, b, j, b/4, 4)."""
        return matrix.view(self.row_blocks, self.block, self.col_blocks, self.block // 4, 4)

    def _by_row_blocks(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, "i b cols"]:
        """(i*b, cols) seen as (i, b, cols)."""
        return matrix.view(self.row_blocks, self.block, -1)

    def _by_col_blocks(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, "j rows b"]:
        """(rows, j*b) seen as (j, rows, b)."""
        return matrix.view(matrix.shape[0], -1, self.block).transpose(0, 1)
