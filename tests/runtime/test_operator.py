"""The operator under compilers and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from armor.linear import ArmorLinear
from armor.runtime import use
from armor.runtime.operator import arguments, linear_operator
from armor.sparse.factors import Factors
from armor.sparse.pattern import Pattern


@pytest.fixture
def layer(make_case) -> ArmorLinear:
    case = make_case(37, 53, 8, 1, bias=True)
    return ArmorLinear.from_packed(case.layer, case.bias)


@pytest.mark.parametrize("block", [None, 8])
def test_opcheck(make_case, block: int | None) -> None:
    case = make_case(24, 20, block, 3)
    torch.library.opcheck(linear_operator, (case.x, *arguments(case.call)))
    torch.library.opcheck(linear_operator, (case.x.requires_grad_(), *arguments(case.call)))


@pytest.mark.parametrize("pattern", [Pattern(4, 8), Pattern(1, 4), Pattern(0, 0, 75)], ids=str)
def test_other_patterns(pattern: Pattern) -> None:
    """Alone, under a compiler, and backwards."""
    core = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(6, 16, dtype=torch.bool)
    if pattern.is_unstructured:
        mask.view(-1)[::4] = True
    else:
        mask.view(6, -1, pattern.group)[..., : pattern.kept] = True
    core *= mask
    layer = ArmorLinear.from_factors(Factors(core, mask, pattern=pattern))
    x = torch.randn(3, 16, requires_grad=True)
    torch.testing.assert_close(layer(x), x @ core.T)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    torch.testing.assert_close(gradient, core.sum(0).expand(3, 16))
    torch.library.opcheck(linear_operator, (x.detach(), *arguments(layer.call())))
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), x @ core.T)
    with use("cpu"), torch.no_grad():
        torch.testing.assert_close(layer(x), x @ core.T)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_no_graph_breaks(layer: ArmorLinear, compiler: str) -> None:
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(37, 5)).requires_grad_(False)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    for shape in ((1, 53), (4, 53), (70, 53), (2, 3, 53)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))


def test_the_backend_is_chosen_without_recompiling(layer: ArmorLinear) -> None:
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=count, dynamic=True)
    with torch.no_grad():
        for batch in (2, 40, 100):
            compiled(torch.randn(batch, 53))
        with use("reference"):
            compiled(torch.randn(5, 53))
    assert len(graphs) == 1


def test_the_gradient_of_the_input(layer: ArmorLinear) -> None:
    x = torch.randn(3, 53, requires_grad=True)
    upstream = torch.randn(3, 37)
    (gradient,) = torch.autograd.grad(layer(x), x, upstream)
    torch.testing.assert_close(gradient, upstream @ layer.dense_weight(), rtol=1e-4, atol=1e-4)


def test_the_gradient_of_the_weights(layer: ArmorLinear) -> None:
    for name in ("core_values", "left", "right", "bias"):
        getattr(layer, name).requires_grad_()
    layer(torch.randn(3, 53)).sum().backward()
    assert float(layer.core_values.grad.abs().sum()) > 0
    assert torch.equal(layer.bias.grad, torch.full((37,), 3.0))
