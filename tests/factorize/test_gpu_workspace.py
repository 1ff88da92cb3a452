"""The steps of a GPU, with few launches and no copies, end where those of the CPU do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from armor.baselines.nowag import nowag
from armor.factorize.gpu_workspace import GpuWorkspace
from armor.factorize.kernels.reference import sweep_block, sweep_two_columns
from armor.factorize.problem import Problem
from armor.factorize.workspace import Workspace
from armor.sparse.pattern import Pattern


@pytest.mark.parametrize("cols", [8, 40, 64])
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_it_ends_at_the_same_point(
    cols: int, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (Workspace, GpuWorkspace):
        monkeypatch.setattr(kind, "panel_columns", 24)  # several panels, the last one short
    monkeypatch.setattr(GpuWorkspace, "most_blocks", 0)  # columns of blocks in turn
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(32, cols, generator=draw, dtype=torch.float64)
    inputs = torch.randn(300, cols, generator=draw, dtype=torch.float64)
    inputs += torch.randn(300, 1, generator=draw, dtype=torch.float64)
    problem = Problem(target, inputs.T @ inputs / 300)
    form = Pattern.parse(pattern)
    works = [kind(problem, 8, form) for kind in (Workspace, GpuWorkspace)]
    states = [work.start(nowag(problem, form)) for work in works]
    generators = [torch.Generator().manual_seed(1) for _ in works]
    for turn in range(6):
        for work, state, generator in zip(works, states, generators, strict=True):
            if turn < 3:
                work.anneal(state, 0.5, generator)
            elif turn < 5:
                work.iterate(state)
            else:  # one by one, as where factors are rounded in between
                work.step_right(state)
                state.right.mul_(1.01)
                work.step_left(state)
                work.measure(state)
                work.step_core(state)
        plain, in_place = states
        assert torch.equal(plain.choice, in_place.choice)
        for name in ("core", "left", "right", "loss"):
            torch.testing.assert_close(getattr(in_place, name), getattr(plain, name))
        if turn >= 3:  # what the gains say is the loss
            assert float(works[1].loss(in_place)) == pytest.approx(float(in_place.loss))


@pytest.fixture
def stays(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What was said of each second column of blocks."""
    seen: list[Tensor] = []
    original = GpuWorkspace._second_stays

    def recorded(*arguments: Any) -> Tensor:
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr(GpuWorkspace, "_second_stays", recorded)
    monkeypatch.setattr(GpuWorkspace, "panel_columns", 24)
    return seen


def coupled_problem(rows: int, cols: int, block: int) -> Problem:
    """Neighbouring blocks of inputs are nearly the same, so that two columns undo each other."""
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(rows, cols, generator=draw, dtype=torch.float64)
    inputs = torch.randn(300, cols, generator=draw, dtype=torch.float64)
    inputs[:, block : 2 * block] = inputs[:, :block] + 0.3 * inputs[:, block : 2 * block]
    return Problem(target, inputs.T @ inputs / 300)


def test_two_columns_at_once_are_the_references(stays: list[Tensor]) -> None:
    size = 8
    problem = coupled_problem(32, 40, size)
    work = GpuWorkspace(problem, size)
    state = work.start(nowag(problem))
    for _ in range(2):
        state.core += 0.3 * torch.randn_like(state.core) * (state.core != 0)
        work.measure(state)
        expected, codes = state.core.numpy().copy(), state.choice.numpy().copy()
        left, right = (torch.block_diag(*blocks) for blocks in (state.left, state.right))
        error = problem.target - left @ state.core @ right
        residual = left.T @ error @ problem.moment @ right.T
        grams = (state.left.mT @ state.left).numpy()
        gram_right = (right @ problem.moment @ right.T).numpy()
        start = expected.copy()
        for first in (0, 16, 24):  # panels of three blocks: two and one, then two
            cols = slice(first, min(first + 16, 24 if first < 24 else 40))
            some = slice(cols.start // 4, cols.stop // 4)
            before = slice(0, cols.start)
            for i, gram in enumerate(grams):
                rows = slice(size * i, size * (i + 1))
                changed = gram @ (expected[rows, before] - start[rows, before])
                running = residual.numpy()[rows, cols] - changed @ gram_right[before, cols]
                sweep = sweep_two_columns if cols.stop - cols.start > size else sweep_block
                own = expected[rows, cols], codes[rows, some], gram, gram_right[cols, cols]
                sweep(running, *own)
        work.step_core(state)
        np.testing.assert_allclose(state.core.numpy(), expected, rtol=1e-9, atol=1e-12)
        assert np.array_equal(state.choice.numpy(), codes)
    said = torch.cat([each.flatten() for each in stays])
    assert said.any()
    assert not said.all()


def test_two_columns_at_once_never_raise_the_loss(stays: list[Tensor]) -> None:
    problem = coupled_problem(32, 40, 8)
    work = GpuWorkspace(problem, 8)
    state = work.start(nowag(problem))
    work.measure(state)
    losses = [float(state.loss)]
    for _ in range(20):
        work.iterate(state)
        losses.append(float(state.loss))
        assert losses[-1] == pytest.approx(float(work.loss(state)), rel=1e-9)
    assert losses == sorted(losses, reverse=True)
    assert stays


def test_columns_take_turns_where_one_is_enough_for_a_gpu(stays: list[Tensor]) -> None:
    """Or where more than the loss decides: a price of kept entries, a grid of values."""
    problem = coupled_problem(65 * 8, 40, 8)
    work = GpuWorkspace(problem, 8)
    state = work.start(nowag(problem))
    work.iterate(state)
    assert not stays
    small = coupled_problem(32, 40, 8)
    half = Pattern.parse("50%")
    work = GpuWorkspace(small, 8, half)
    state = work.start(nowag(small, half))
    work.measure(state)
    work._sweep_core(state, price=torch.tensor(0.1, dtype=torch.float64))
    assert not stays
