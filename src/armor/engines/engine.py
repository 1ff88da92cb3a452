"""Engine: where jobs are done, and how tensors get there and back; Scheduler: their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from armor.engines.job import Handle, Job, Tensors


@dataclass(frozen=True)
class Done:
    """A finished job: its number, the value that it returned, handles of its groups of tensors."""

    number: int
    value: Any
    handles: list[Handle]


class Engine(Protocol):
    """Does jobs, in any order, and holds the tensors that pass between them.

    Attributes:
        ahead: how many unfinished jobs are worth having, beyond those that run.
        on_start: called with a job when it begins.
    """

    ahead: int
    on_start: Callable[[Job], None]

    def share(self, tensors: Tensors) -> Handle:
        """Hold `tensors`; the handle can be given to a job."""

    def fetch(self, handle: Handle) -> Tensors:
        """The tensors of a handle."""

    def drop(self, handle: Handle) -> None:
        """Nobody will use the handle again."""

    def submit(self, job: Job) -> int:
        """Have `job` done; returns its number."""

    def wait(self) -> Done:
        """A job that is done and was not returned before.

        Raises:
            what the job raised, and `ArmorError` where no worker is left to do it.
        """

    def close(self) -> None:
        """Stop all work at once."""


class Scheduler:
    """Submits jobs to `engine` and sorts what comes back."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._callbacks: dict[int, Callable[[Done], None]] = {}
        self._done: dict[int, Done] = {}

    def in_order(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Every job done, in the order of `jobs`, which run side by side."""
        numbers = [self.engine.submit(job) for job in jobs]
        for number in numbers:
            while number not in self._done:
                self._receive()
            yield self._done.pop(number)

    def submit(self, job: Job, callback: Callable[[Done], None]) -> None:
        """Have `job` done; `callback` gets it when it is, during some later call."""
        self._callbacks[self.engine.submit(job)] = callback

    def wait(self, unfinished: int = 0) -> None:
        """Wait until at most so many of the jobs of `submit` are unfinished."""
        while len(self._callbacks) > unfinished:
            self._receive()

    def _receive(self) -> None:
        done = self.engine.wait()
        if done.number in self._callbacks:
            self._callbacks.pop(done.number)(done)
        else:
            self._done[done.number] = done
