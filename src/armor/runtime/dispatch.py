"""Which backend computes a call: by device and number of rows, or the one that was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from armor.errors import ArmorError
from armor.runtime.backend import Call, Sharing, Verdict
from armor.runtime.gated import Gated, Gating
from armor.runtime.registry import BACKENDS, REFERENCE, candidates, load, names
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

ENVIRONMENT = "ARMOR_BACKEND"

_forced: ContextVar[str | None] = ContextVar("armor_backend", default=None)


@dataclass(frozen=True)
class Status:
    """A backend and whether it can be used; `reason` says why not."""

    name: str
    usable: bool
    reason: str


def backends(
    shape: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str | None = None,
    batch: int = 1,
    pattern: Pattern | str = TWO_OF_FOUR,
    core: str | None = None,
) -> list[Status]:
    """Every backend and the reason why it is not used.

    Args:
        shape: (out, in) of a layer; without it only what this machine has is considered.
        dtype, device, batch, pattern: of the layer and the call, with `shape`; device None is a GPU
            if there is one; a pattern such as "4:8".
        core: what its core is rounded to, such as "int8", or None.
    """
    pattern = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found = []
    for name in names():
        if shape is None:
            verdict = load(name).is_available()
        else:
            verdict = supports(name, shape, dtype, device, batch, pattern, core)
        found.append(Status(name, bool(verdict), verdict.reason))
    return found


@contextmanager
def use(name: str | None) -> Iterator[None]:
    """Inside the ``with``, every layer runs on backend `name` (None: the automatic choice).

    Outside, the environment variable ARMOR_BACKEND says the same for a whole process. A call that
    the backend cannot compute raises `ArmorError`.
    """
    if name is not None:
        load(name)
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> str | None:
    """What `use` or the environment asks for."""
    return _forced.get() or os.environ.get(ENVIRONMENT) or None


def supports(
    name: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    pattern: Pattern,
    core: str | None = None,
) -> Verdict:
    """Whether backend `name` can run here and computes such a layer, see `Backend`.

    Args:
        core: what its core is rounded to, or None.
    """
    backend = load(name)
    if core not in BACKENDS[name].cores:
        return Verdict(f"it does not read {core or 'unrounded'} cores")
    return backend.is_available() and backend.is_supported(shape, dtype, device, batch, pattern)


def choose(
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    pattern: Pattern = TWO_OF_FOUR,
    prepared_by: str = "",
    core: str | None = None,
) -> str:
    """The name of the backend for a call.

    Args:
        shape: (out, in). batch: rows of input. prepared_by: the backend that prepared the layer.
        core: what its core is rounded to, or None.

    Raises:
        ArmorError: the backend that was asked for cannot compute it.
    """
    wanted = forced()
    if wanted is not None:
        verdict = supports(wanted, shape, dtype, device, batch, pattern, core)
        if not verdict:
            raise ArmorError(f"backend {wanted} cannot run this layer: {verdict.reason}")
        return wanted
    for name in candidates(device, batch):
        if BACKENDS[name].only_prepared and name != prepared_by:
            continue
        if supports(name, shape, dtype, device, batch, pattern, core):
            return name
    return REFERENCE


def run(x: Float[Tensor, "*batch in"], call: Call) -> Float[Tensor, "*batch out"]:
    """``A S B x + bias`` on the backend that `choose` names; contiguous."""
    return run_together(x, [call])[0]


def run_together(
    x: Float[Tensor, "*batch in"], calls: Sequence[Call]
) -> list[Float[Tensor, "*batch _"]]:
    """`run` of each of `calls`, in one go where their backend gains from that.

    Raises:
        ArmorError: x has another number of features than a layer has inputs.
    """
    flat = x.reshape(-1, x.shape[-1])
    for call in calls:
        if call.layer.in_features != x.shape[-1]:
            raise ArmorError(
                f"the layer takes {call.layer.in_features} inputs, not {x.shape[-1]} as given"
            )
    if not len(flat):
        found = [x.new_empty(0, call.layer.shape[0]) for call in calls]
    else:
        chosen = [_backend_of(flat, call) for call in calls]
        calls = [_visible_to(name, call) for name, call in zip(chosen, calls, strict=True)]
        backend = load(chosen[0])
        if len(calls) > 1 and len(set(chosen)) == 1 and isinstance(backend, Sharing):
            found = backend.matmul_shared(flat, calls)
        else:
            pairs = zip(chosen, calls, strict=True)
            found = [load(name).matmul(flat, call) for name, call in pairs]
    return [y.view(*x.shape[:-1], y.shape[-1]) for y in found]


def run_gated(x: Float[Tensor, "*batch in"], gated: Gated) -> Float[Tensor, "*batch out"]:
    """``down(act(gate(x)) * up(x))``: as a whole where `gating` names a backend; contiguous."""
    flat = x.reshape(-1, x.shape[-1])
    name = gating(flat, gated)
    if name is None:
        return run(gated.between(*run_together(x, [gated.gate, gated.up])), gated.down)
    backend = load(name)
    assert isinstance(backend, Gating)
    gate, up, down = (_visible_to(name, call) for call in gated.calls)
    y = backend.matmul_gated(flat, Gated(gate, up, down, gated.activation))
    return y.view(*x.shape[:-1], y.shape[-1])


def gating(x: Float[Tensor, "batch in"], gated: Gated) -> str | None:
    """The backend that computes `gated` as a whole, None if they do it layer by layer."""
    if not len(x) or gated.gate.layer.in_features != x.shape[-1]:
        return None
    names = {_backend_of(x, call) for call in gated.calls}
    backend = load(name := names.pop())
    if names or not isinstance(backend, Gating) or not backend.takes_gated(gated):
        return None
    return name


def _backend_of(x: Tensor, call: Call) -> str:
    layer = call.layer
    if x.dtype != layer.dtype or x.device != layer.core_values.device:
        return REFERENCE  # mixed dtypes or devices: torch's own error message
    own = layer.pattern, call.prepared_by, layer.core
    return choose(layer.shape, x.dtype, x.device, len(x), *own)


def _visible_to(name: str, call: Call) -> Call:
    """The call without what another backend than `name` has prepared."""
    if call.prepared is None or call.prepared_by == name:
        return call
    return call._replace(prepared=None, prepared_by="")
