"""Job: one piece of work, small enough to be sent anywhere; Result: what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from armor.device import float32_products
from armor.engines.threads import threads

#: Named tensors, as they travel between jobs.
Tensors = dict[str, Tensor]
#: An engine's name for tensors that it holds.
Handle = Any


class Handles(dict[str, Handle]):
    """Several handles for one argument of a job, by any names."""


@dataclass(frozen=True)
class Result:
    """What a job returns.

    Attributes:
        value: small and plain; goes to the process that asked.
        tensors: groups of named tensors, which stay with the engine.
    """

    value: Any = None
    tensors: tuple[Tensors, ...] = ()


@dataclass(frozen=True)
class Job:
    """A call of ``function(context, **arguments, **tensors)``, where the context is the worker's.

    Attributes:
        function: of a module, so that another process finds it; returns a `Result`.
        arguments: small and plain.
        tensors: by the name of the argument the handle of its tensors, or `Handles`.
        results: how many groups of tensors it returns.
        threads: how many it runs on.
        size: how long it may take, in any unit; the largest goes first.
        part: jobs of the same part are best done by the same worker.
        urgent: goes before all that is not; others wait for it.
        label: what it is about, for messages.
    """

    function: Callable[..., Result]
    arguments: Mapping[str, Any]
    tensors: Mapping[str, Handle | Handles] = field(default_factory=dict)
    results: int = 1
    threads: int = 1
    size: int = 0
    part: int | None = None
    urgent: bool = False
    label: str = ""

    def run(self, context: Any, fetch: Callable[[Handle], Tensors], stay: bool = False) -> Result:
        """Do it here.

        Args:
            fetch: gives the tensors of a handle.
            stay: leave the results on the device where they are; else they are moved to the CPU.
        """
        tensors = {
            name: {key: fetch(own) for key, own in held.items()}
            if isinstance(held, Handles)
            else fetch(held)
            for name, held in self.tensors.items()
        }
        with threads(self.threads), float32_products():
            result = self.function(context, **self.arguments, **tensors)
        assert len(result.tensors) == self.results
        if stay:
            return result
        groups = ({name: t.cpu() for name, t in group.items()} for group in result.tensors)
        return Result(result.value, tuple(groups))
