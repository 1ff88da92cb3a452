"""Experts as modules of their own: transformers 5 keeps those of a layer in two 3-D tensors.

`split_experts` puts a list of plain MLPs in the place of each such pair. Checkpoints name the
experts one by one whatever the version of transformers (``experts.3.down_proj.weight``), so that a
model with split experts has the names of its checkpoint, and every expert has linears to prune.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from armor.checkpoint.stacked import Stacking
from armor.models.modules import put_module

#: What checkpoints call the three linears of an expert: gate, up, down.
NAMINGS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_WEIGHTS = {"gate_up_proj", "down_proj"}
_BIASES = {"gate_up_proj_bias", "down_proj_bias"}
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
        stacking: how they lie in the fused tensors.
        choice: of the last call, see `choice_of`; only where somebody keeps it.
    """

    choice: Tensor

    def __init__(
        self, experts: Iterable[Expert], naming: tuple[str, ...], stacking: Stacking
    ) -> None:
        super().__init__(experts)
        self.naming = naming
        self.stacking = stacking

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

    def choice_of(self, *args: Tensor) -> Tensor:
        """What says which rows each expert gets when the module is called with `args`."""
        return args[1]

    def rows_of(self, number: int, choice: Tensor) -> Tensor:
        """The rows of its input that an expert gets by a choice, int64."""
        return torch.where(choice == number)[0]


class ArrangedExperts(Experts):
    """Experts that are called as those of Llama 4: every expert is given a row for every token.

    The rows of an expert are the tokens times their scores, which are 0 for all that are not sent
    to it. Without biases it makes 0 of 0, so that these need not pass it.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        """(experts * tokens, hidden), expert by expert -> the same."""
        result = torch.zeros_like(hidden_states)
        choice = self.choice_of(hidden_states)
        for number, expert in enumerate(self):
            rows = self.rows_of(number, choice)
            if len(rows):
                result[rows] = expert(hidden_states[rows]).to(result.dtype)
        return result

    def choice_of(self, *args: Tensor) -> Tensor:
        """Whether a row is not 0, (experts, tokens)."""
        return args[0].any(-1).view(len(self), -1)

    def rows_of(self, number: int, choice: Tensor) -> Tensor:
        """As in `Experts`."""
        return choice[number].nonzero().squeeze(-1) + number * choice.shape[1]


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

    Those of each may be transposed, have biases, and gate and up row by row.

    Args:
        model: of any size, also with its parameters on the meta device.
        stored: names of layers or tensors of the checkpoint; they say what the linears are called.
        keep: modules to leave as they are, by name.

    Returns:
        The names of the modules that were replaced; experts in another form (see `_form`) are left
        as they are.
    """
    naming = _naming(stored)
    replaced = []
    for name, module in list(fused_experts(model)):
        form = None if name in keep else _form(module)
        if form is not None:
            put_module(model, name, _split(module, form, naming).train(module.training))
            replaced.append(name)
    return replaced


def put_together(experts: Experts, fused: nn.Module) -> nn.Module:
    """`fused`, which `split_experts` replaced by `experts`, with a copy of their weights."""
    *first, last = experts.naming
    for name in list(fused._parameters):
        linears = [last] if name.startswith("down") else first
        kind = "bias" if name.endswith("bias") else "weight"
        own = [
            experts.stacking.join([expert.get_parameter(f"{one}.{kind}") for one in linears])
            for expert in experts
        ]
        setattr(fused, name, nn.Parameter(torch.stack(own), requires_grad=False))
    return fused.train(experts.training)


@dataclass(frozen=True)
class _Form:
    """How fused experts keep their weights and are called.

    Attributes:
        stacking: of gate and up, and of the matrices. arranged: see `ArrangedExperts`.
    """

    stacking: Stacking
    gating: Gating
    arranged: bool


def _form(module: Any) -> _Form | None:
    """What is known of fused experts: they hold gate and up as one, and down, with or without
    biases, and nothing else, such as norms; else None."""
    weights = dict(module.named_parameters())
    has_biases = weights.keys() == _WEIGHTS | _BIASES
    if not (has_biases or weights.keys() == _WEIGHTS) or any(True for _ in module.buffers()):
        return None
    if not getattr(module, "has_gate", True) or getattr(module, "has_post_expert_norm", False):
        return None
    both, down = weights["gate_up_proj"].shape, weights["down_proj"].shape
    plain = both == (down[0], 2 * down[2], down[1])
    transposed = not plain and both == (down[0], down[2], 2 * down[1])
    arranged = [*inspect.signature(type(module).forward).parameters][1:] == ["hidden_states"]
    # A class that says nothing of its form could have any order of gate and up, and any arguments.
    says = hasattr(module, "is_transposed")
    if not plain and not (transposed and (says or arranged)):
        return None
    if (says and module.is_transposed != transposed) or (arranged and has_biases):
        return None
    stacking = Stacking(transposed, interleaved=not getattr(module, "is_concatenated", True))
    gating = _gating(module, stacking)
    return None if gating is None else _Form(stacking, gating, arranged)


def _gating(module: Any, stacking: Stacking) -> Gating | None:
    """How fused experts combine gate and up: as they say, or by their activation function."""
    own = getattr(type(module), "_apply_gate", None)
    if own is not None and own.__name__ != "_default_apply_gate":
        return _OwnGating(module, stacking.interleaved)
    known = hasattr(module, "act_fn") and not stacking.interleaved
    return _PlainGating(module.act_fn) if known else None


@dataclass(frozen=True)
class _PlainGating:
    """``act(gate) * up``."""

    act: Callable[[Tensor], Tensor]

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.act(gate) * up


class _OwnGating:
    """That of a model's class of fused experts, such as one that clamps values."""

    def __init__(self, experts: Any, interleaved: bool) -> None:
        self._shell = copy.copy(experts)
        self._shell._parameters = dict.fromkeys(experts._parameters)
        self._interleaved = interleaved

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        if self._interleaved:
            both = torch.stack([gate, up], dim=-1).flatten(-2)
        else:
            both = torch.cat([gate, up], dim=-1)
        result: Tensor = self._shell._apply_gate(both)
        return result


def is_expert(name: str) -> bool:
    """Whether a layer or tensor of a checkpoint is one of an expert's: ``experts.3.w1``."""
    return _EXPERT.search(name) is not None


def _naming(stored: Iterable[str]) -> tuple[str, ...]:
    parts = {found[1] for found in map(_EXPERT.search, stored) if found}
    return next((naming for naming in NAMINGS if parts & set(naming)), NAMINGS[0])


def _split(module: Any, form: _Form, naming: tuple[str, ...]) -> Experts:
    def expert(number: int) -> Expert:
        pieces = [
            (
                form.stacking.cut(getattr(module, name).data[number], count),
                form.stacking.cut(bias.data[number], count) if bias is not None else [None] * count,
            )
            for name, count in (("gate_up_proj", 2), ("down_proj", 1))
            for bias in [getattr(module, f"{name}_bias", None)]
        ]
        linears = [_linear(*both) for piece in pieces for both in zip(*piece, strict=True)]
        return Expert(linears, form.gating, naming)

    kind = ArrangedExperts if form.arranged else Experts
    return kind(map(expert, range(len(module.down_proj))), naming, form.stacking)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    out, width = weight.shape
    linear = nn.Linear(width, out, bias is not None, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
