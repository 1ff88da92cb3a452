"""Scheduler: the results of an engine's jobs in the order they are wanted in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from armor.engines.engine import Engine
from armor.engines.job import Job


class Scheduler:
    """Submits jobs to `engine` and sorts what comes back."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._then: dict[int, Callable[[Any, list[Any]], None]] = {}
        self._done: dict[int, tuple[Any, list[Any]]] = {}

    def each(self, jobs: Iterable[Job]) -> Iterator[tuple[Any, list[Any]]]:
        """Message and handles of every job, in the order of `jobs`, which run side by side."""
        numbers = [self.engine.submit(job) for job in jobs]
        for number in numbers:
            while number not in self._done:
                self._receive()
            yield self._done.pop(number)

    def later(self, job: Job, then: Callable[[Any, list[Any]], None]) -> None:
        """Have `job` done; `then` gets its message and handles, during some later call."""
        self._then[self.engine.submit(job)] = then

    def settle(self, left: int = 0) -> None:
        """Wait until at most `left` of the jobs of `later` are unfinished."""
        while len(self._then) > left:
            self._receive()

    def _receive(self) -> None:
        number, message, refs = self.engine.wait()
        if number in self._then:
            self._then.pop(number)(message, refs)
        else:
            self._done[number] = (message, refs)
