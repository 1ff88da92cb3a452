"""A worker process of the local engine: ``python -m armor.engines.local_worker FD``.

Gets its device and the scratch folder, then jobs, over the socket FD; answers each with a value and
the files of its tensors, or a `Failure`. Ends when its parent does.
"""

from __future__ import annotations

import os
import pickle
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from armor.checkpoint.folder import full_disk
from armor.checkpoint.tensorfile import map_file, write_file
from armor.engines.failure import Failure
from armor.engines.job import Job
from armor.engines.local import CONTEXT


def serve(line: Connection) -> None:
    """Do jobs until the other end is gone."""
    inbox: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_listen, args=(line, inbox), daemon=True).start()
    device, scratch = inbox.get()
    context: Any = None
    while True:
        number, job = inbox.get()
        try:
            if context is None:
                context = pickle.loads((scratch / CONTEXT).read_bytes())(device)
            answer: tuple[Any, list[Path]] = _do(context, number, job, scratch)
        except Exception as error:
            answer = Failure.of(error), []
        line.send(answer)


def _do(context: Any, number: int, job: Job, scratch: Path) -> tuple[Any, list[Path]]:
    result = job.run(context, map_file)
    paths = [scratch / f"{number}-{place}.safetensors" for place in range(len(result.tensors))]
    for path, tensors in zip(paths, result.tensors, strict=True):
        with full_disk(scratch.parent.parent, path):
            write_file(path, tensors, sync=False)
    return result.value, paths


def _listen(line: Connection, inbox: SimpleQueue[Any]) -> None:
    """Pass on what comes; whatever the worker is at, end as soon as the parent has ended."""
    try:
        while True:
            inbox.put(line.recv())
    except (EOFError, OSError):
        os._exit(1)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
