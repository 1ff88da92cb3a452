"""The padded problem, its buffers, and the three exact steps of the solver."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from armor.factorize.masks import choice_of, gain_tables, group_of, mask_of
from armor.factorize.problem import Problem
from armor.factorize.ridge import inverse
from armor.factorize.state import State
from armor.factorize.sweep import pair_inverses, sweep, sweep_masks
from armor.sparse.factors import Factors
from armor.sparse.masks import nm_mask
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

_LEAST_CHUNK = 2**16  # entries: fewer are not worth a call


class Workspace:
    """One problem cut into blocks. Each step minimises the loss exactly over its variable.

    Notation: T the target, X the moment, ``E = T - A S B`` the error, ``F = E X`` the force. For
    the full moment a step costs one (rows, in) x (in, in) product, or half of one where blocks are
    solved in turn: each looks left at what the blocks before it changed.

    Besides the problem it holds two matrices of its size, for the full moment a third; products
    pass through them a few rows at a time.
    """

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
        self.lefts = target.shape[0] // block
        self.rights = target.shape[1] // block
        # Row blocks to a chunk: an eighth of the matrix, or what is worth a call.
        self.chunk = max(-(-self.lefts // 8), _LEAST_CHUNK // (block * target.shape[1]), 1)
        if problem.is_full:
            self.pull = self.problem.times_moment(target)  # T X
            spans = [slice(j * block, (j + 1) * block) for j in range(self.rights)]
            self.moments = torch.stack([self.problem.moment[span, span] for span in spans])
            self.inverse_moments = inverse(self.moments)
        else:
            self.moments = torch.diag_embed(self.problem.moment.view(self.rights, block))
        self.deviation = self.problem.mean_square.clamp_min(0).sqrt()
        # The steps write here; what one leaves, the next may overwrite.
        self.one = torch.empty_like(target)
        self.two = torch.empty_like(target)

    def start(self, factors: Factors) -> State:
        """A sparse matrix without wrappers as a state: identities around it."""
        target = self.problem.target
        eye = torch.eye(self.block, dtype=target.dtype, device=target.device)
        around = (0, target.shape[1] - self.cols, 0, target.shape[0] - self.rows)
        mask = pad(factors.mask, around)
        if any(around) and not self.pattern.is_unstructured:
            # Padding keeps (zero) values of every group like everything else.
            mask = nm_mask(mask.to(target.dtype), self.pattern.kept, self.pattern.group)
        state = State(
            eye.repeat(self.lefts, 1, 1),
            eye.repeat(self.rights, 1, 1),
            pad(factors.core, around).contiguous(),
            choice_of(mask, self.pattern),
            torch.zeros((), dtype=torch.float64, device=target.device),
        )
        state.loss = self.loss(state)
        return state

    def loss(self, state: State) -> Tensor:
        """The proxy loss, float64 ()."""
        self._left(state.left, state.core, self.one)
        total = torch.zeros((), dtype=torch.float64, device=self.one.device)
        for rows in self._chunks():
            error = self.problem.target[rows] - self._right(self.one[rows], state.right)
            total += (self.problem.times_moment(error) * error).sum(dtype=torch.float64)
        return total

    def iterate(self, state: State) -> None:
        """The three steps in turn, in place, and the loss they end at."""
        self.step_right(state)
        self.step_left(state)
        self.step_core(state)

    def shake(
        self,
        state: State,
        noise: float,
        generator: torch.Generator,
        price: Tensor | None = None,
    ) -> None:
        """`iterate`, but the core is fitted to a target with random errors.

        They are white in the measure of the loss, and `noise` times as large as the present ones
        (root mean square); 0 for none. The loss left in the state is that before the core moved.
        Under a `price` of kept entries their number may change.
        """
        self.step_right(state)
        self.step_left(state)
        size = noise * (state.loss / (self.rows * self.cols)).sqrt()
        for chunk in self._chunks() if noise else ():
            rows = slice(chunk.start, min(chunk.stop, self.rows))  # padding stays zero
            errors = torch.empty_like(self.two[rows], dtype=torch.float32)
            errors.normal_(generator=generator)  # the same ones for every dtype
            self.two[rows].addcmul_(errors.to(self.two.dtype), self.deviation * size)
        self._sweep_core(state, weigh=False, price=price)

    def step_right(self, state: State) -> None:
        """Minimise over each B_j in turn."""
        halves = self._cols(self._left(state.left, state.core, self.one))  # A S
        gram_inverse = inverse(torch.bmm(halves.mT, halves))
        for rows in self._chunks():
            product = self._right(self.one[rows], state.right)
            if self.problem.is_full:  # the force
                pull, moment = self.pull[rows], self.problem.moment
                torch.addmm(pull, product, moment, alpha=-1, out=self.two[rows])
            else:  # the error: D_j cancels, and the blocks do not meet
                torch.sub(self.problem.target[rows], product, out=self.two[rows])
        if not self.problem.is_full:
            change = torch.bmm(halves.mT, self._cols(self.two))
            state.right += torch.bmm(gram_inverse, change)
            return
        moved = self.one  # takes the place of A S block by block
        for j in range(self.rights):
            span, done = self._span(j), slice(0, j * self.block)
            force = self.two[:, span] - moved[:, done] @ self.problem.moment[done, span]
            change = gram_inverse[j] @ (halves[j].T @ force) @ self.inverse_moments[j]
            state.right[j] += change
            moved[:, span] = halves[j] @ change

    def step_left(self, state: State) -> None:
        """Minimise over A; leaves the force F in `two` and the loss in the state."""
        half = self._right(state.core, state.right, self.one)  # S B
        target, moment = self.problem.target, self.problem.moment
        if self.problem.is_full:
            weighted, first, second = torch.mm(half, moment, out=self.two), self.pull, half
        else:
            weighted = torch.mul(half, moment, out=self.two)
            first, second = target, weighted
        gram = torch.bmm(self._rows(weighted), self._rows(half).mT)
        numerator = torch.bmm(self._rows(first), self._rows(second).mT)
        numerator -= torch.bmm(state.left, gram)
        state.left += torch.bmm(numerator, inverse(gram))
        state.loss = torch.zeros_like(state.loss)
        for rows in self._chunks():
            left = state.left[rows.start // self.block : rows.stop // self.block]
            force = self.pull[rows] if self.problem.is_full else target[rows] * moment
            force = torch.sub(force, self._left(left, weighted[rows]), out=self.two[rows])
            error = target[rows] - self._left(left, half[rows])
            state.loss += error.mul_(force).sum(dtype=torch.float64)

    def step_core(self, state: State) -> None:
        """One sweep over the groups of the core; needs the force in `two` and the loss.

        A gain that is not finite, or larger than the loss, is made of rounding errors: the loss of
        such a state is infinite.
        """
        loss = state.loss - self._sweep_core(state)
        state.loss = torch.where(loss >= 0, loss, torch.inf)

    def settle(self, state: State, count: int) -> None:
        """Let the core keep exactly `count` entries: the least drop out, or the best come in.

        An entry is worth what it alone takes off the loss. Those that come in hold 0 as yet.
        """
        self.step_right(state)
        self.step_left(state)
        mask = mask_of(state.choice, self.pattern)
        missing = count - int(mask[: self.rows, : self.cols].sum())
        if missing == 0:
            return
        gram_left, gram_right, residual = self._to_core(state)
        down = gram_left.diagonal(dim1=1, dim2=2).flatten().unsqueeze(1)
        across = gram_right.diagonal(dim1=1, dim2=2).flatten()
        curve = down * across
        if missing < 0:
            worth = -(state.core.square() * curve).masked_fill(~mask, torch.inf)
        else:
            worth = torch.where(curve > 0, residual.square() / curve, 0.0)
            worth = worth.masked_fill(mask, -torch.inf)
        worth = worth[: self.rows, : self.cols].flatten()
        order = worth.argsort(descending=True, stable=True)[: abs(missing)]
        row, col = order // self.cols, order % self.cols
        mask[row, col] = missing > 0
        state.core.mul_(mask)
        state.choice = choice_of(mask, self.pattern)

    def _to_core(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """G, the blocks of H, and ``R = A^T F B^T``, the force in the core's own coordinates."""
        left_t, right_t = state.left.mT, state.right.mT
        gram_left = torch.bmm(left_t, state.left)
        gram_right = torch.bmm(torch.bmm(state.right, self.moments), right_t)
        residual = self._right(self._left(left_t, self.two, self.one), right_t, self.two)
        return gram_left, gram_right, residual

    def _sweep_core(self, state: State, weigh: bool = True, price: Tensor | None = None) -> Tensor:
        """The sweep, and what it takes off the loss that the force in `two` belongs to, or 0."""
        gram_left, gram_right, residual = self._to_core(state)
        gain = torch.zeros_like(state.loss)
        if not self.problem.is_full:
            before = self.one.copy_(state.core)
            if self.pattern == TWO_OF_FOUR:
                sweep(residual, state.core, state.choice, gram_left, gram_right)
            else:
                sweep_masks(
                    residual,
                    state.core,
                    state.choice,
                    gram_left,
                    gram_right,
                    self.pattern,
                    price,
                )
            for rows in self._chunks() if weigh else ():
                change = state.core[rows] - before[rows]
                left = gram_left[rows.start // self.block : rows.stop // self.block]
                curved = self._right(self._left(left, change), gram_right)
                gain += _gain(change, residual[rows], curved)
            return gain
        is_pair = self.pattern == TWO_OF_FOUR
        systems = pair_inverses(gram_right) if is_pair else gain_tables(gram_right, self.pattern)
        moved = self.one  # G dS
        groups = self.block // group_of(self.pattern)
        for j in range(self.rights):
            span, done = self._span(j), slice(0, j * self.block)
            codes = slice(j * groups, (j + 1) * groups)
            rest = residual[:, span] - moved[:, done] @ self._coupling(state.right, j)
            core = state.core[:, span].contiguous()
            choice = state.choice[:, codes].contiguous()
            right = gram_right[j : j + 1]
            own = systems[j : j + 1]
            if is_pair:
                sweep(rest, core, choice, gram_left, right, inverses=own)
            else:
                args = self.pattern, price
                sweep_masks(rest, core, choice, gram_left, right, *args, tables=own)
            change = core - state.core[:, span]
            pushed = self._left(gram_left, change)
            if weigh:
                gain += _gain(change, rest, pushed @ right[0])
            moved[:, span] = pushed
            state.core[:, span] = core
            state.choice[:, codes] = choice
        return gain

    def _coupling(self, right: Tensor, j: int) -> Tensor:
        """Of the columns j of ``B X B^T`` the rows above their own block, (j b, b)."""
        half = self.problem.moment[: j * self.block, self._span(j)] @ right[j].mT
        return torch.bmm(right[:j], half.view(j, self.block, self.block)).view(-1, self.block)

    def _chunks(self) -> Iterator[slice]:
        """The rows, a few blocks at a time: what bounds the memory of temporary products."""
        height = self.chunk * self.block
        total = self.lefts * self.block
        for start in range(0, total, height):
            yield slice(start, min(start + height, total))

    def _span(self, j: int) -> slice:
        return slice(j * self.block, (j + 1) * self.block)

    def _rows(self, matrix: Tensor) -> Tensor:
        """(i*b, cols) seen as (i, b, cols)."""
        return matrix.view(-1, self.block, matrix.shape[1])

    def _cols(self, matrix: Tensor) -> Tensor:
        """(rows, j*b) seen as (j, rows, b)."""
        return matrix.view(matrix.shape[0], -1, self.block).transpose(0, 1)

    def _left(self, blocks: Tensor, matrix: Tensor, out: Tensor | None = None) -> Tensor:
        """``blockdiag(blocks) @ matrix``."""
        product = torch.bmm(
            blocks, self._rows(matrix), out=None if out is None else self._rows(out)
        )
        return product.view(matrix.shape)

    def _right(self, matrix: Tensor, blocks: Tensor, out: Tensor | None = None) -> Tensor:
        """``matrix @ blockdiag(blocks)``; `out` may be `matrix`."""
        out = torch.empty_like(matrix) if out is None else out
        height = self.chunk * self.block
        for start in range(0, matrix.shape[0], height):
            rows = slice(start, start + height)
            self._cols(out[rows]).copy_(torch.bmm(self._cols(matrix[rows]), blocks))
        return out


def _gain(change: Tensor, residual: Tensor, curved: Tensor) -> Tensor:
    """What a change dS of the core takes off the loss: ``2 <dS, R> - <dS, G dS H>``."""
    return (residual.mul(2.0) - curved).mul_(change).sum(dtype=torch.float64)
