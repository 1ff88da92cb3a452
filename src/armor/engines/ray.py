"""The Ray engine: jobs as Ray tasks, on a cluster or on this machine; tensors in its object store.

Every machine must have the same armor, and see the files that the jobs read under the same path.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import count
from typing import Any

import numpy as np
import torch

from armor.engines.engine import Done
from armor.engines.failure import Failure
from armor.engines.job import Handles, Job, Tensors
from armor.engines.queue import JobQueue
from armor.engines.registry import Setup
from armor.errors import ArmorError

#: A task whose worker or machine dies is tried again so many times.
RETRIES = 3
#: Ray speaks gRPC, which is HTTP/2: both sides begin with a frame of settings.
_SETTINGS = b"\x04"
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"
#: Tensors as NumPy arrays of bytes, which Ray maps from its store: (dtype, shape, bytes) by name.
Encoded = dict[str, tuple[str, tuple[int, ...], Any]]


def open_engine(setup: Setup) -> RayEngine:
    """The cluster, see `RayEngine`."""
    return RayEngine(setup.make_context, setup.device, setup.workers, setup.budget)


@dataclass(frozen=True)
class _Given:
    """What every task gets: a name for the run, its device, and what makes a worker's context."""

    run: str
    device: str
    make_context: Callable[[str], Any]


class RayEngine:
    """Tasks on the cluster of ``RAY_ADDRESS``, or on one that is started here.

    Args:
        make_context: called in each worker process with `device`, see `Setup`.
        workers: tasks at a time; None for as many as the cluster has CPUs or GPUs for.
        store_bytes: size of the object store of a cluster started here; None leaves it to Ray.

    Raises:
        ArmorError: Ray is not installed, no cluster answers, or it has no GPU where one is needed.
    """

    def __init__(
        self,
        make_context: Callable[[str], Any],
        device: str,
        workers: int | None,
        store_bytes: int | None = None,
    ) -> None:
        self._ray = _import_ray()
        self.on_start: Callable[[Job], None] = lambda job: None
        _connect(self._ray, workers, store_bytes)
        self._gpus = 1 if device == "cuda" else 0
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._cpus = int(max(machine.get("CPU", 0) for machine in machines))
        total = int(sum(machine.get("GPU" if self._gpus else "CPU", 0) for machine in machines))
        if not total:
            self.close()
            raise ArmorError("the Ray cluster has no GPU (or CPU) to offer: take another --device")
        self._slots = workers or total
        self.ahead = 2 * self._slots
        run = os.urandom(8).hex()
        self._given = self._ray.put(_Given(run, device, make_context))
        self._task = self._ray.remote(_do)
        self._numbers = count(1)
        self._queue = JobQueue()
        self._running: dict[Any, tuple[int, Job, list[Any]]] = {}  # by the message's reference

    def share(self, tensors: Tensors) -> Any:
        return self._ray.put(_encode(tensors))

    def fetch(self, handle: Any) -> Tensors:
        return _decode(self._get(handle))

    def drop(self, handle: Any) -> None:
        """Ray frees what nobody refers to."""

    def submit(self, job: Job) -> int:
        number = next(self._numbers)
        self._queue.add(number, job)
        self._hand_out()
        return number

    def wait(self) -> Done:
        try:
            (done,), _ = self._ray.wait(list(self._running), num_returns=1)
        except self._ray.exceptions.RayError as error:
            raise _lost(error) from error
        number, job, handles = self._running.pop(done)
        value = self._get(done)
        self._hand_out()
        if isinstance(value, Failure):
            raise value.exception(job.label)
        return Done(number, value, handles)

    def close(self) -> None:
        self._ray.shutdown()

    def _hand_out(self) -> None:
        while len(self._queue) and len(self._running) < self._slots:
            number, job = self._queue.take()
            self.on_start(job)
            names, values = _flat(job)
            done, *handles = self._task.options(
                num_returns=1 + job.results,
                num_cpus=0 if self._gpus else min(job.threads, self._cpus),
                num_gpus=self._gpus,
                max_retries=RETRIES,
                name=job.label or job.function.__name__,
            ).remote([self._given], replace(job, tensors={}), names, *values)
            self._running[done] = number, job, handles

    def _get(self, ref: Any) -> Any:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            raise _lost(error) from error


#: The place of a handle in a job: the argument's name, and its key where there are several.
Place = tuple[str, str | None]


def _flat(job: Job) -> tuple[list[Place], list[Any]]:
    """The places of a job's handles, and the handles: Ray resolves only plain arguments."""
    flat: dict[Place, Any] = {}
    for name, held in job.tensors.items():
        if isinstance(held, Handles):
            flat |= {(name, key): handle for key, handle in held.items()}
        else:
            flat[name, None] = held
    return list(flat), list(flat.values())


def _nested(places: Sequence[Place], values: Sequence[Encoded]) -> dict[str, Any]:
    """The inverse of `_flat`, with the values in the place of their handles."""
    tensors: dict[str, Any] = {}
    for (name, key), value in zip(places, values, strict=True):
        if key is None:
            tensors[name] = value
        else:
            tensors.setdefault(name, Handles())[key] = value
    return tensors


_contexts: dict[str, Any] = {}  # of this process: the run's, once it had a job


def _do(given: list[Any], job: Job, places: list[Place], *values: Encoded) -> tuple[Any, ...]:
    """A task: one job. Runs in a worker process of Ray's, which keeps its context for the next."""
    import ray

    try:
        setup: _Given = ray.get(given[0])
        if setup.run not in _contexts:
            _contexts.clear()
            _contexts[setup.run] = setup.make_context(setup.device)
        result = replace(job, tensors=_nested(places, values)).run(_contexts[setup.run], _decode)
    except Exception as error:
        return Failure.of(error), *[{}] * job.results
    return result.value, *map(_encode, result.tensors)


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
