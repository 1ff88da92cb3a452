"""The paper's loop: true gradients, exact group steps, fixed seeds, never worse than its start."""

import pytest
import torch
from torch import Tensor

from armor.baselines.nowag import nowag
from armor.factorize import adam
from armor.factorize.adam import PATIENCE, factorize_adam
from armor.factorize.masks import mask_from_choice
from armor.factorize.problem import Problem
from armor.factorize.workspace import Workspace
from armor.sparse.factors import Factors
from armor.sparse.masks import nm_mask


def make_problem(rows: int, cols: int, full: bool) -> Problem:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, cols, generator=draw, dtype=torch.float64)
    inputs = torch.randn(4 * cols, cols, generator=draw, dtype=torch.float64)
    inputs = inputs @ torch.randn(cols, cols, generator=draw, dtype=torch.float64)
    problem = Problem(weight, inputs.T @ inputs / len(inputs))
    return problem if full else Problem(weight, problem.mean_square)


def make_loop(full: bool) -> tuple[Workspace, adam._Loop]:
    """A loop a few iterations in, on a matrix that needs padding."""
    problem = make_problem(40, 56, full)
    work = Workspace(problem, 16)
    loop = adam._Loop(work, work.start(nowag(problem)), seed=0)
    for _ in range(5):
        loop.iterate()
    return work, loop


def loss_of(work: Workspace, left: Tensor, core: Tensor, right: Tensor) -> Tensor:
    weight = torch.block_diag(*left) @ core @ torch.block_diag(*right)
    error = work.problem.target - weight
    return (work.problem.times_moment(error) * error).sum()


@pytest.mark.parametrize("full", [False, True])
def test_losses_and_gradients_are_those_of_the_point(full: bool) -> None:
    """What the loop carries from step to step agrees with automatic differentiation."""
    work, loop = make_loop(full)
    for _ in range(3):
        loss = loop.iterate()
        point = [each.clone().requires_grad_() for each in (loop.left, loop.core, loop.right)]
        expected = loss_of(work, *point)
        assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-12)
        expected.backward()
        for new, own in zip(point, (loop.left, loop.core, loop.right), strict=True):
            gradient = new.grad * loop.mask if new is point[1] else new.grad
            torch.testing.assert_close(-2 * own.grad, gradient, rtol=1e-9, atol=1e-8)
        torch.testing.assert_close(-2 * loop.residual, point[1].grad, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("full", [False, True])
def test_core_step_sets_one_group_of_each_block_and_never_raises_the_loss(full: bool) -> None:
    work, loop = make_loop(full)
    loop.adam.step()
    before = loop._forward()
    loop._update_residual()
    core = loop.core.clone()
    gain = loop._core_step()
    assert gain > 0
    after = loss_of(work, loop.left, loop.core, loop.right)
    torch.testing.assert_close(before - gain, after, rtol=1e-12, atol=0)
    moved = (loop.core != core).view(work.row_blocks, 16, work.col_blocks, 4, 4).any(-1)
    assert moved.sum((1, 3)).max() == 1
    assert torch.equal(loop.mask, mask_from_choice(loop.choice).double())
    assert not loop.core[loop.mask == 0].any()


def test_groups_are_drawn_by_the_size_of_their_gradient() -> None:
    _, loop = make_loop(full=False)
    sizes = loop._by_groups(loop.residual).abs().sum(-1)[1, :, 2].flatten()
    counts = torch.zeros_like(sizes)
    for _ in range(4000):
        row, group = loop._draw()
        counts[row[1, 2] * 4 + group[1, 2]] += 1
    expected = sizes / sizes.sum() * 4000
    # Chi squared with 63 degrees of freedom: below 104 in 99.9 % of draws.
    assert ((counts - expected).square() / expected).sum() < 104


@pytest.mark.parametrize("full", [False, True])
def test_result_is_better_and_two_of_four(full: bool) -> None:
    problem = make_problem(40, 56, full)
    start = nowag(problem)
    heard: list[float] = []
    factors, losses = factorize_adam(problem, 8, [start], 250, on_iteration=heard.append)
    zero = problem.loss(torch.zeros_like(problem.target))
    assert losses[0] == pytest.approx(problem.loss(start.core) / zero)
    assert problem.loss(factors.dense()) / zero == pytest.approx(min(losses), rel=1e-3)
    assert min(losses) < 0.95 * losses[0]
    assert [heard[99], heard[199], heard[249]] == losses[1:]
    assert len(heard) == 250
    assert (factors.mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    assert not factors.core[~factors.mask].any()


def test_a_seed_fixes_the_result() -> None:
    problem = make_problem(16, 32, full=False)
    one, two, other = (
        factorize_adam(problem, 8, [nowag(problem)], 60, seed)[1] for seed in (3, 3, 4)
    )
    assert one == two
    assert one != other


def test_never_worse_than_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where Adam blows up."""
    monkeypatch.setattr(adam, "LEARNING_RATE", 10.0)
    problem = make_problem(16, 32, full=False)
    start = nowag(problem)
    factors, losses = factorize_adam(problem, 8, [start], 40)
    assert losses[-1] > losses[0]
    assert problem.loss(factors.dense()) == pytest.approx(problem.loss(start.core))


def test_it_gives_up_after_a_hundred_idle_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam, "LEARNING_RATE", 0.0)
    weight = make_problem(16, 32, full=False).target
    mask = nm_mask(weight.square())
    problem = Problem(weight * mask, torch.ones(32, dtype=torch.float64))
    heard: list[float] = []
    start = Factors(weight * mask, mask)
    _, losses = factorize_adam(problem, 8, [start], on_iteration=heard.append)
    assert heard == [0.0] * PATIENCE
    assert losses == [0.0, 0.0]
