"""The engines: one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armor.errors import ArmorError

if TYPE_CHECKING:
    from armor.engines.engine import Engine


@dataclass(frozen=True)
class Setup:
    """What an engine is opened with.

    Attributes:
        make_context: called once in each worker with its torch device; gives the context that
            the worker's jobs get. Must be picklable.
        here: the context for jobs in this process, for an engine that does them here.
        device: "cpu", "cuda" or "cuda:N". workers: how many, None for as many as make sense.
        sensible_workers: how many that is on this machine.
        scratch: a folder for files of no lasting value.
        budget: bytes of tensors held in memory; None for what the engine finds sensible.
    """

    make_context: Callable[[str], Any]
    here: Callable[[], Any]
    device: str
    workers: int | None
    sensible_workers: Callable[[], int]
    scratch: Path
    budget: int | None


#: By name the function that opens it, or its place, "module:name". A new engine is its file in
#: ``engines/`` and a line here.
ENGINES: dict[str, Callable[[Setup], Engine] | str] = {
    "local": "armor.engines.local:open_engine",
    "ray": "armor.engines.ray:open_engine",
}


def check_engine(name: str) -> None:
    """Raise `ArmorError` unless there is an engine of this name."""
    if name not in ENGINES:
        raise ArmorError(f"unknown engine {name!r}; valid: {', '.join(ENGINES)}")


def open_engine(name: str, setup: Setup) -> Engine:
    """The engine `name`. Raises `ArmorError` if there is none, or it cannot be had."""
    check_engine(name)
    found = ENGINES[name]
    if isinstance(found, str):
        module, _, function = found.partition(":")
        opened: Engine = getattr(import_module(module), function)(setup)
        return opened
    return found(setup)
