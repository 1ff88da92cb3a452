"""The exact solver: block coordinate descent in closed form, extrapolated, with its certificate.

One iteration minimises the proxy loss exactly over B, then A, then every group of the core in
turn, so the loss cannot rise. Plain alternation crawls at the end; an extrapolated point is tried
first and kept only if it is better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from armor.factorize.core import choice_of, mask_of, sweep
from armor.factorize.factors import Factors
from armor.factorize.problem import Problem
from armor.factorize.wrappers import factor, solve_left, solve_right


@dataclass
class State:
    """A point (A, B, S): left (i,b,b), right (j,b,b), core (i*b, j*b), choice uint8."""

    left: Tensor
    right: Tensor
    core: Tensor
    choice: Tensor
    loss: float = float("inf")

    def copy(self) -> State:
        return State(
            self.left.clone(), self.right.clone(), self.core.clone(), self.choice.clone(), self.loss
        )

    def beyond(self, before: State, step: float) -> State:
        """The point `step` further along the move from `before` to here."""
        kept = (self.choice == before.choice).unsqueeze(-1)
        move = (self.core - before.core).unflatten(1, (-1, 4)) * kept
        return State(
            self.left + step * (self.left - before.left),
            self.right + step * (self.right - before.right),
            self.core + step * move.flatten(1),
            self.choice.clone(),
        )


class Workspace:
    """The padded problem and the steps on it."""

    def __init__(self, problem: Problem, block: int) -> None:
        rows, cols = problem.target.shape
        self.block = block
        self.rows, self.cols = rows, cols
        pad_r, pad_c = -rows % block, -cols % block
        pad = torch.nn.functional.pad
        self.target = pad(problem.target, (0, pad_c, 0, pad_r)).contiguous()
        moment = problem.moment
        moment = pad(moment, (0, pad_c, 0, pad_c) if problem.is_full else (0, pad_c))
        self.problem = Problem(self.target, moment.contiguous())
        self.lefts = self.target.shape[0] // block
        self.rights = self.target.shape[1] // block
        self.is_full = problem.is_full
        if self.is_full:
            self.pull = self.problem.times_moment(self.target)  # T X
            self.moments = torch.stack(
                [moment[self.span(j), self.span(j)] for j in range(self.rights)]
            )
            self.moment_factor = factor(self.moments)
        else:
            self.moments = torch.diag_embed(moment.view(self.rights, block))

    def span(self, j: int) -> slice:
        return slice(j * self.block, (j + 1) * self.block)

    def rows_of(self, matrix: Tensor) -> Tensor:
        """(i*b, cols) seen as (i, b, cols)."""
        return matrix.view(self.lefts, self.block, -1)

    def cols_of(self, matrix: Tensor) -> Tensor:
        """(rows, j*b) seen as (j, rows, b)."""
        return matrix.view(matrix.shape[0], -1, self.block).transpose(0, 1)

    def apply_left(self, left: Tensor, matrix: Tensor) -> Tensor:
        return torch.bmm(left, self.rows_of(matrix)).view(matrix.shape)

    def apply_right(self, matrix: Tensor, right: Tensor) -> Tensor:
        return torch.bmm(self.cols_of(matrix), right).transpose(0, 1).reshape(matrix.shape)

    def product(self, state: State) -> Tensor:
        return self.apply_right(self.apply_left(state.left, state.core), state.right)

    def loss(self, state: State) -> float:
        return self.problem.loss(self.product(state))

    # --- the three exact steps; each updates `state` in place -------------------------------

    def step_right(self, state: State) -> None:
        half = self.apply_left(state.left, state.core)
        halves = self.cols_of(half)
        error = self.target - self.apply_right(half, state.right)
        gram = torch.bmm(halves.mT, halves)
        if not self.is_full:
            state.right += solve_left(gram, torch.bmm(halves.mT, self.cols_of(error)))
            return
        force = error @ self.problem.moment
        lower = factor(gram)
        for j in range(self.rights):
            numerator = halves[j].T @ force[:, self.span(j)]
            change = torch.cholesky_solve(numerator, lower[j])
            change = torch.cholesky_solve(change.T, self.moment_factor[j]).T
            state.right[j] += change
            force -= (halves[j] @ change) @ self.problem.moment[self.span(j)]

    def step_left(self, state: State) -> Tensor:
        """Returns the force ``(T - W_hat) X`` after the step."""
        half = self.apply_right(state.core, state.right)
        weighted = self.problem.times_moment(half)
        halves, weights = self.rows_of(half), self.rows_of(weighted)
        pull = self.pull if self.is_full else self.problem.times_moment(self.target)
        force = pull - self.apply_left(state.left, weighted)
        gram = torch.bmm(weights, halves.mT)
        numerator = torch.bmm(self.rows_of(force), halves.mT)
        state.left += solve_right(numerator, gram)
        return pull - self.apply_left(state.left, weighted)

    def step_core(self, state: State, force: Tensor) -> None:
        left_t = state.left.mT
        gram_left = torch.bmm(left_t, state.left)
        gram_right = torch.bmm(torch.bmm(state.right, self.moments), state.right.mT)
        if not self.is_full:
            residual = self.apply_right(self.apply_left(left_t, force), state.right.mT)
            sweep(residual, state.core, state.choice, gram_left, gram_right)
            return
        quarter = self.block // 4
        for j in range(self.rights):
            span = self.span(j)
            residual = self.apply_left(left_t, force[:, span] @ state.right[j].T)
            core = state.core[:, span].contiguous()
            choice = state.choice[:, j * quarter : (j + 1) * quarter].contiguous()
            sweep(residual, core, choice, gram_left, gram_right[j : j + 1])
            change = self.apply_left(state.left, core - state.core[:, span]) @ state.right[j]
            force -= change @ self.problem.moment[span]
            state.core[:, span] = core
            state.choice[:, j * quarter : (j + 1) * quarter] = choice

    def iterate(self, state: State) -> State:
        """One full iteration from `state`, as a new state with its loss."""
        new = state.copy()
        self.step_right(new)
        self.step_core(new, self.step_left(new))
        new.loss = self.loss(new)
        return new


DEFAULT_ITERATIONS = 60


def factorize(
    problem: Problem,
    block: int,
    starts: list[Factors],
    iterations: int = DEFAULT_ITERATIONS,
    on_iteration: Callable[[float], None] | None = None,
) -> tuple[Factors, list[float]]:
    """Factorise one matrix from the best of `starts`.

    Args:
        problem: target and moment, float32 or float64.
        block: wrapper block b, a multiple of 4; a last partial block is padded.
        starts: sparse matrices without wrappers; the result is never worse than any of them.
        iterations: ceiling.
        on_iteration: called with the relative loss after each iteration.

    Returns:
        The factors, and the loss at the start and after each iteration relative to that of
        ``W_hat = 0``: a sequence that never rises.
    """
    work = Workspace(problem, block)
    zero = problem.loss(torch.zeros_like(problem.target)) or 1.0
    state = min((_initial(work, start) for start in starts), key=lambda state: state.loss)
    losses = [state.loss / zero]
    before: State | None = None
    step = 1.0
    for _ in range(iterations):
        new = None
        if before is not None:
            new = work.iterate(state.beyond(before, step))
            step = min(1.0, step * 1.1) if new.loss < state.loss else max(0.3, step * 0.6)
        if new is None or new.loss >= state.loss:
            new = work.iterate(state)
        if new.loss > state.loss:  # rounding, at the very end
            break
        before, state = state, new
        losses.append(state.loss / zero)
        if on_iteration is not None:
            on_iteration(losses[-1])
    core = state.core[: work.rows, : work.cols].contiguous()
    mask = mask_of(state.choice)[: work.rows, : work.cols].contiguous()
    return Factors(core, mask, state.left, state.right), losses


def _initial(work: Workspace, start: Factors) -> State:
    target = work.target
    eye = torch.eye(work.block, dtype=target.dtype, device=target.device)
    pad = (0, target.shape[1] - work.cols, 0, target.shape[0] - work.rows)
    mask = torch.nn.functional.pad(start.mask, pad)
    if any(pad):  # padding keeps (zero) values like everything else
        from armor.sparsity import nm_mask

        mask = nm_mask(mask.to(target.dtype))
    state = State(
        eye.repeat(work.lefts, 1, 1),
        eye.repeat(work.rights, 1, 1),
        torch.nn.functional.pad(start.core, pad).contiguous(),
        choice_of(mask),
    )
    state.loss = work.loss(state)
    return state
