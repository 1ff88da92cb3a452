"""Starting a compiled task on several threads: torch's own, where they can be reached.

A second set of threads would compete with torch's, which spin for a while after each product, and
waking sleeping threads takes longer than a small layer. So tasks go to the OpenMP library that
torch has loaded; where there is none of that kind (macOS, Windows), to Numba's threads.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import cfunc, config, njit, prange, set_num_threads, types

from armor.simd.cache import is_kept
from armor.simd.vectors import intrinsic

_TRIES = 25  # starts that are timed, once a process
_JIT: dict[str, Any] = {"cache": is_kept(), "error_model": "numpy", "nogil": True}


def start(task: int, job: int, threads: int) -> None:
    """Run `task` (the address of a C function of one address) on `job` on so many threads at once.

    Returns when all are done. Each thread gets the same job: its counters say what is left to do.
    """
    if threads == 1:
        _on_this_thread(task)(job)
    else:
        _starter()(task, job, threads)


@cache
def start_seconds(threads: int) -> float:
    """What starting a task on several threads takes on this machine, and waiting for the last."""
    task = _nothing().address
    times = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        start(task, 0, threads)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@cache
def _on_this_thread(task: int) -> Callable[[int], None]:
    return ctypes.CFUNCTYPE(None, ctypes.c_ssize_t)(task)


@cache
def _nothing() -> Any:
    return cfunc("void(intp)", **_JIT)(_do_nothing)


def _do_nothing(job):  # type: ignore[no-untyped-def]
    pass


@cache
def _starter() -> Callable[[int, int, int], None]:
    launch = _openmp_of_torch()
    if launch is None:
        return _on_threads_of_numba
    return lambda task, job, threads: launch(task, job, threads, 0)


def _openmp_of_torch() -> Any:
    """``GOMP_parallel`` of the library that torch computes with, or None."""
    maps = Path("/proc/self/maps")
    if "OpenMP" not in torch.__config__.parallel_info() or not maps.exists():
        return None
    names = ("libgomp", "libiomp5", "libomp")
    loaded = dict.fromkeys(line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines())
    libraries = [path for path in loaded if Path(path).name.startswith(names)]
    here = str(Path(torch.__file__).parent.parent)
    for path in sorted(libraries, key=lambda path: not path.startswith(here)):
        try:
            library = ctypes.CDLL(path)
            if library.omp_get_max_threads() != torch.get_num_threads():
                continue  # another one's than torch's
            launch = library.GOMP_parallel
        except (OSError, AttributeError):
            continue
        launch.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        launch.restype = None
        return launch
    return None


def _on_threads_of_numba(task: int, job: int, threads: int) -> None:
    settings: Any = config  # its attributes are made on import
    before = torch.get_num_threads()
    threads = min(threads, settings.NUMBA_NUM_THREADS)
    set_num_threads(threads)
    if torch.get_num_threads() != before:
        # Numba, starting its threads, sets OpenMP's number, too. vLLM replaces the public function.
        torch._C.set_num_threads(before)
    _run_all(task, job, threads)


@intrinsic
def _call(typing: Any, task: Any, job: Any):  # type: ignore[no-untyped-def]
    """Calls the C function at address `task`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), (word,)).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), (args[1],))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@njit(parallel=True, **_JIT)
def _run_all(task, job, threads):  # type: ignore[no-untyped-def]
    for _ in prange(threads):
        _call(task, job)
