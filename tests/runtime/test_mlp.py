"""Modules that are gated MLPs run as one; whatever is not, or not now, keeps its own forward."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaMLP

from armor.linear import ArmorLinear, prepare
from armor.runtime import mlp, use
from armor.runtime.gated import ACTIVATIONS
from armor.runtime.registry import load

pytestmark = [
    pytest.mark.skipif(not load("triton").is_available(), reason="triton is not installed"),
    # The interpreter's sigmoid of a large negative number; the quotient is right.
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
]
MANY = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(0)).bfloat16()


class Mlp(nn.Module):
    """A gated MLP; subclasses compute something else."""

    def __init__(self, make_case, activation: str = "silu", block: int = 16) -> None:
        super().__init__()

        def layer(rows: int, cols: int, seed: int) -> ArmorLinear:
            case = make_case(rows, cols, block, 1, torch.bfloat16, seed=seed)
            case.layer.core_values.mul_(0.3)
            return ArmorLinear.from_packed(case.layer)

        self.down = layer(32, 52, 3)  # not in the order of their use
        self.up = layer(52, 32, 2)
        self.gate = layer(52, 32, 1)
        self.act = ACT2FN[activation]
        self.dropout = nn.Dropout(0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(self.act(self.gate(x)) * self.up(x)))


class WithLimit(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x).clamp(max=10)) * self.up(x))


class WithFactor(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x)) * 0.9


class WithResidual(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.gate(x)) * self.up(x))


class WithTuple(Mlp):
    def forward(self, x: Tensor) -> Any:
        return self.down(self.act(self.gate(x)) * self.up(x)), None


Wholes = list[str]


@pytest.fixture
def wholes(monkeypatch: pytest.MonkeyPatch) -> Wholes:
    """The activation of each MLP that ran as one on `triton`; of a trial, too."""
    seen: Wholes = []
    backend = load("triton")
    original: Callable[..., Tensor] = backend.matmul_gated

    def counted(x: Tensor, gated: Any) -> Tensor:
        seen.append(gated.activation)
        return original(x, gated)

    monkeypatch.setattr(backend, "matmul_gated", counted)
    with use("triton"):
        yield seen


def own(module: nn.Module, x: Tensor) -> Tensor:
    """What its own forward makes of x."""
    return type(module).base.forward(module, x)


def check(found: Tensor, expected: Tensor) -> None:
    apart = (found.float() - expected.float()).norm()
    assert float(apart) <= 0.03 * float(expected.float().norm())


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("silu", "silu"),
        ("gelu", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("relu", "relu"),
        ("relu2", "relu2"),
    ],
)
def test_each_activation(make_case, wholes: Wholes, name: str, known: str) -> None:
    module = Mlp(make_case, name)
    prepare(module)
    for _ in range(2):
        check(module(MANY), own(module, MANY))
    assert set(wholes) == {known}
    assert module._armor_mlp.chosen == ("gate", "up", "down")


@pytest.mark.parametrize("name", ["quick_gelu", "tanh", "gelu_10"])
def test_an_unknown_activation(make_case, wholes: Wholes, name: str) -> None:
    module = Mlp(make_case, name)
    prepare(module)
    module(MANY)
    assert type(module) is Mlp
    assert wholes == []


@pytest.mark.parametrize("kind", [WithLimit, WithFactor, WithResidual, WithTuple])
def test_the_own_forward_is_the_judge(make_case, wholes: Wholes, kind: type[Mlp], caplog) -> None:
    module = kind(make_case)
    prepare(module)
    with caplog.at_level("DEBUG", "armor"):
        found = module(MANY)
    expected = own(module, MANY)
    assert type(found) is type(expected)
    if isinstance(found, Tensor):
        assert torch.equal(found, expected)
    assert f"{kind.__name__} is not run as one" in caplog.text
    tried = len(wholes)
    assert tried > 0
    module(MANY)
    assert len(wholes) == tried


def test_what_fails_is_left_to_the_module(make_case, monkeypatch, caplog) -> None:
    module = Mlp(make_case)
    prepare(module)

    def fail(*_: Any) -> Tensor:
        raise RuntimeError("out of resources")

    monkeypatch.setattr(load("triton"), "matmul_gated", fail)
    with use("triton"), caplog.at_level("DEBUG", "armor"):
        assert torch.equal(module(MANY), own(module, MANY))
    assert "out of resources" in caplog.text


def test_only_where_it_may(make_case, wholes: Wholes) -> None:
    """Few rows, training, autocast, gradients, hooks, other layers: the own forward."""
    module = Mlp(make_case)
    prepare(module)
    module(MANY)
    module(MANY)
    before = len(wholes)

    def runs_as_one(x: Tensor = MANY) -> bool:
        tried = len(wholes)
        module(x)
        return len(wholes) > tried

    assert runs_as_one()
    assert not runs_as_one(MANY[:, :32])
    assert not runs_as_one(MANY.clone().requires_grad_())
    assert not runs_as_one(MANY[0, 0])
    with torch.autocast("cpu", torch.bfloat16):
        assert not runs_as_one()
    module.train()
    assert not runs_as_one()
    module.eval()
    for part in (module.gate, module.up, module.down, module.act):
        hook = part.register_forward_hook(lambda *_: None)
        assert not runs_as_one()
        hook.remove()
        hook = part.register_forward_pre_hook(lambda *_: None)
        assert not runs_as_one()
        hook.remove()
    module.up.left.requires_grad_()
    assert not runs_as_one()
    module.up.left.requires_grad_(False)
    layer = module.up
    module.up = nn.Sequential(layer)  # as adapters do
    assert not runs_as_one()
    module.up = layer
    with use("reference"):
        assert not runs_as_one()
    assert runs_as_one()
    assert len(wholes) == before + 2
    prepare(module)  # again
    assert runs_as_one()
    module.up = nn.Linear(32, 52, bias=False, dtype=torch.bfloat16)
    prepare(module)
    assert type(module) is Mlp


def test_one_that_never_can_is_asked_once(
    make_case, wholes: Wholes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of two sizes: it is not looked at again for each token."""
    module, other = Mlp(make_case), Mlp(make_case, block=4)
    module.up = other.up
    prepare(module)
    asked = []
    original = mlp.gating
    monkeypatch.setattr(mlp, "gating", lambda *given: asked.append(1) or original(*given))
    for _ in range(3):
        assert torch.equal(module(MANY), own(module, MANY))
    assert len(asked) == 1
    assert not wholes


def test_adapters(make_case, wholes: Wholes) -> None:
    peft = pytest.importorskip("peft")
    from armor.hf.lora import lora

    module = nn.Sequential(Mlp(make_case))
    prepare(module)
    expected = module(MANY)
    before = len(wholes)
    config = lora(peft.LoraConfig(target_modules=["up"], init_lora_weights=False))
    tuned = peft.get_peft_model(module, config).eval()
    with torch.no_grad():
        found = tuned(MANY)
    assert len(wholes) == before
    assert not torch.allclose(found.float(), expected.float(), rtol=0.05, atol=0.05)
    with tuned.disable_adapter():
        check(tuned(MANY), expected)
    check(tuned.unload()(MANY), expected)
    assert len(wholes) == before + 1


def test_copies_and_pickles(make_case, wholes: Wholes) -> None:
    module = Mlp(make_case)
    prepare(module)
    module(MANY)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert isinstance(twin, Mlp)
        assert list(twin.state_dict()) == list(module.state_dict())
        assert repr(twin) == repr(module)
        before = len(wholes)
        assert torch.equal(twin(MANY), module(MANY))
        assert len(wholes) == before + 2
        twin.down.left.zero_()  # it reads its own layers
        assert not twin(MANY).any()
    assert module(MANY).any()


def test_a_machine_without_such_a_backend_keeps_its_modules(make_case, monkeypatch) -> None:
    monkeypatch.setattr(mlp, "_is_worth_it", lambda: False)
    module = Mlp(make_case)
    prepare(module)
    assert type(module) is Mlp
    assert list(vars(module)) == list(vars(Mlp(make_case)))


def test_one_operator_and_no_graph_breaks(make_case, wholes: Wholes) -> None:
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    module = Mlp(make_case)
    prepare(module)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend=keep)
    with torch.no_grad():
        check(compiled(MANY), module(MANY))  # not judged yet while compiling
        torch.compiler.reset()
        check(compiled(MANY), own(module, MANY))
        check(compiled(MANY[:, :3]), own(module, MANY[:, :3]))
    names = [
        [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        for graph in graphs
    ]
    assert sum("armor.gated" in name for name in names[0]) == 0
    assert [name for name in names[1] if "armor" in name] == ["armor.gated.default"]
    assert sum("armor.gated" in name for name in names[2]) == 0


# transformers 4.57 under torch 2.13.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_model(make_llama, make_case, wholes: Wholes) -> None:
    """Its MLPs run as one, in the prompt and not while decoding, also compiled."""
    model = make_llama(hidden_size=32, intermediate_size=52, initializer_range=0.2).bfloat16()
    model.generation_config.eos_token_id = None
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            size = linear.out_features, linear.in_features
            layer = make_case(*size, 16, 1, torch.bfloat16).layer
            layer.core_values.mul_(0.2)
            setattr(model.get_submodule(parent), child, ArmorLinear.from_packed(layer))
    prompt = torch.arange(40).view(1, 40)
    with torch.no_grad():
        expected = model(prompt).logits
        prepare(model)
        found = model(prompt).logits
        assert len(wholes) == 2 * 2  # a trial and a call of each block
        check(found, expected)
        model.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert len(wholes) == 3 * 2
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        check(compiled(prompt, use_cache=False).logits, expected)
        assert len(wholes) == 4 * 2
    kinds = [module for module in model.modules() if isinstance(module, LlamaMLP)]
    assert all(module._armor_mlp.chosen for module in kinds)


def test_the_activations_are_torchs() -> None:
    x = torch.linspace(-5, 5, 50, dtype=torch.float64)
    assert torch.equal(ACTIVATIONS["gelu_tanh"](x), functional.gelu(x, approximate="tanh"))
    assert torch.equal(ACTIVATIONS["relu2"](x), x.clamp_min(0) ** 2)
