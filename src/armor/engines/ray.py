"""The Ray engine: jobs as Ray tasks, on a cluster or on this machine; tensors in its object store.

Every machine must have the same armor and see the model's folder under the same path.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from typing import Any

import numpy as np
import torch

from armor.engines.failure import Failure
from armor.engines.job import Job, Tensors
from armor.engines.queue import JobQueue
from armor.errors import ArmorError
from armor.run.manifest import code_digest
from armor.run.worker import Spec, Worker

#: A task whose worker or machine dies is tried again so many times.
RETRIES = 3
#: Ray speaks gRPC, which is HTTP/2: both sides begin with a frame of settings.
_SETTINGS = b"\x04"
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"
#: Tensors as NumPy arrays of bytes, which Ray maps from its store: (dtype, shape, bytes) by name.
Encoded = dict[str, tuple[str, tuple[int, ...], Any]]


@dataclass(frozen=True)
class _Given:
    """What every task gets: a name for the run, its spec, and the hash of the code."""

    run: str
    spec: Spec
    code: str


class RayEngine:
    """Tasks on the cluster of ``RAY_ADDRESS``, or on one that is started here.

    Args:
        workers: tasks at a time; None for as many as the cluster has CPUs or GPUs for.
        store_bytes: size of the object store of a cluster started here; None leaves it to Ray.

    Raises:
        ArmorError: Ray is not installed, no cluster answers, or it has no GPU where one is needed.
    """

    def __init__(self, spec: Spec, workers: int | None, store_bytes: int | None = None) -> None:
        self._ray = _import_ray()
        self.on_start: Callable[[Job], None] = lambda job: None
        _connect(self._ray, workers, store_bytes)
        self._gpus = 1 if spec.device == "cuda" else 0
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._cpus = int(max(machine.get("CPU", 0) for machine in machines))
        total = int(sum(machine.get("GPU" if self._gpus else "CPU", 0) for machine in machines))
        if not total:
            self.close()
            raise ArmorError("the Ray cluster has no GPU (or CPU) to offer: take another --device")
        self._slots = workers or total
        self.ahead = 2 * self._slots
        run = os.urandom(8).hex()
        self._given = self._ray.put(_Given(run, spec, code_digest()))
        self._task = self._ray.remote(_do)
        self._numbers = count(1)
        self._queue = JobQueue()
        self._running: dict[Any, tuple[int, Job, list[Any]]] = {}  # by the message's reference

    def share(self, tensors: Tensors) -> Any:
        return self._ray.put(_encode(tensors))

    def fetch(self, ref: Any) -> Tensors:
        return _decode(self._get(ref))

    def drop(self, ref: Any) -> None:
        """Ray frees what nobody refers to."""

    def submit(self, job: Job) -> int:
        number = next(self._numbers)
        self._queue.add(number, job)
        self._hand_out()
        return number

    def wait(self) -> tuple[int, Any, list[Any]]:
        try:
            (done,), _ = self._ray.wait(list(self._running), num_returns=1)
        except self._ray.exceptions.RayError as error:
            raise _lost(error) from error
        number, job, refs = self._running.pop(done)
        message = self._get(done)
        self._hand_out()
        if isinstance(message, Failure):
            raise message.exception(job.label)
        return number, message, refs

    def close(self) -> None:
        self._ray.shutdown()

    def _hand_out(self) -> None:
        while len(self._queue) and len(self._running) < self._slots:
            number, job = self._queue.take()
            self.on_start(job)
            done, *refs = self._task.options(
                num_returns=1 + job.results,
                num_cpus=0 if self._gpus else min(job.threads, self._cpus),
                num_gpus=self._gpus,
                max_retries=RETRIES,
                name=job.label or job.task,
            ).remote([self._given], job, list(job.refs), *job.refs.values())
            self._running[done] = number, job, refs

    def _get(self, ref: Any) -> Any:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            raise _lost(error) from error


_workers: dict[str, Worker] = {}  # of this process: the run's, once it had a job


def _do(given: list[Any], job: Job, names: list[str], *values: Encoded) -> tuple[Any, ...]:
    """A task: one job. Runs in a worker process of Ray's, which keeps its `Worker` for the next."""
    import ray

    try:
        setup: _Given = ray.get(given[0])
        if setup.run not in _workers:
            _workers.clear()
            if setup.code != code_digest():
                raise ArmorError(
                    f"{socket.gethostname()} has another version of armor: install the same one"
                    " on every machine"
                )
            if not (setup.spec.folder.path / "config.json").is_file():
                raise ArmorError(
                    f"{socket.gethostname()} cannot read {setup.spec.folder.path}: the model must"
                    " be on a folder that every machine sees under the same path"
                )
            _workers[setup.run] = Worker(setup.spec)
        tensors = {name: _decode(value) for name, value in zip(names, values, strict=True)}
        message, results = _workers[setup.run].run(job, tensors)
    except Exception as error:
        return Failure.of(error), *[{}] * job.results
    return message, *map(_encode, results)


def _encode(tensors: Tensors) -> Encoded:
    return {
        name: (
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy(),
        )
        for name, tensor in tensors.items()
    }


def _decode(encoded: Encoded) -> Tensors:
    """Copies: what Ray maps may not be changed."""
    return {
        name: torch.from_numpy(np.array(data)).view(getattr(torch, dtype)).reshape(shape)
        for name, (dtype, shape, data) in encoded.items()
    }


def _connect(ray: Any, workers: int | None, store_bytes: int | None) -> None:
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "ignore_reinit_error": True}
    try:
        if address:
            _knock(address)
            ray.init(address=address, **quiet)
        else:
            cpus = max(workers or 1, os.cpu_count() or 1)
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=store_bytes,
                include_dashboard=False,
                **quiet,
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        where = f"no Ray cluster answers at {address}" if address else "Ray does not start here"
        raise ArmorError(f"{where}: {reason}") from error


def _knock(address: str) -> None:
    """Raise `OSError` if no Ray answers; Ray itself would try for two minutes, then exit."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    with socket.create_connection((host, int(port)), timeout=10) as line:
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            line.sendall(_GREETING)
            if line.recv(9, socket.MSG_WAITALL)[3:4] != _SETTINGS:
                raise OSError("what listens there is not Ray")


def _import_ray() -> Any:
    try:
        return import_module("ray")
    except ImportError:
        raise ArmorError(
            "--engine ray needs Ray: pip install 'armor-prune[ray]', or leave the option out"
        ) from None


def _lost(error: Exception) -> ArmorError:
    reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
    return ArmorError(
        f"the Ray cluster failed ({reason}); what is finished is kept: give the same command again"
    )
