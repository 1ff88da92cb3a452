"""The local engine: a pool of worker processes on this machine, one a GPU or several on the CPU.

Tensors pass between the processes as files in the scratch folder, mapped into memory.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from armor.checkpoint.folder import full_disk
from armor.checkpoint.tensorfile import map_file, write_file
from armor.engines.engine import Done, Engine
from armor.engines.failure import Failure
from armor.engines.in_process import InProcess
from armor.engines.job import Job, Tensors
from armor.engines.queue import JobQueue
from armor.engines.registry import Setup
from armor.errors import ArmorError
from armor.idle import let_idle_threads_sleep
from armor.memory import available_memory, free_on_device

#: The file in the scratch folder with what makes a worker's context.
CONTEXT = "context"
#: A job whose worker died is tried so many times in all.
ATTEMPTS = 3


def open_engine(setup: Setup) -> Engine:
    """Worker processes, one a GPU; or none, and all is done here, where one worker is enough.

    Raises:
        ArmorError: more workers than GPUs, which would only take turns.
    """
    is_gpu = setup.device != "cpu"
    gpus = torch.cuda.device_count() if setup.device == "cuda" else int(is_gpu)
    workers = setup.workers or gpus or setup.sensible_workers()
    if is_gpu and workers > gpus:
        raise ArmorError(f"--workers {workers} on {gpus} GPU(s): they would only take turns")
    if workers > 1 and sys.platform != "win32":
        devices = [f"cuda:{slot}" if is_gpu else "cpu" for slot in range(workers)]
        return LocalPool(setup.make_context, devices, setup.scratch)
    budget = available_memory() // 2 if setup.budget is None else setup.budget
    return InProcess(setup.here(), setup.scratch, budget, free_on_device(setup.device) // 3)


@dataclass
class _Process:
    """A worker process: its device, our end of the line to it, and the job it is at."""

    device: str
    process: subprocess.Popen[bytes]
    line: Connection
    job: tuple[int, Job] | None = None


class LocalPool:
    """A worker process for each of `devices`; one that dies is replaced and its job done again.

    Args:
        make_context: called in each process with its device, see `Setup`.
        scratch: a folder for the tensors.
    """

    def __init__(
        self, make_context: Callable[[str], Any], devices: Sequence[str], scratch: Path
    ) -> None:
        self.ahead = 2 * len(devices)
        self.on_start: Callable[[Job], None] = lambda job: None
        self._scratch = scratch
        self._numbers = count(1)
        self._queue = JobQueue()
        self._deaths: dict[int, int] = {}  # by job; 0 for those that died without one
        pickled = pickle.dumps(make_context)
        if b"__main__" in pickled:
            raise ArmorError(
                "what is defined in the script itself cannot reach worker processes: move it to a"
                " module of its own, or take one of --workers"
            )
        with full_disk(scratch.parent.parent):
            (scratch / CONTEXT).write_bytes(pickled)
        self._processes = [self._launch(device) for device in devices]

    def share(self, tensors: Tensors) -> Path:
        path = self._scratch / f"{next(self._numbers)}.safetensors"
        with full_disk(self._scratch.parent.parent, path):
            write_file(path, tensors, sync=False)
        return path

    def fetch(self, handle: Path) -> Tensors:
        return map_file(handle)

    def drop(self, handle: Path) -> None:
        handle.unlink()

    def submit(self, job: Job) -> int:
        number = next(self._numbers)
        self._queue.add(number, job)
        self._hand_out()
        return number

    def wait(self) -> Done:
        while True:
            ready = wait([worker.line for worker in self._processes])
            worker = next(each for each in self._processes if each.line in ready)
            try:
                value, paths = worker.line.recv()
            except (EOFError, ConnectionError):
                self._replace(worker)
                self._hand_out()
                continue
            assert worker.job is not None
            (number, job), worker.job = worker.job, None
            self._hand_out()
            if isinstance(value, Failure):
                raise value.exception(job.label)
            return Done(number, value, paths)

    def close(self) -> None:
        for worker in self._processes:
            worker.process.kill()  # what is worth keeping is in the store
            worker.line.close()
        for worker in self._processes:
            worker.process.wait()
        self._processes.clear()
        self._queue.clear()

    def _hand_out(self) -> None:
        for slot, worker in enumerate(self._processes):
            if worker.job is None and len(self._queue):
                number, job = worker.job = self._queue.take(slot, len(self._processes))
                self.on_start(job)
                with suppress(ConnectionError):  # it is dead: `wait` finds out
                    worker.line.send((number, job))

    def _replace(self, worker: _Process) -> None:
        code = worker.process.wait()
        worker.line.close()
        number, job = worker.job or (0, None)
        self._deaths[number] = self._deaths.get(number, 0) + 1
        if self._deaths[number] == ATTEMPTS:
            if job is None:
                raise ArmorError(f"the worker processes do not start: {_ending(code)}")
            raise ArmorError(
                f"{ATTEMPTS} workers died at {job.label}, the last one {_ending(code)}: if memory"
                " ran out, take fewer --workers; the same command goes on from here"
            )
        if job is not None:
            self._queue.add(number, job)
        self._processes[self._processes.index(worker)] = self._launch(worker.device)

    def _launch(self, device: str) -> _Process:
        """A fresh interpreter, so that it works from any script."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        let_idle_threads_sleep(environment)
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "armor.engines.local_worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the parent to handle
            )
        line = Connection(ours.detach())
        with suppress(ConnectionError):
            line.send((device, self._scratch))
        return _Process(device, process, line)


def _ending(code: int) -> str:
    """How a process ended, for a message."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
