"""Engine: where the jobs of a run are done, and how tensors get there and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from armor.checkpoint.tensorfile import map_file, write_file
from armor.engines.job import Job, Tensors
from armor.engines.queue import JobQueue
from armor.run.worker import Worker


class Engine(Protocol):
    """Does jobs, in any order, and holds the tensors that pass between them.

    Attributes:
        ahead: how many unfinished solves are worth having, beyond those that run.
        on_start: called with a job when it begins.
    """

    ahead: int
    on_start: Callable[[Job], None]

    def share(self, tensors: Tensors) -> Any:
        """Hold `tensors`; the handle can be a reference of a job."""

    def fetch(self, ref: Any) -> Tensors:
        """The tensors behind a handle."""

    def drop(self, ref: Any) -> None:
        """Nobody will use the handle again."""

    def submit(self, job: Job) -> int:
        """Have `job` done; returns its number."""

    def wait(self) -> tuple[int, Any, list[Any]]:
        """A job that is done and was not returned before: number, message, handles of its results.

        Raises:
            what the job raised, and `ArmorError` where no worker is left to do it.
        """

    def close(self) -> None:
        """Stop all work at once."""


class InProcess:
    """One worker, in this process. Tensors beyond `budget` bytes go to files in `scratch`."""

    ahead = 0

    def __init__(self, worker: Worker, scratch: Path, budget: int) -> None:
        self.on_start: Callable[[Job], None] = lambda job: None
        self._worker = worker
        self._scratch = scratch
        self._budget = budget
        self._held: dict[int, Tensors | Path] = {}
        self._bytes = 0
        self._queue = JobQueue()
        self._count = 0

    def share(self, tensors: Tensors) -> int:
        self._count += 1
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._bytes + size <= self._budget:
            self._bytes += size
            self._held[self._count] = tensors
        else:
            path = self._scratch / f"{self._count}.safetensors"
            write_file(path, tensors, sync=False)
            self._held[self._count] = path
        return self._count

    def fetch(self, ref: int) -> Tensors:
        held = self._held[ref]
        return map_file(held) if isinstance(held, Path) else held

    def drop(self, ref: int) -> None:
        held = self._held.pop(ref)
        if isinstance(held, Path):
            held.unlink()
        else:
            self._bytes -= sum(tensor.nbytes for tensor in held.values())

    def submit(self, job: Job) -> int:
        self._count += 1
        self._queue.add(self._count, job)
        return self._count

    def wait(self) -> tuple[int, Any, list[int]]:
        number, job = self._queue.take()
        self.on_start(job)
        tensors = {name: self.fetch(ref) for name, ref in job.refs.items()}
        message, results = self._worker.run(job, tensors)
        return number, message, [self.share(result) for result in results]

    def close(self) -> None:
        self._queue.clear()
        self._held.clear()
