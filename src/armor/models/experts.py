"""Experts as modules of their own: transformers 5 keeps those of a layer in two 3-D tensors.

`split_experts` puts a list of plain MLPs in the place of each such pair. Checkpoints name the
experts one by one whatever the version of transformers (``experts.3.down_proj.weight``), so that a
model with split experts has the names of its checkpoint, and every expert has linears to prune.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from armor.models.modules import put_module

#: What checkpoints call the three linears of an expert: gate, up, down.
NAMINGS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_EXPERT = re.compile(r"\.experts\.\d+\.(\w+)")


#: From the outputs of the gate and of the up projection to the input of the down projection.
Gating = Callable[[Tensor, Tensor], Tensor]


class Expert(nn.Module):
    """``down(gating(gate x, up x))``; `naming` gives the names of the three linears."""

    def __init__(
        self, linears: Iterable[nn.Module], gating: Gating, naming: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.naming = naming
        self.gating = gating
        for name, linear in zip(naming, linears, strict=True):
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        gate, up, down = (self.get_submodule(name) for name in self.naming)
        result: Tensor = down(self.gating(gate(x), up(x)))
        return result


class Experts(nn.ModuleList):
    """The experts of one layer, called as the fused ones of transformers 5 are.

    Attributes:
        choice: of the last call: each token's experts, (tokens, k); only where somebody keeps it.
    """

    choice: Tensor

    def __init__(self, experts: Iterable[Expert], naming: tuple[str, ...]) -> None:
        super().__init__(experts)
        self.naming = naming

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of each token's experts.

        Args:
            hidden_states: (tokens, hidden). top_k_index: its experts, (tokens, k).
            top_k_weights: their weights, (tokens, k).
        """
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            token, slot = torch.where(top_k_index == number)
            if len(token):
                part = expert(hidden_states[token]) * top_k_weights[token, slot, None]
                total.index_add_(0, token, part.to(total.dtype))
        return total


def fused_experts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold experts in 3-D weights, one expert after the other, by their name.

    Beside such a module is another that chooses: it has a matrix with a row for each expert, or up
    to twice as many, where a router may also choose to do nothing. A 3-D weight without one is
    something else, such as a convolution or a gate for each head.
    """
    for name, module in model.named_modules():
        count = _count(module)
        if count and _may_choose(model.get_submodule(name.rpartition(".")[0]), module, count):
            yield name, module


def _count(module: nn.Module) -> int:
    """The number of experts, if the 3-D weights of a module are experts; else 0."""
    if isinstance(module, nn.Conv1d):
        return 0
    shapes = [p.shape for p in module._parameters.values() if p is not None and p.ndim == 3]
    counts = {shape[0] for shape in shapes if 1 < shape[0] < max(shape[1:])}
    return int(counts.pop()) if shapes and len(counts) == 1 else 0


def _may_choose(layer: nn.Module, experts: nn.Module, count: int) -> bool:
    """Whether a matrix of `layer` outside of `experts` has a row for each of them."""
    own = {id(parameter) for parameter in experts.parameters()}
    return any(
        parameter.ndim == 2 and count <= parameter.shape[0] <= 2 * count
        for parameter in layer.parameters()
        if id(parameter) not in own
    )


def split_experts(model: nn.Module, stored: Iterable[str], keep: Collection[str] = ()) -> list[str]:
    """Split the fused experts of `model`, in place, sharing their memory.

    Args:
        model: of any size, also with its parameters on the meta device.
        stored: names of layers or tensors of the checkpoint; they say what the linears are called.
        keep: modules to leave as they are, by name.

    Returns:
        The names of the modules that were replaced; experts in another layout (see
        `has_known_layout`) are left as they are.
    """
    naming = _naming(stored)
    replaced = []
    for name, module in list(fused_experts(model)):
        if name in keep or not has_known_layout(module):
            continue
        put_module(model, name, _split(module, naming).train(module.training))
        replaced.append(name)
    return replaced


def put_together(experts: Experts, fused: nn.Module) -> nn.Module:
    """`fused`, which `split_experts` replaced by `experts`, with a copy of their weights."""
    gate, up, down = (
        [expert.get_parameter(f"{linear}.weight") for expert in experts]
        for linear in experts.naming
    )
    both = torch.stack([torch.cat(rows) for rows in zip(gate, up, strict=True)])
    for name, weight in (("gate_up_proj", both), ("down_proj", torch.stack([*down]))):
        setattr(fused, name, nn.Parameter(weight, requires_grad=False))
    return fused.train(experts.training)


def has_known_layout(module: Any) -> bool:
    """Whether fused experts hold (experts, 2*inner, hidden) gate over up, and (experts, hidden,
    inner), and nothing else: no biases, no transposed or interleaved weights, no norms."""
    weights = dict(module.named_parameters())
    if set(weights) != {"gate_up_proj", "down_proj"} or any(True for _ in module.buffers()):
        return False
    if _gating(module) is None:
        return False
    both, down = weights["gate_up_proj"].shape, weights["down_proj"].shape
    plain = (
        not getattr(module, "is_transposed", False)
        and getattr(module, "is_concatenated", True)
        and getattr(module, "has_gate", True)
        and not getattr(module, "has_post_expert_norm", False)
    )
    return bool(plain and both == (down[0], 2 * down[2], down[1]))


def _gating(module: Any) -> Gating | None:
    """How fused experts combine gate and up: as they say, or by their activation function."""
    own = getattr(type(module), "_apply_gate", None)
    if own is not None and own.__name__ != "_default_apply_gate":
        return _OwnGating(module)
    return _PlainGating(module.act_fn) if hasattr(module, "act_fn") else None


@dataclass(frozen=True)
class _PlainGating:
    """``act(gate) * up``."""

    act: Callable[[Tensor], Tensor]

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.act(gate) * up


class _OwnGating:
    """That of a model's class of fused experts, such as one that clamps values."""

    def __init__(self, experts: Any) -> None:
        self._shell = copy.copy(experts)
        self._shell._parameters = dict.fromkeys(experts._parameters)

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        result: Tensor = self._shell._apply_gate(torch.cat([gate, up], dim=-1))
        return result


def is_expert(name: str) -> bool:
    """Whether a layer or tensor of a checkpoint is one of an expert's: ``experts.3.w1``."""
    return _EXPERT.search(name) is not None


def _naming(stored: Iterable[str]) -> tuple[str, ...]:
    parts = {found[1] for found in map(_EXPERT.search, stored) if found}
    return next((naming for naming in NAMINGS if parts & set(naming)), NAMINGS[0])


def _split(module: Any, naming: tuple[str, ...]) -> Experts:
    inner = module.down_proj.shape[2]
    linears = (
        (_linear(both[:inner]), _linear(both[inner:]), _linear(down))
        for both, down in zip(module.gate_up_proj.data, module.down_proj.data, strict=True)
    )
    gating = _gating(module)
    assert gating is not None
    return Experts((Expert(three, gating, naming) for three in linears), naming)


def _linear(weight: Tensor) -> nn.Linear:
    out, width = weight.shape
    linear = nn.Linear(width, out, bias=False, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
