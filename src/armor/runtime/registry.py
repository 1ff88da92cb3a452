"""Every backend, and when it is tried. A backend is added by one line, here or anywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import torch

from armor.errors import ArmorError
from armor.runtime.backend import Backend
from armor.sparse.levels import CORES, FP8

FEW_ROWS = 32  # on a GPU, up to here a call is bound by memory
REFERENCE = "reference"


@dataclass(frozen=True)
class Registered:
    """A backend and when it is tried.

    Attributes:
        backend: a module (or another object) with the functions of `Backend`; or the dotted name of
            such a module, which is then imported when it is first needed.
        devices: the types of device on which it is tried, unless it is only for who asks for it.
        rows: the numbers of input rows it is made for, "few" (up to `FEW_ROWS`) or "many"; with
            others it is tried after the backends that are made for them.
        only_prepared: whether it is tried only for layers that it has prepared, because preparing
            takes longer than a call.
        cores: what the cores that it reads are rounded to (`PackedLayer.core`), None: not at all.
    """

    backend: Backend | str
    devices: tuple[str, ...]
    rows: Literal["any", "few", "many"] = "any"
    only_prepared: bool = False
    cores: tuple[str | None, ...] = (None,)


_EVERY = (None, *CORES)

#: The backend that was added last is tried first; the reference takes what is left.
BACKENDS: dict[str, Registered] = {
    REFERENCE: Registered("armor.runtime.reference", devices=(), cores=_EVERY),
    "semi_structured": Registered(
        "armor.runtime.semi_structured.backend", ("cuda",), rows="many", only_prepared=True
    ),
    "float8": Registered(
        "armor.runtime.semi_structured.float8", devices=(), rows="many", cores=(FP8.name,)
    ),
    "triton": Registered("armor.runtime.triton.backend", ("cuda",), rows="few", cores=_EVERY),
    "cpu": Registered("armor.runtime.cpu.backend", ("cpu",), cores=_EVERY),
}


def names() -> list[str]:
    """The backends, the one that was added last first."""
    return list(reversed(BACKENDS))


def load(name: str) -> Backend:
    """The backend `name`. Raises `ArmorError` for an unknown one."""
    if name not in BACKENDS:
        raise ArmorError(f"unknown backend {name!r}; valid: {', '.join(names())}")
    found = BACKENDS[name].backend
    return import_module(found) if isinstance(found, str) else found


def candidates(device: torch.device, rows: int) -> list[str]:
    """The backends to try on a device for `rows` rows of input, in order; without the reference."""
    wanted = "few" if rows <= FEW_ROWS else "many"
    here = [name for name in names() if device.type in BACKENDS[name].devices]
    return sorted(here, key=lambda name: BACKENDS[name].rows not in ("any", wanted))
