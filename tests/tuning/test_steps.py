"""A step of the fused optimiser is that of plain Adam, whatever the strides of gradients."""

from __future__ import annotations

import torch

from armor.linear import ArmorLinear
from armor.sparse.factors import Factors
from armor.sparse.masks import nm_mask
from armor.sparse.pattern import Pattern
from armor.tuning.merged import MergedLinear
from armor.tuning.steps import Steps


def test_each_part_moves_along_its_own_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    core = torch.randn(16, 24, generator=generator)
    mask = nm_mask(core.abs(), 2, 4)
    left, right = (torch.randn(n, 8, 8, generator=generator) for n in (2, 3))
    given = Factors(core * mask, mask, left, right, Pattern.parse("2:4"))
    layer = MergedLinear(ArmorLinear.from_factors(given, None))
    trained = dict(layer.named_parameters())
    assert set(trained) == {"values", "left", "right"}
    start = {name: p.detach().double() for name, p in trained.items()}
    x, goal = torch.randn(64, 24, generator=generator), torch.randn(64, 16, generator=generator)
    layer.merge()
    (layer(x) - goal).square().sum().backward()
    layer.pull_back()
    gradients = {name: p.grad.double() for name, p in trained.items() if p.grad is not None}
    Steps(trained, 1e-2, 1).take(0)
    for name, parameter in trained.items():
        # The first step of Adam: each number by the step size, against the sign of its gradient.
        size = 1e-2 * start[name].square().mean().sqrt()
        moved = parameter.detach().double() - start[name]
        torch.testing.assert_close(moved, -size * gradients[name].sign(), rtol=1e-3, atol=1e-6)
