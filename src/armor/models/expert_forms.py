"""Form: how a class of fused experts keeps its weights, combines gate and up, and is called.

In transformers 5 most classes say so themselves. Others are tried, on small numbers, against what
is put in their place.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from armor.checkpoint.stacked import Stacking
from armor.models.expert import ArrangedExperts, Expert, Experts, Gating, ScoredExperts

_WEIGHTS = {"gate_up_proj", "down_proj"}
_BIASES = {"gate_up_proj_bias", "down_proj_bias"}
#: All tensors of fused experts that have a known form.
FUSED = _WEIGHTS | _BIASES
#: By the names of its arguments: how a class that does not say it is called.
_CALLED: dict[tuple[str, ...], type[Experts]] = {
    ("hidden_states",): ArrangedExperts,
    ("hidden_states", "router_indices", "routing_weights"): ScoredExperts,
}


@dataclass(frozen=True)
class Form:
    """What is known of fused experts.

    Attributes:
        kind: of module, for how they are called. stacking: of their weights. gating: see `Gating`.
    """

    kind: type[Experts]
    stacking: Stacking
    gating: Gating

    def split(self, module: Any, naming: tuple[str, ...]) -> Experts:
        """The experts of `module` on their own, sharing its memory."""

        def expert(number: int) -> Expert:
            linears = []
            for name, count in (("gate_up_proj", 2), ("down_proj", 1)):
                weights = self.stacking.cut(getattr(module, name).data[number], count)
                both = getattr(module, f"{name}_bias", None)
                biases: Sequence[Tensor | None] = [None] * count
                if both is not None:
                    biases = self.stacking.cut(both.data[number], count)
                linears += [*map(_linear, weights, biases)]
            return Expert(linears, self.gating, naming)

        return self.kind(map(expert, range(len(module.down_proj))), naming, self.stacking)


def form_of(module: Any) -> Form | None:
    """The form of fused experts that hold gate and up as one, and down, with or without biases,
    and nothing else, such as norms; None for others."""
    weights = dict(module.named_parameters())
    if weights.keys() not in (_WEIGHTS, FUSED) or any(True for _ in module.buffers()):
        return None
    if not getattr(module, "has_gate", True) or getattr(module, "has_post_expert_norm", False):
        return None
    both, down = weights["gate_up_proj"].shape, weights["down_proj"].shape
    plain = both == (down[0], 2 * down[2], down[1])
    if not plain and both != (down[0], down[2], 2 * down[1]):
        return None
    if hasattr(module, "is_transposed"):
        if module.is_transposed == plain:
            return None
        return _form(module, Experts, Stacking(not plain, not module.is_concatenated))
    if plain and len(weights) == 2:
        return _form(module, Experts, Stacking())
    arguments = [*inspect.signature(type(module).forward).parameters][1:]
    kind = _CALLED.get(tuple(arguments))
    if kind is None or plain:
        return None
    for interleaved in (False, True):
        form = _form(module, kind, Stacking(True, interleaved))
        if form is not None and _computes_the_same(module, form):
            return form
    return None


def _form(module: Any, kind: type[Experts], stacking: Stacking) -> Form | None:
    """With the gating that fused experts have: their own, by their activation function, or that of
    gpt-oss, whose class in transformers 4 has none to ask for."""
    own = getattr(type(module), "_apply_gate", None)
    if own is not None and own.__name__ != "_default_apply_gate":
        return Form(kind, stacking, _OwnGating(module, stacking.interleaved))
    if hasattr(module, "act_fn"):
        return None if stacking.interleaved else Form(kind, stacking, _PlainGating(module.act_fn))
    if hasattr(module, "alpha") and hasattr(module, "limit"):
        return Form(kind, stacking, _ClampedGating(module.alpha, module.limit))
    return None


def _computes_the_same(module: Any, form: Form) -> bool:
    """Whether a class of experts computes what `form` says: tried with few and small ones."""
    count, inner, tokens = 3, 2, 5
    hidden = module.down_proj.shape[2]
    generator = torch.Generator(device="cpu").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    shapes = {
        "gate_up_proj": (count, hidden, 2 * inner),
        "gate_up_proj_bias": (count, 2 * inner),
        "down_proj": (count, inner, hidden),
        "down_proj_bias": (count, hidden),
    }
    small = copy.copy(module)
    small._parameters = {
        name: nn.Parameter(random(*shapes[name]), False) for name in module._parameters
    }
    scores = random(tokens, count).softmax(-1)
    chosen = scores.topk(2).indices
    scores = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
    x = random(1, tokens, hidden)
    named: dict[str, Tensor] = {}
    if form.kind is ArrangedExperts:
        x = (x * scores.T[..., None]).reshape(-1, hidden)
    else:
        named = {"router_indices": chosen, "routing_weights": scores}
    with torch.no_grad():
        try:
            expected = small(x, **named)
        except Exception:  # it needs what small ones do not have
            return False
        found = form.split(small, ("gate", "up", "down"))(x, **named)
    alike = isinstance(expected, Tensor) and expected.shape == found.shape
    return alike and torch.allclose(found, expected)


@dataclass(frozen=True)
class _PlainGating:
    """``act(gate) * up``."""

    act: Callable[[Tensor], Tensor]

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.act(gate) * up


@dataclass(frozen=True)
class _ClampedGating:
    """That of gpt-oss: a sigmoid of steepness `alpha`, both clamped at `limit`."""

    alpha: float
    limit: float

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        gate = gate.clamp(max=self.limit)
        up = up.clamp(min=-self.limit, max=self.limit)
        return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))


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


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    out, width = weight.shape
    linear = nn.Linear(width, out, bias is not None, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
