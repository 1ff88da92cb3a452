"""Modules that are gated MLPs, ``down(act(gate(x)) * up(x))``, run as one where that is faster.

What a module computes cannot be read from it, so its own forward is the judge: at its first call
it and the layers as one have to make the same of random inputs, or the module is left alone. The
module keeps its forward for all other cases: few rows on a CPU, training, hooks, adapters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from armor.runtime.api import gated
from armor.runtime.dispatch import gating, run
from armor.runtime.gated import ACTIVATIONS, Gated, Gating
from armor.runtime.registry import FEW_ROWS, load, names
from armor.runtime.sharing import Member, is_ready

_PLAN = "_armor_mlp"
#: Root mean squares of gate for the rows of the trial: small, usual, and so large that a limit
#: which the module may have shows.
_SIZES = (0.25, 1.0, 4.0, 16.0)
_ROWS_EACH = 16


@dataclass
class Plan:
    """What is known of a module.

    Attributes:
        orders: names of its layers that may be gate, up and down, in this order.
        act, activation: the name of the activation's module, and which of `ACTIVATIONS` it is.
        kind: the class of the layers. is_judged: whether `chosen` is final; None: left alone.
    """

    orders: list[tuple[str, ...]]
    act: str
    activation: str
    kind: type
    is_judged: bool = False
    chosen: tuple[str, ...] | None = None


def recognise(module: nn.Module, layers: Mapping[str, Member]) -> None:
    """Let `module` run as one from now on, where it may be a gated MLP of `layers`.

    Nothing is changed on a machine where no backend gains from it; where it may not be one, what
    was changed before is taken back.

    Args:
        layers: all of its own children of the one class that may be gate, up and down, by name.
    """
    vars(module).pop(_PLAN, None)
    kind: Any = type(module)
    if isinstance(module, _Fused):
        kind = module.__class__ = kind.base
    if len(layers) != 3 or not _is_worth_it():
        return
    if "forward" in vars(module):  # patched, by accelerate for instance
        return
    orders = [order for order in permutations(layers) if _fits(*(layers[n] for n in order))]
    known = {name: _activation(child) for name, child in module.named_children()}
    acts = [(name, found) for name, found in known.items() if found is not None]
    if not orders or len(acts) != 1:
        return
    (act, activation) = acts[0]
    setattr(module, _PLAN, Plan(orders, act, activation, type(next(iter(layers.values())))))
    module.__class__ = _fused_class(kind)


def runs_as_one(module: nn.Module, x: Tensor) -> bool:
    """Whether `module`, once called, runs as one for inputs like x."""
    plan: Plan | None = getattr(module, _PLAN, None)
    return plan is not None and plan.chosen is not None and _is_for_one(module, x)


def _fits(gate: Member, up: Member, down: Member) -> bool:
    one, two, three = (member.call().layer for member in (gate, up, down))
    return one.shape == two.shape and three.in_features == one.shape[0]


@cache
def _is_worth_it() -> bool:
    """Whether some backend of this machine computes gated MLPs as a whole."""
    return bool(_able())


def _able() -> list[Gating]:
    found = (load(name) for name in names())
    return [one for one in found if isinstance(one, Gating) and one.is_available()]


def _activation(module: nn.Module) -> str | None:
    """Which of `ACTIVATIONS` a module computes, by its numbers."""
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return None
    x = torch.linspace(-30, 30, 241, dtype=torch.float32, device="cpu")
    try:
        y = module(x)
    except Exception:  # it takes something else
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return None
    for name, function in ACTIVATIONS.items():
        if torch.allclose(y, function(x), rtol=1e-5, atol=1e-6):
            return name
    return None


class _Fused:
    """Marks the classes that `_fused_class` makes of `base`."""

    base: type[nn.Module]


@cache
def _fused_class(base: type[nn.Module]) -> type[nn.Module]:
    """`base` with another forward; copies and pickles like it."""
    own: Callable[..., Any] = base.forward

    class Fused(_Fused, base):  # type: ignore[misc, valid-type]
        @wraps(own)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
                y = _as_one(self, args[0], own)
                if y is not None:
                    return y
            return own(self, *args, **kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _empty, (base,), vars(self).copy()

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Fused, name, getattr(base, name))
    Fused.base = base
    return Fused


def _empty(base: Any) -> nn.Module:
    made = _fused_class(base)
    return made.__new__(made)


def _as_one(module: nn.Module, x: Tensor, own: Callable[..., Any]) -> Tensor | None:
    """What `module` computes, or None where its own forward has to."""
    plan: Plan | None = getattr(module, _PLAN, None)
    if plan is None or not _is_for_one(module, x):
        return None
    if not plan.is_judged:
        if torch.compiler.is_compiling() or _is_capturing(x):
            return None
        _judge(module, plan, x, own)
    layers = None if plan.chosen is None else _layers(module, plan, plan.chosen, x)
    return None if layers is None else gated(x, layers)


def _is_for_one(module: nn.Module, x: Tensor) -> bool:
    """Many rows or a GPU, and nothing but the result is wanted."""
    if module.training or torch.is_autocast_enabled(x.device.type):
        return False
    if torch.is_grad_enabled() and x.requires_grad:
        return False
    return x.device.type != "cpu" or x.numel() > FEW_ROWS * x.shape[-1]


def _is_capturing(x: Tensor) -> bool:
    return x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _layers(module: nn.Module, plan: Plan, order: tuple[str, ...], x: Tensor) -> Gated | None:
    """The layers of an order; None if one is not here or frozen, was replaced, or has hooks."""
    found = [getattr(module, name) for name in order]
    if any(type(layer) is not plan.kind for layer in found):
        return None  # peft puts others in their places
    for each in (*found, getattr(module, plan.act)):
        if each._forward_hooks or each._forward_pre_hooks:
            return None
    gate, up, down = (layer.call() for layer in found)
    if not all(is_ready(call, x) for call in (gate, up, down)):
        return None
    return Gated(gate, up, down, plan.activation)


@torch.no_grad()
def _judge(module: nn.Module, plan: Plan, x: Tensor, own: Callable[..., Any]) -> None:
    """Decide which order is that of the module, if one is; x: an input of it."""
    for order in plan.orders:
        layers = _layers(module, plan, order, x)
        if layers is None:
            return  # not now
        if gating(x.reshape(-1, x.shape[-1]), layers) is None:
            # In another dtype perhaps, but not with other blocks or cores: these stay as they are.
            plan.is_judged = x.dtype != torch.float32 and not any(
                backend.takes_gated(layers) for backend in _able()
            )
            return
        try:
            trial = _trial(layers, x)
            expected = own(module, trial)
            agrees = _agree(gated(trial, layers), expected)
        except Exception as error:  # a compiler's or a driver's: each layer alone may still work
            logging.getLogger("armor").debug("an MLP is not run as one: %s", error)
            break
        if agrees:
            plan.chosen = order
            break
    plan.is_judged = True
    if plan.chosen is None:
        logging.getLogger("armor").debug("%s is not run as one", type(module).__name__)


def _trial(layers: Gated, x: Tensor) -> Tensor:
    """Random inputs (..., rows, in) of as many dimensions as x, see `_SIZES`."""
    draw = torch.Generator().manual_seed(0)
    rows = len(_SIZES) * _ROWS_EACH
    made = torch.randn(rows, x.shape[-1], generator=draw, dtype=torch.float32, device="cpu")
    made = made.to(x.device)
    gate = run(made.to(x.dtype), layers.gate._replace(bias=None)).float()
    sizes = torch.tensor(_SIZES, dtype=torch.float32, device=x.device)
    made *= sizes.repeat_interleave(_ROWS_EACH)[:, None] / gate.square().mean(1, True).sqrt()
    return made.to(x.dtype).view(*[1] * (x.dim() - 2), *made.shape)


def _agree(found: Tensor, expected: Any) -> bool:
    """Whether each row is the same but for rounding."""
    if not isinstance(expected, Tensor) or found.shape != expected.shape:
        return False
    apart = (found.float() - expected.float()).norm(dim=-1)
    allowed = 4 * torch.finfo(found.dtype).eps * expected.float().norm(dim=-1)
    return bool((apart <= allowed).all())
