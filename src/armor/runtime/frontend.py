"""Which backend computes a call: by device and number of rows, or as told."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from armor.errors import ArmorError
from armor.runtime.backend import YES, Backend, Sharing, Verdict
from armor.runtime.semi_structured.compressed import whole
from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

_MODULES = {
    "cpu": "armor.runtime.cpu.backend",
    "triton": "armor.runtime.triton.backend",
    "semi_structured": "armor.runtime.semi_structured.backend",
    "reference": "armor.runtime.reference",
}
BACKENDS = ("cpu", "triton", "semi_structured", "reference")
_READ_PACKED = ("triton", "semi_structured")  # these know the positions in their packed order
_ANY_PATTERN = ("cpu", "reference")  # the others compute from 2:4 only
ENVIRONMENT = "ARMOR_BACKEND"
DECODE_ROWS = 32  # on a GPU, up to here a call is bound by memory

_forced: ContextVar[str | None] = ContextVar("armor_backend", default=None)
_loaded: dict[str, Backend] = {}


@dataclass(frozen=True)
class Status:
    """A backend and whether it can be used; `reason` says why not."""

    name: str
    usable: bool
    reason: str


def backend(name: str) -> Backend:
    """The backend `name`. Raises `ArmorError` for an unknown one."""
    if name not in BACKENDS:
        raise ArmorError(f"unknown backend {name!r}; valid: {', '.join(BACKENDS)}")
    if name not in _loaded:
        _loaded[name] = import_module(_MODULES[name])
    return _loaded[name]


def backends(
    shape: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str | None = None,
    batch: int = 1,
    pattern: Pattern | str = TWO_OF_FOUR,
) -> list[Status]:
    """Every backend and the reason why it is not used.

    Args:
        shape: (out, in) of a layer; without it only what this machine has is considered.
        dtype, device, batch: of the layer and the call, with `shape`; device None is a GPU if
            there is one.
        pattern: of the layer's core, such as "4:8".
    """
    pattern = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found = []
    for name in BACKENDS:
        verdict = backend(name).is_available() and _knows(name, pattern)
        if verdict and shape is not None:
            verdict = backend(name).is_supported(shape, dtype, device, batch)
        found.append(Status(name, bool(verdict), verdict.reason))
    return found


@contextmanager
def use(name: str | None) -> Iterator[None]:
    """Inside the ``with``, every layer runs on backend `name` (None: the automatic choice).

    Outside, the environment variable ARMOR_BACKEND says the same for a whole process. A call that
    the backend cannot compute raises `ArmorError`.
    """
    if name is not None:
        backend(name)
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> str | None:
    """What `use` or the environment asks for."""
    return _forced.get() or os.environ.get(ENVIRONMENT) or None


def order(device: torch.device, batch: int) -> tuple[str, ...]:
    """The backends to try on a device, the fastest first."""
    if device.type == "cpu":
        return ("cpu", "reference")
    if device.type == "cuda" and batch <= DECODE_ROWS:
        return ("triton", "semi_structured", "reference")
    if device.type == "cuda":
        return ("semi_structured", "triton", "reference")
    return ("reference",)


def choose(
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    packed: bool,
    pattern: Pattern = TWO_OF_FOUR,
) -> str:
    """The name of the backend for a call; `packed`: whether `prepare` has packed the layer.

    Raises:
        ArmorError: the backend that was asked for cannot compute it.
    """
    wanted = forced()
    if wanted is not None:
        verdict = _verdict(wanted, shape, dtype, device, batch, pattern)
        if not verdict:
            raise ArmorError(f"backend {wanted} cannot run this layer: {verdict.reason}")
        return wanted
    for name in order(device, batch):
        # Packing takes longer than a call: it is done once, by `prepare`, or not at all.
        if name == "semi_structured" and not packed:
            continue
        if _verdict(name, shape, dtype, device, batch, pattern):
            return name
    return "reference"


def _verdict(
    name: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    pattern: Pattern,
) -> Verdict:
    if not (known := _knows(name, pattern)):
        return known
    module = backend(name)
    return module.is_available() and module.is_supported(shape, dtype, device, batch)


def _knows(name: str, pattern: Pattern) -> Verdict:
    """Whether a backend computes from the packed form of this pattern."""
    if pattern == TWO_OF_FOUR or name in _ANY_PATTERN:
        return YES
    return Verdict(
        "its kernels read 2:4 only; other patterns run on cpu, and on a GPU on reference"
    )


def run(x: Tensor, layer: PackedLayer, bias: Tensor | None, packed: Tensor | None) -> Tensor:
    """``A S B x + bias`` for x (..., in) on the backend that `choose` names; contiguous."""
    return run_shared(x, [layer], [bias], [packed])[0]


def run_shared(
    x: Tensor,
    layers: Sequence[PackedLayer],
    biases: Sequence[Tensor | None],
    packed: Sequence[Tensor | None],
) -> list[Tensor]:
    """`run` of each of `layers`, which have the same number of inputs."""
    flat = x.reshape(-1, x.shape[-1])
    found: list[Tensor] = []
    if not len(flat):
        found = [x.new_empty(0, layer.shape[0]) for layer in layers]
    else:
        calls = list(zip(layers, biases, packed, strict=True))
        names = [_name(flat, layer, ready is not None) for layer, _, ready in calls]
        together = backend(names[0])
        if len(calls) > 1 and len(set(names)) == 1 and isinstance(together, Sharing):
            found = together.matmul_shared(flat, layers, biases, packed)
        else:
            for name, (layer, bias, ready) in zip(names, calls, strict=True):
                given = layer if name in _READ_PACKED else whole(layer, ready)
                found.append(backend(name).matmul(flat, given, bias, ready))
    return [y.view(*x.shape[:-1], y.shape[-1]) for y in found]


def _name(x: Tensor, layer: PackedLayer, packed: bool) -> str:
    if x.dtype != layer.core_values.dtype or x.device != layer.core_values.device:
        return "reference"  # mixed dtypes or devices: torch's own error message
    return choose(layer.shape, x.dtype, x.device, len(x), packed, layer.pattern)
