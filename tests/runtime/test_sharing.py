"""Layers with the same input run together, and never wrongly."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from armor.linear import ArmorLinear, prepare
from armor.runtime import sharing, use
from armor.runtime.operator import arguments, linears_operator
from armor.runtime.registry import load
from armor.runtime.sharing import SharedInputs

needs_triton = pytest.mark.skipif(
    not load("triton").is_available(), reason="triton is not installed"
)


class Attention(nn.Module):
    """Query, key and value of one input, and an output projection of as many inputs."""

    def __init__(self, make_case, block: int | None = 16, bias: bool = False) -> None:
        super().__init__()

        def layer(rows: int, seed: int) -> ArmorLinear:
            case = make_case(rows, 32, block, 1, bias=bias, seed=seed)
            return ArmorLinear.from_packed(case.layer, case.bias)

        self.q, self.k, self.v = layer(32, 1), layer(16, 2), layer(24, 3)
        self.o = layer(32, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q = self.q(x)
        return q, self.k(x), self.v(x), self.o(q.relu())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each joint call computed."""
    seen: list[int] = []
    original = sharing.linears

    def counted(x, calls):
        seen.append(len(calls))
        return original(x, calls)

    monkeypatch.setattr(sharing, "linears", counted)
    return seen


@pytest.fixture(params=["cpu", pytest.param("triton", marks=needs_triton)])
def attention(make_case, request) -> Attention:
    """Prepared for sharing, and running on a backend that does and one that does not."""
    module = Attention(make_case, bias=request.param == "cpu")
    with use("triton"):
        prepare(module)
    with use(request.param):
        yield module


def alone(module: Attention, x: Tensor) -> tuple[Tensor, ...]:
    q = module.q.alone(x)
    return q, module.k.alone(x), module.v.alone(x), module.o.alone(q.relu())


def test_learns_which_layers_share_and_computes_the_same(attention: Attention, calls) -> None:
    for batch in (1, 3, 2):
        x = torch.randn(batch, 5, 32)
        for found, expected in zip(attention(x), alone(attention, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert calls == [3, 3]  # not at the first call, which taught it; never the output projection
    assert attention.q.shared[0]._waiting is None


def test_another_tensor_is_computed_anew(attention: Attention) -> None:
    x = torch.randn(2, 32)
    attention(x)
    attention.q(x)
    other = x + 1
    torch.testing.assert_close(attention.k(other), attention.k.alone(other))
    torch.testing.assert_close(attention.v(x), attention.v.alone(x), rtol=1e-5, atol=1e-5)


def test_a_wrong_guess_is_given_up(attention: Attention, calls) -> None:
    x = torch.randn(2, 32)
    attention(x)
    for _ in range(3):
        attention.q(x.clone())  # nobody asks for k and v any more
    assert calls == [3]
    attention(x)
    attention(x)
    assert calls == [3]


def test_gradients_flow(attention: Attention) -> None:
    x = torch.randn(2, 32)
    attention(x)
    x = torch.randn(2, 32, requires_grad=True)
    (found,) = torch.autograd.grad(sum(y.sum() for y in attention(x)), x)
    (expected,) = torch.autograd.grad(sum(y.sum() for y in alone(attention, x)), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_layers_that_moved_run_alone(attention: Attention, calls) -> None:
    x = torch.randn(2, 32)
    attention(x)
    attention.k.to("meta")
    torch.testing.assert_close(attention.q(x), attention.q.alone(x), rtol=1e-5, atol=1e-5)
    assert calls == []


def test_copies_and_pickles(attention: Attention) -> None:
    x = torch.randn(2, 32)
    attention(x)
    for twin in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert twin.q.shared[0] is twin.k.shared[0] is not attention.q.shared[0]
        assert isinstance(twin.q.shared[0], SharedInputs)
        for found, expected in zip(twin(x), alone(attention, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_graph_breaks_and_one_operator_for_all(attention: Attention) -> None:
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(attention, fullgraph=True, backend=keep)
    x = torch.randn(3, 32)
    with torch.no_grad():
        attention(x)  # learns
        for found, expected in zip(compiled(x), attention(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    names = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("armor.linears" in name for name in names) == 1
    assert sum("armor.linear." in name or name.endswith("armor.linear") for name in names) == 1


def test_opcheck(make_case) -> None:
    cases = [make_case(rows, 20, 8, 3, seed=rows) for rows in (24, 9)]
    columns = zip(*[arguments(case.call) for case in cases], strict=True)
    torch.library.opcheck(linears_operator, (cases[0].x, *map(list, columns)))


def test_only_backends_that_gain_from_it_share(make_case, calls) -> None:
    for name, expected in (("reference", []), ("cpu", [3])):
        module = Attention(make_case)
        with use(name):
            prepare(module)
            for _ in range(2):
                module(torch.randn(2, 32))
        assert calls == expected


@needs_triton
def test_layers_share_on_the_device_they_move_to(make_case, calls) -> None:
    """Loaded where nothing gains from it, moved to where it does."""
    module = Attention(make_case)
    with use("reference"):
        prepare(module)
    with use("triton"):
        module.to("cpu", torch.float64).to(torch.float32)
        for _ in range(2):
            module(torch.randn(2, 32))
    assert calls == [3]
