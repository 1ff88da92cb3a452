"""Gradients of a pruned layer from its packed tensors: those of its factors, in any pattern."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from armor.linear import ArmorLinear, unfreeze
from armor.runtime import reference
from armor.runtime.backend import Call
from armor.sparse.factors import Factors
from armor.sparse.masks import nm_mask
from armor.sparse.pattern import Pattern

CASES = [
    (12, 16, 4, "2:4", True),
    (37, 53, 8, "2:4", True),
    (12, 16, None, "2:4", False),
    (16, 22, 8, "4:8", True),
    (9, 14, 4, "50%", False),
]


def layer(rows: int, cols: int, block: int | None, pattern: str, bias: bool) -> ArmorLinear:
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    core, form = random(rows, cols), Pattern.parse(pattern)
    if form.is_unstructured:
        mask = core > core.median()
    else:
        mask = nm_mask(core.abs(), form.kept, form.group)
    left = right = None
    if block is not None:
        left, right = (random(-(-n // block), block, block) for n in (rows, cols))
    factors = Factors(core * mask, mask, left, right, form)
    return ArmorLinear.from_factors(factors, random(rows) if bias else None)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_plain_autograd(case: Any) -> None:
    """The reference backend is differentiable by itself."""
    module = layer(*case)
    x = torch.randn(7, case[1], dtype=torch.float64)
    weights = {n: p for n, p in module.named_parameters() if p.is_floating_point()}

    def gradients(run: Any) -> list[Tensor]:
        given = x.clone().requires_grad_()
        y = run(given)
        wanted = [given, *weights.values()]
        return list(torch.autograd.grad((y.sin() * y).sum(), wanted))

    unfreeze(module)
    assert not module.core_indices.requires_grad
    found = gradients(module)
    expected = gradients(lambda x: reference.matmul(x, Call(module.packed(), module.bias)))
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trained", ["core_values", "left", "right", "bias"])
def test_each_part_alone(trained: str) -> None:
    module = layer(37, 53, 8, "2:4", True)
    getattr(module, trained).requires_grad_()
    x = torch.randn(2, 3, 53, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda _: module(x), getattr(module, trained), atol=1e-6, rtol=1e-4
    )


def test_what_is_kept_for_the_gradients_is_packed() -> None:
    module = layer(64, 64, 8, "2:4", False)
    unfreeze(module)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(torch.randn(2, 64, dtype=torch.float64))
    assert kept
    assert max(tensor.numel() for tensor in kept) <= 64 * 64 // 2  # the packed values


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [True, False])
def test_autocast_is_as_for_a_linear(
    weights: torch.dtype, given: torch.dtype, frozen: bool
) -> None:
    module = layer(12, 16, 4, "2:4", True).to(weights)
    if not frozen:
        unfreeze(module)
    x = torch.randn(5, 16, dtype=given, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == given
    exact = x.detach().double() @ module.dense_weight().detach().double().T + module.bias.double()
    torch.testing.assert_close(y.double(), exact.detach(), rtol=0.05, atol=0.3)
    if not frozen:
        assert module.core_values.grad.dtype == weights
