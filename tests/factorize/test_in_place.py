"""The path of a GPU through a full moment, few launches and all in place, is that of the CPU."""

from __future__ import annotations

import pytest
import torch

from armor.baselines.nowag import nowag
from armor.factorize import workspace as module
from armor.factorize.problem import Problem
from armor.factorize.workspace import Workspace
from armor.sparse.pattern import Pattern


@pytest.mark.parametrize("cols", [8, 40, 64])
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_it_ends_at_the_same_point(
    cols: int, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PANEL", 24)  # several panels, the last one short
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(32, cols, generator=draw, dtype=torch.float64)
    inputs = torch.randn(300, cols, generator=draw, dtype=torch.float64)
    inputs += torch.randn(300, 1, generator=draw, dtype=torch.float64)
    problem = Problem(target, inputs.T @ inputs / 300)
    form = Pattern.parse(pattern)
    works = [Workspace(problem, 8, form) for _ in range(2)]
    works[1]._in_place = True
    states = [work.start(nowag(problem, form)) for work in works]
    generators = [torch.Generator().manual_seed(1) for _ in works]
    for turn in range(6):
        for work, state, generator in zip(works, states, generators, strict=True):
            if turn < 3:
                work.anneal(state, 0.5, generator)
            else:
                work.iterate(state)
        plain, in_place = states
        assert torch.equal(plain.choice, in_place.choice)
        for name in ("core", "left", "right", "loss"):
            torch.testing.assert_close(getattr(in_place, name), getattr(plain, name))
        if turn >= 3:  # what the gains say is the loss
            assert float(works[1].loss(in_place)) == pytest.approx(float(in_place.loss))
