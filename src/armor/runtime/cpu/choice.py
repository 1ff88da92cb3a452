"""Which kernel computes a call: measured once on this machine, and remembered.

One row of input has one kernel. For more there are several, and which is the fastest depends on the
processor's instructions and on the BLAS that torch brings. So the first call with a new number of
rows (rounded up to a power of two) times them on a small layer, in some milliseconds, and writes
down what it found, for later processes.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from armor.errors import ArmorError
from armor.simd.bfloat16 import has_dot
from armor.simd.processor import features, instruction_set
from armor.sparse.layer import PackedLayer
from armor.versions import versions

#: Names a kernel, for every call that it can compute: no measurement.
ENVIRONMENT = "ARMOR_CPU_KERNEL"
ROW = "row"
#: For several rows: inputs in lanes; the processor's products of bfloat16; unpacked, then BLAS.
KERNELS = ("columns", "dot", "panels")
MOST_ROWS = 256  # measured; more rows take the same kernel
_MOST_ROWS_DOT = 128
_SIZE, _BLOCK, _ROUNDS = 1024, 32, 5  # of the layer that is timed, and how often


def kernel_of(dtype: torch.dtype, batch: int, run: Callable[..., Any]) -> str:
    """The kernel for `batch` rows of input: ``row`` or one of `KERNELS`.

    Args:
        run: computes (kernel, x, layer), to be timed.

    Raises:
        ArmorError: the environment names a kernel that does not exist.
    """
    if batch == 1:
        return ROW
    able = candidates(dtype, batch)
    wanted = os.environ.get(ENVIRONMENT)
    if wanted:
        if wanted not in KERNELS:
            raise ArmorError(f"{ENVIRONMENT}={wanted}: valid are {', '.join(KERNELS)}")
        return wanted if wanted in able else able[0]
    rows = min(MOST_ROWS, 2 ** (batch - 1).bit_length())
    return _measured(dtype, rows, torch.get_num_threads(), run)


def candidates(dtype: torch.dtype, batch: int) -> list[str]:
    """The kernels that compute several rows of input."""
    dot = dtype == torch.bfloat16 and batch <= _MOST_ROWS_DOT and has_dot()
    return [name for name in KERNELS if name != "dot" or dot]


@cache
def _measured(dtype: torch.dtype, rows: int, threads: int, run: Callable[..., Any]) -> str:
    able = candidates(dtype, rows)
    key = f"{_machine()}, {threads} threads, {dtype}, {rows} rows"
    path = _folder() / "cpu-kernels.json"
    known = _read(path)
    if known.get(key) not in able:
        known = {**_read(path), key: fastest(able, dtype, rows, run)}
        _write(path, known)
    return str(known[key])


def fastest(names: list[str], dtype: torch.dtype, rows: int, run: Callable[..., Any]) -> str:
    """Which of the kernels takes the shortest time, in turns, for a layer of random numbers."""
    layer, x = _layer(dtype), torch.ones(rows, _SIZE, dtype=dtype, device="cpu")
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(_ROUNDS + 1):
        for name in names:
            began = time.perf_counter()
            run(name, x, layer)
            if number:  # the first round compiles
                times[name].append(time.perf_counter() - began)
    return min(names, key=lambda name: statistics.median(times[name]))


def _layer(dtype: torch.dtype) -> PackedLayer:
    kind: dict[str, Any] = {"dtype": dtype, "device": "cpu"}
    indices = torch.full((_SIZE, _SIZE // 8), 0x94, dtype=torch.uint8, device="cpu")
    values = torch.ones(_SIZE, _SIZE // 2, **kind)
    blocks = torch.ones(_SIZE // _BLOCK, _BLOCK, _BLOCK, **kind)
    return PackedLayer(_SIZE, values, indices, blocks, blocks)


def _machine() -> str:
    """What a measurement depends on."""
    of = versions("torch", "numba", "armor")
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    blas = torch.backends.cpu.get_cpu_capability()
    parts = [name, instruction_set(), f"{len(features())} features", f"torch for {blas}"]
    return ", ".join([*parts, *(f"{package} {version}" for package, version in of.items())])


def _folder() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "armor"


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, known: dict[str, str]) -> None:
    """Whole or not at all; where nothing can be written, the next process measures again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", prefix=".cpu-kernels-", dir=path.parent, delete=False
        ) as file:
            json.dump(known, file, indent=1, sort_keys=True)
        Path(file.name).replace(path)
    except OSError as error:
        logging.getLogger("armor").debug("the choice of kernels is not kept: %s", error)
