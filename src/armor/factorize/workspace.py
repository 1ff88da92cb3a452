"""The padded problem, its buffers, and the three exact steps of the solver."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from armor.factorize.core import choice_of, pair_inverses, sweep
from armor.factorize.factors import Factors
from armor.factorize.problem import Problem
from armor.factorize.state import State
from armor.factorize.wrappers import inverse
from armor.sparsity import nm_mask


class Workspace:
    """One problem cut into blocks. Each step minimises the loss exactly over its variable.

    Notation: T the target, X the moment, ``E = T - A S B`` the error, ``F = E X`` the force. For
    the full moment a step costs one (rows, in) x (in, in) product, or half of one where blocks are
    solved in turn: each looks left at what the blocks before it changed.
    """

    def __init__(self, problem: Problem, block: int) -> None:
        self.rows, self.cols = problem.target.shape
        self.block = block
        bottom, side = -self.rows % block, -self.cols % block
        target = pad(problem.target, (0, side, 0, bottom)).contiguous()
        moment = pad(problem.moment, (0, side, 0, side) if problem.is_full else (0, side))
        self.problem = Problem(target, moment.contiguous())
        self.lefts = target.shape[0] // block
        self.rights = target.shape[1] // block
        if problem.is_full:
            self.pull = self.problem.times_moment(target)  # T X
            spans = [slice(j * block, (j + 1) * block) for j in range(self.rights)]
            self.moments = torch.stack([moment[span, span] for span in spans])
            self.inverse_moments = inverse(self.moments)
        else:
            self.moments = torch.diag_embed(self.problem.moment.view(self.rights, block))
        # The steps write here; what one leaves, the next may overwrite.
        self.one = torch.empty_like(target)
        self.two = torch.empty_like(target)

    def start(self, factors: Factors) -> State:
        """A sparse matrix without wrappers as a state: identities around it."""
        target = self.problem.target
        eye = torch.eye(self.block, dtype=target.dtype, device=target.device)
        around = (0, target.shape[1] - self.cols, 0, target.shape[0] - self.rows)
        mask = pad(factors.mask, around)
        if any(around):  # padding keeps two (zero) values of every four like everything else
            mask = nm_mask(mask.to(target.dtype))
        state = State(
            eye.repeat(self.lefts, 1, 1),
            eye.repeat(self.rights, 1, 1),
            pad(factors.core, around).contiguous(),
            choice_of(mask),
            torch.zeros((), dtype=torch.float64, device=target.device),
        )
        state.loss = self.loss(state)
        return state

    def loss(self, state: State) -> Tensor:
        """The proxy loss, float64 ()."""
        error = self._error(state)
        return (self.problem.times_moment(error) * error).sum(dtype=torch.float64)

    def iterate(self, state: State) -> None:
        """The three steps in turn, in place, and the loss they end at."""
        self.step_right(state)
        self.step_left(state)
        self.step_core(state)

    def step_right(self, state: State) -> None:
        """Minimise over each B_j in turn."""
        halves = self._cols(self._left(state.left, state.core, self.one))
        error = torch.sub(
            self.problem.target, self._right(self.one, state.right, self.two), out=self.two
        )
        gram_inverse = inverse(torch.bmm(halves.mT, halves))
        if not self.problem.is_full:  # D_j cancels, and the blocks do not meet
            state.right += torch.bmm(gram_inverse, torch.bmm(halves.mT, self._cols(error)))
            return
        force = error @ self.problem.moment
        moved = self.one  # takes the place of A S block by block
        for j in range(self.rights):
            span, done = self._span(j), slice(0, j * self.block)
            force[:, span] -= moved[:, done] @ self.problem.moment[done, span]
            change = gram_inverse[j] @ (halves[j].T @ force[:, span]) @ self.inverse_moments[j]
            state.right[j] += change
            moved[:, span] = halves[j] @ change

    def step_left(self, state: State) -> None:
        """Minimise over A; leaves the force F in `two` and the loss in the state."""
        half = self._right(state.core, state.right, self.one)  # S B
        weighted = self.problem.times_moment(half)
        halves, weights = self._rows(half), self._rows(weighted)
        gram = torch.bmm(weights, halves.mT)
        pull = (
            self.pull
            if self.problem.is_full
            else torch.mul(self.problem.target, self.problem.moment, out=self.two)
        )
        numerator = torch.bmm(self._rows(pull), halves.mT)
        numerator -= torch.bmm(state.left, gram)
        state.left += torch.bmm(numerator, inverse(gram))
        torch.sub(pull, self._left(state.left, weighted), out=self.two)
        error = self.problem.target - self._left(state.left, half)
        state.loss = error.mul_(self.two).sum(dtype=torch.float64)

    def step_core(self, state: State) -> None:
        """One sweep over the groups of the core; needs the force in `two` and the loss."""
        left_t, right_t = state.left.mT, state.right.mT
        gram_left = torch.bmm(left_t, state.left)
        gram_right = torch.bmm(torch.bmm(state.right, self.moments), right_t)
        # R = A^T F B^T, the force in the core's own coordinates.
        residual = self._right(self._left(left_t, self.two, self.one), right_t, self.two)
        if not self.problem.is_full:
            before = self.one.copy_(state.core)
            sweep(residual, state.core, state.choice, gram_left, gram_right)
            change = torch.sub(state.core, before, out=before)
            curved = self._right(self._left(gram_left, change), gram_right)
            state.loss = state.loss - _gain(change, residual, curved)
            return
        coupling = self._right(self.problem.moment, right_t)
        coupling = self._left(state.right, coupling)  # B X B^T
        inverses = pair_inverses(gram_right)
        moved = self.one  # G dS
        quarter = self.block // 4
        for j in range(self.rights):
            span, done = self._span(j), slice(0, j * self.block)
            pairs = slice(j * quarter, (j + 1) * quarter)
            rest = residual[:, span] - moved[:, done] @ coupling[done, span]
            core = state.core[:, span].contiguous()
            choice = state.choice[:, pairs].contiguous()
            right, pair = gram_right[j : j + 1], inverses[j : j + 1]
            sweep(rest, core, choice, gram_left, right, inverses=pair)
            change = core - state.core[:, span]
            pushed = self._left(gram_left, change)
            state.loss = state.loss - _gain(change, rest, pushed @ right[0])
            moved[:, span] = pushed
            state.core[:, span] = core
            state.choice[:, pairs] = choice

    def _error(self, state: State) -> Tensor:
        self._left(state.left, state.core, self.one)
        self._right(self.one, state.right, self.two)
        return torch.sub(self.problem.target, self.two, out=self.two)

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
        """``matrix @ blockdiag(blocks)``."""
        out = torch.empty_like(matrix) if out is None else out
        self._cols(out).copy_(torch.bmm(self._cols(matrix), blocks))
        return out


def _gain(change: Tensor, residual: Tensor, curved: Tensor) -> Tensor:
    """What a change dS of the core takes off the loss: ``2 <dS, R> - <dS, G dS H>``."""
    return (residual.mul(2.0) - curved).mul_(change).sum(dtype=torch.float64)
