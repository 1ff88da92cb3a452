"""Kernels that take a job: by name, compiled at first use, started on as many threads as pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from numba import cfunc
from torch import Tensor

from armor.runtime.backend import Call
from armor.runtime.cpu import (
    any_pattern_columns,
    any_pattern_row,
    rounded_row,
    team,
    two_of_four_columns,
    two_of_four_row,
)
from armor.runtime.cpu.columns import MOST_ITEMS
from armor.runtime.cpu.job import Sizes, make_job
from armor.simd.cache import is_kept
from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import TWO_OF_FOUR

_ROWS = 64  # of a ticket
_MIXED = 2**15  # products with B of a ticket
# What one thread does in a second, low enough that a second one is not started in vain.
_BYTES_A_SECOND = 1.5e10
_PRODUCTS_A_SECOND = 1e10


class Task(NamedTuple):
    """Compiled by Numba for each dtype: C functions that take the address of a job.

    Attributes:
        float32, bfloat16, float16: of layers in this dtype. items: rows of input of a group, at
            most. room: see `Sizes`.
    """

    float32: Callable[[int], None]
    bfloat16: Callable[[int], None]
    float16: Callable[[int], None]
    items: int
    room: int


def _task(module: Any, items: int, room: int) -> Task:
    return Task(module.float32, module.bfloat16, module.float16, items, room)


#: By name, for each kind of core.
TASKS: dict[str, dict[str, Task]] = {
    "row": {
        "2:4": _task(two_of_four_row, 1, 32),
        "codes": _task(rounded_row, 1, 32),
        "other": _task(any_pattern_row, 1, 64),
    },
    "columns": {
        "2:4": _task(two_of_four_columns, MOST_ITEMS, 8),
        "other": _task(any_pattern_columns, MOST_ITEMS, 64),
    },
}


def kind_of(layer: PackedLayer) -> str:
    """The kind of its core: "codes", "2:4" (not rounded), "other". A job has one kind."""
    if layer.core_scales is not None:
        return "codes"
    return "2:4" if layer.pattern == TWO_OF_FOUR else "other"


def run(name: str, x: Tensor, calls: Sequence[Call]) -> list[Tensor]:
    """The outputs of `calls`, each (batch, out) and contiguous, for x (batch, in)."""
    kind = kind_of(calls[0].layer)
    task = TASKS[name][kind]
    x = x.detach().contiguous()
    threads = _threads(x, calls)
    items = task.items
    while items > 4 and items // 2 >= len(x):
        items //= 2
    job = make_job(x, calls, Sizes(items, _ROWS, _MIXED, task.room), threads)
    team.start(_compiled(name, kind, x.dtype).address, job.address, threads)
    return job.outputs


def _threads(x: Tensor, calls: Sequence[Call]) -> int:
    """As many as torch has, or one where starting more takes longer than it saves."""
    most = torch.get_num_threads()
    if most == 1:
        return 1
    layers = [call.layer for call in calls]
    stored = sum(layer.core_values.nbytes for layer in layers)
    values = sum(layer.core_values.numel() * layer.per_byte for layer in layers)
    seconds = max(stored / _BYTES_A_SECOND, len(x) * values / _PRODUCTS_A_SECOND)
    return most if seconds * (most - 1) / most > team.start_seconds(most) else 1


@cache
def _compiled(name: str, kind: str, dtype: torch.dtype) -> Any:
    function = getattr(TASKS[name][kind], str(dtype).removeprefix("torch."))
    return cfunc("void(intp)", cache=is_kept(), error_model="numpy")(function)
