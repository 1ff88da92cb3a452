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
    team,
    two_of_four_columns,
    two_of_four_row,
)
from armor.runtime.cpu.columns import MOST_ITEMS
from armor.runtime.cpu.job import Sizes, make_job
from armor.simd.cache import is_kept
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


#: By name, for 2:4 and for other patterns.
TASKS: dict[str, tuple[Task, Task]] = {
    "row": (_task(two_of_four_row, 1, 32), _task(any_pattern_row, 1, 64)),
    "columns": (
        _task(two_of_four_columns, MOST_ITEMS, 8),
        _task(any_pattern_columns, MOST_ITEMS, 64),
    ),
}


def run(name: str, x: Tensor, calls: Sequence[Call]) -> list[Tensor]:
    """The outputs of `calls`, each (batch, out) and contiguous, for x (batch, in)."""
    other = calls[0].layer.pattern != TWO_OF_FOUR
    task = TASKS[name][other]
    x = x.detach().contiguous()
    threads = _threads(x, calls)
    items = task.items
    while items > 4 and items // 2 >= len(x):
        items //= 2
    job = make_job(x, calls, Sizes(items, _ROWS, _MIXED, task.room), threads)
    team.start(_compiled(name, other, x.dtype).address, job.address, threads)
    return job.outputs


def _threads(x: Tensor, calls: Sequence[Call]) -> int:
    """As many as torch has, or one where starting more takes longer than it saves."""
    most = torch.get_num_threads()
    if most == 1:
        return 1
    stored = sum(call.layer.core_values.numel() for call in calls)
    seconds = stored * max(x.element_size() / _BYTES_A_SECOND, len(x) / _PRODUCTS_A_SECOND)
    return most if seconds * (most - 1) / most > team.start_seconds(most) else 1


@cache
def _compiled(name: str, other: bool, dtype: torch.dtype) -> Any:
    function = getattr(TASKS[name][other], str(dtype).removeprefix("torch."))
    return cfunc("void(intp)", cache=is_kept(), error_model="numpy")(function)
