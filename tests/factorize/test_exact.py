"""The exact solver: every step is a minimiser, every run falls, nothing ends above its start."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from armor.baselines.nowag import nowag
from armor.baselines.sparsegpt import sparsegpt
from armor.calibrate.targets import regularised
from armor.factorize import exact
from armor.factorize.exact import factorize
from armor.factorize.problem import Problem
from armor.factorize.state import State
from armor.factorize.workspace import Workspace
from armor.sparse.factors import Factors
from armor.sparse.masks import nm_mask


def make_problem(
    rows: int, cols: int, full: bool, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Problem:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=draw, dtype=torch.float64)
    inputs = torch.randn(4 * cols, cols, generator=draw, dtype=torch.float64)
    inputs = inputs @ torch.randn(cols, cols, generator=draw, dtype=torch.float64)
    moment = inputs.T @ inputs / len(inputs) + 0.01 * torch.eye(cols, dtype=torch.float64)
    problem = Problem(weight.to(dtype), moment.to(dtype))
    return problem if full else Problem(problem.target, problem.mean_square)


def worked(problem: Problem, block: int = 8) -> tuple[Workspace, State]:
    """A state in general position: two iterations in."""
    work = Workspace(problem, block)
    state = work.start(nowag(problem))
    for _ in range(2):
        work.iterate(state)
    return work, state


def loss_of(work: Workspace, left: Tensor, core: Tensor, right: Tensor) -> Tensor:
    error = work.problem.target - Factors(core, core != 0, left, right).dense()
    return (work.problem.times_moment(error) * error).sum()


@pytest.mark.parametrize("full", [False, True])
def test_each_step_lowers_the_loss_and_the_tracked_loss_is_the_true_one(full: bool) -> None:
    work, state = worked(make_problem(24, 32, full))
    before = float(state.loss)
    work.step_right(state)
    after_right = float(work.loss(state))
    work.step_left(state)
    after_left = float(state.loss)
    assert after_left == pytest.approx(float(work.loss(state.copy())), rel=1e-9)
    work.step_left(state)  # restores the force that `loss` overwrote; changes nothing else
    work.step_core(state)
    after_core = float(state.loss)
    assert after_core == pytest.approx(float(work.loss(state)), rel=1e-9)
    assert before > after_right > after_left > after_core


@pytest.mark.parametrize("full", [False, True])
def test_left_step_is_the_minimiser(full: bool) -> None:
    """The gradient over A is zero after the step."""
    work, state = worked(make_problem(24, 32, full))
    work.step_left(state)
    left = state.left.clone().requires_grad_()
    loss = loss_of(work, left, state.core, state.right)
    (gradient,) = torch.autograd.grad(loss, left)
    assert gradient.abs().max() < 1e-6 * work.problem.target.square().sum()


@pytest.mark.parametrize("full", [False, True])
def test_right_step_is_the_minimiser_of_its_last_block(full: bool) -> None:
    """Block after block over the columns: the last one solved has zero gradient."""
    work, state = worked(make_problem(24, 32, full))
    work.step_right(state)
    right = state.right.clone().requires_grad_()
    loss = loss_of(work, state.left, state.core, right)
    (gradient,) = torch.autograd.grad(loss, right)
    assert gradient[-1].abs().max() < 1e-6 * work.problem.target.square().sum()


@st.composite
def cases(draw: st.DrawFn) -> tuple[Problem, int]:
    rows = draw(st.integers(1, 40))
    cols = draw(st.integers(4, 40))
    full = draw(st.booleans())
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    problem = make_problem(rows, cols, full, dtype, draw(st.integers(0, 10_000)))
    target, moment = problem.target, problem.moment
    target = target * 10.0 ** draw(st.integers(-4, 4))
    moment = moment * 10.0 ** draw(st.integers(-6, 6))
    for dead in draw(st.sets(st.integers(0, cols - 1), max_size=3)):
        if full:
            moment[dead] = 0
            moment[:, dead] = 0
        else:
            moment[dead] = 0
    for row in draw(st.sets(st.integers(0, rows - 1), max_size=2)):
        target[row] = 0
    if draw(st.booleans()):
        target[:, draw(st.integers(0, cols - 1))] = 1.0
    return Problem(target, moment), draw(st.sampled_from([4, 8, 12, 16]))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_loss_never_rises_and_never_ends_above_the_start(case: tuple[Problem, int]) -> None:
    problem, block = case
    starts = [nowag(problem)]
    if problem.is_full:
        starts.append(sparsegpt(problem))
    factors, losses = factorize(problem, block, starts, iterations=8)
    zero = problem.loss(torch.zeros_like(problem.target)) or 1.0
    assert all(after <= before for before, after in pairwise(losses))
    for start in starts:
        assert losses[-1] <= problem.loss(start.dense()) / zero * (1 + 1e-5) + 1e-12
    assert all(torch.isfinite(tensor).all() for tensor in _tensors(factors))
    assert problem.loss(factors.dense()) / zero == pytest.approx(losses[-1], rel=1e-2, abs=3e-5)
    assert not factors.core[~factors.mask].any()
    whole = factors.mask.shape[1] // 4 * 4
    assert (factors.mask[:, :whole].unflatten(1, (-1, 4)).sum(-1) == 2).all()


def _tensors(factors: Factors) -> list[Tensor]:
    assert factors.left is not None
    assert factors.right is not None
    return [factors.core, factors.left, factors.right]


def test_partial_blocks_are_padded_with_the_identity() -> None:
    factors, _ = factorize(*(lambda p: (p, 16, [nowag(p)]))(make_problem(20, 24, True)), 5)
    left, right = _tensors(factors)[1:]
    assert left.shape == (2, 16, 16)
    assert right.shape == (2, 16, 16)
    for last, used in ((left[-1], 4), (right[-1], 8)):
        eye = torch.eye(16 - used, dtype=last.dtype)
        torch.testing.assert_close(last[used:, used:], eye)
        assert not last[:used, used:].any()
        assert not last[used:, :used].any()


@pytest.mark.parametrize("full", [False, True])
def test_float32_follows_float64(full: bool) -> None:
    """Until a near-tie between two masks is decided the other way, the paths are one."""
    wide = make_problem(64, 64, full, torch.float64)
    if full:
        wide = Problem(wide.target, regularised(wide.moment, 0.5, 0.01))
    narrow = Problem(wide.target.float(), wide.moment.float())
    paths = [factorize(problem, 16, [nowag(problem)], 8)[1] for problem in (wide, narrow)]
    assert paths[1] == pytest.approx(paths[0], rel=5e-3)


def test_the_noise_depends_on_the_seed_alone() -> None:
    problem = make_problem(32, 48, True)
    one, same, other = (factorize(problem, 16, [nowag(problem)], 10, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one.core, same.core)
    assert not torch.equal(one.core, other.core)


@pytest.mark.parametrize("full", [False, True])
def test_the_noise_leads_to_lower_minima(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same number of iterations, and at the overhead of a real model's wrappers."""
    problem = make_problem(64, 64, full)
    annealed = factorize(problem, 4, [nowag(problem)])[1][-1]
    monkeypatch.setattr(exact, "ANNEALED", 0.0)
    calm = factorize(problem, 4, [nowag(problem)])[1][-1]
    assert annealed < 0.96 * calm


def test_a_representable_weight_is_found_better_than_any_baseline() -> None:
    """A target that is A S B exactly: the solver gets far below both baselines."""
    draw = torch.Generator().manual_seed(1)
    core = torch.randn(32, 32, generator=draw, dtype=torch.float64)
    core *= nm_mask(core.abs())
    left, right = (
        torch.eye(8, dtype=torch.float64)
        + 0.2 * torch.randn(4, 8, 8, generator=draw, dtype=torch.float64)
        for _ in range(2)
    )
    target = Factors(core, core != 0, left, right).dense()
    problem = Problem(target, torch.ones(32, dtype=torch.float64))
    _, losses = factorize(problem, 8, [nowag(problem)], 200)
    assert losses[-1] < 0.15 * losses[0]


@pytest.mark.parametrize("full", [False, True])
def test_a_step_made_of_rounding_errors_is_not_taken(
    full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, best = worked(make_problem(16, 16, full, torch.float32))
    other = best.copy()
    kept = best.copy()
    step = Workspace._sweep_core

    def runaway(self: Workspace, state: State, **settings: Any) -> Tensor:
        return step(self, state, **settings) + 1e9

    monkeypatch.setattr(Workspace, "_sweep_core", runaway)
    work.iterate(other)
    assert other.loss == torch.inf
    other.core.fill_(torch.inf)
    other.left.fill_(torch.nan)
    other.extrapolate_from(best, torch.zeros(()))
    for one, two in zip(other.tensors()[:4], kept.tensors()[:4], strict=True):
        assert torch.equal(one, two)
