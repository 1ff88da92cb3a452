"""The steps of a GPU, with few launches and no copies, end where those of the CPU do."""

from __future__ import annotations

import pytest
import torch

from armor.baselines.nowag import nowag
from armor.factorize.gpu_workspace import GpuWorkspace
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
