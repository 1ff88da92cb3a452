"""The engine without processes: jobs are done here, one by one, when they are waited for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from armor.checkpoint.tensorfile import map_file, write_file
from armor.engines.engine import Done
from armor.engines.job import Job, Tensors
from armor.engines.queue import JobQueue


class InProcess:
    """One worker, in this process.

    Args:
        context: of the jobs. scratch: a folder for the tensors that exceed `budget`, bytes.
        device_budget: bytes of results that stay on the device where they were computed; the rest
            moves to the CPU.
    """

    ahead = 0

    def __init__(self, context: Any, scratch: Path, budget: int, device_budget: int = 0) -> None:
        self.on_start: Callable[[Job], None] = lambda job: None
        self._context = context
        self._scratch = scratch
        self._room = {True: budget, False: device_budget}  # left, on the CPU and elsewhere
        self._held: dict[int, Tensors | Path] = {}
        self._queue = JobQueue()
        self._count = 0

    def share(self, tensors: Tensors) -> int:
        self._count += 1
        size = _size(tensors)
        if not _is_on_cpu(tensors) and size > self._room[False]:
            tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
        if size <= self._room[where := _is_on_cpu(tensors)]:
            self._room[where] -= size
            self._held[self._count] = tensors
        else:
            path = self._scratch / f"{self._count}.safetensors"
            write_file(path, tensors, sync=False)
            self._held[self._count] = path
        return self._count

    def fetch(self, handle: int) -> Tensors:
        held = self._held[handle]
        return map_file(held) if isinstance(held, Path) else held

    def drop(self, handle: int) -> None:
        held = self._held.pop(handle)
        if isinstance(held, Path):
            held.unlink()
        else:
            self._room[_is_on_cpu(held)] += _size(held)

    def submit(self, job: Job) -> int:
        self._count += 1
        self._queue.add(self._count, job)
        return self._count

    def wait(self) -> Done:
        number, job = self._queue.take()
        self.on_start(job)
        result = job.run(self._context, self.fetch, stay=True)
        return Done(number, result.value, [self.share(group) for group in result.tensors])

    def close(self) -> None:
        self._queue.clear()
        self._held.clear()


def _is_on_cpu(tensors: Tensors) -> bool:
    return all(tensor.device.type == "cpu" for tensor in tensors.values())


def _size(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
