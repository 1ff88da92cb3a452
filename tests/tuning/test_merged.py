"""A layer in training computes, and learns, what its factors say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from armor.linear import ArmorLinear
from armor.sparse.factors import Factors, block_left, block_right
from armor.sparse.masks import nm_mask
from armor.sparse.pattern import EVERYTHING, Pattern
from armor.tuning.merged import MergedLinear


def factors(rows: int, cols: int, block: int | None, pattern: str = "2:4") -> Factors:
    """Random ones."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    core = random(rows, cols)
    form = Pattern.parse(pattern)
    if form.is_unstructured:
        mask = core > core.median()
    else:
        assert form.group is not None
        mask = nm_mask(core.abs(), form.kept, form.group)
    left = right = None
    if block is not None:
        left, right = (
            random(-(-rows // block), block, block),
            random(-(-cols // block), block, block),
        )
    return Factors(core * mask, mask, left, right, form)


@pytest.mark.parametrize(
    ("rows", "cols", "block", "pattern"),
    [
        (12, 16, 4, "2:4"),
        (10, 14, 4, "2:4"),
        (12, 16, None, "2:4"),
        (8, 16, 8, "4:8"),
        (8, 10, 4, "50%"),
    ],
)
def test_the_gradients_are_those_of_the_three_products(
    rows: int, cols: int, block: int | None, pattern: str
) -> None:
    given = factors(rows, cols, block, pattern)
    layer = MergedLinear(ArmorLinear.from_factors(given, torch.randn(rows)))
    x = torch.randn(7, cols)
    layer.merge()
    loss = (layer(x) - 1).square().sum()
    loss.backward()
    layer.pull_back()

    # The plain twin, in float64: S with its zeros, A and B, step by step.
    core, *wrappers = (
        None if part is None else part.double().requires_grad_()
        for part in (given.core, given.left, given.right)
    )
    left, right = wrappers
    assert core is not None
    weight = core * given.mask
    if left is not None and right is not None:
        weight = block_right(block_left(left, weight), right)
    assert layer.bias is not None
    expected = nn.functional.linear(x.double(), weight, layer.bias.detach().double()) - 1
    expected = expected.square().sum()
    torch.autograd.backward(expected)
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-4, atol=1e-4)
    assert core.grad is not None
    torch.testing.assert_close(
        layer.values.grad, core.grad[given.mask].float(), rtol=1e-3, atol=1e-3
    )
    for own, twin in ((layer.left, left), (layer.right, right)):
        if own is not None and twin is not None:
            assert twin.grad is not None
            torch.testing.assert_close(own.grad, twin.grad.float(), rtol=1e-3, atol=1e-3)


def test_what_is_stored_is_the_layer_rounded() -> None:
    given = ArmorLinear.from_factors(factors(10, 14, 4))
    layer = MergedLinear(given)
    packed = layer.packed(torch.bfloat16)
    assert torch.equal(packed.core_indices, given.core_indices)
    assert torch.equal(packed.core_values, given.core_values.to(torch.bfloat16))
    layer.merge(torch.bfloat16)
    expected = packed.to_factors().cast(torch.float32).dense()
    torch.testing.assert_close(layer.weight.detach(), expected)
    assert packed.pattern != EVERYTHING


def test_a_layer_that_no_token_reached_has_no_gradient() -> None:
    layer = MergedLinear(ArmorLinear.from_factors(factors(8, 8, 4)))
    layer.merge()
    layer.pull_back()
    assert layer.values.grad is None
