"""What a kernel is told: one array of numbers (addresses, sizes, counters) for some layers.

One start of the threads computes all layers of one input. Work comes in tickets that the threads
take from a counter: first those that multiply the input by the wrappers B, then, when all of these
are done, those of the cores and the wrappers A. Which thread does what never changes a sum.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from armor.runtime.backend import Call
from armor.runtime.cpu.arrays import core_arrays
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import CORES
from armor.sparse.pattern import TWO_OF_FOUR

# Counters, each on a cache line of its own; then the sizes; then LAYER numbers for each layer.
MIX_NEXT, MIX_DONE, CORE_NEXT = 0, 8, 16
LAYERS, BATCH, X, COLS, MIX_TICKETS, CORE_TICKETS, ITEMS = 24, 25, 26, 27, 28, 29, 30
FIRST_LAYER = 32
# Addresses of tensors (0: there is none), of float32 scratch (the inputs after B, `ROOM` columns of
# each; the outputs before A); sizes; the first ticket of each kind, and how much one is.
(VALUES, INDICES, LEFT, RIGHT, BIAS, Y, MIXED, SUMS) = range(8)
(OUT, KEPT, BYTES, ROOM, LEFT_BLOCK, RIGHT_BLOCK, RIGHT_COUNT) = range(8, 15)
(MIX_FIRST, CORE_FIRST, BLOCKS_A_TICKET, ROWS_A_TICKET, CHUNKS) = range(15, 20)
(STARTS, TABLE, WIDTH, CODED) = range(20, 24)  # not of 2:4, see `any_pattern_kernels`
# Of a rounded core: its scales, how many a row has, what it is rounded to (a place in `CORES`); the
# scales of wrappers that are rounded, too.
(CORE_SCALES, SCALES, CODES, LEFT_SCALES, RIGHT_SCALES) = range(24, 29)
LAYER = 32


class Sizes(NamedTuple):
    """How a job is cut into tickets.

    Attributes:
        items: rows of input that are computed together. rows: of the core, of a ticket; wrapper
            blocks are never cut. mixed: products of a ticket that multiplies by B.
        room: columns of inputs end at a multiple of it.
    """

    items: int
    rows: int
    mixed: int
    room: int


class Job(NamedTuple):
    """Numbers for a kernel, and what must live as long as it runs."""

    numbers: array[int]
    outputs: list[Tensor]
    kept: list[Any]

    @property
    def address(self) -> int:
        """Of the numbers."""
        return self.numbers.buffer_info()[0]


def make_job(x: Tensor, calls: Sequence[Call], sizes: Sizes, threads: int) -> Job:
    """The job of multiplying contiguous x (batch, in) by the layers of `calls`."""
    batch, cols = x.shape
    items = -(-batch // sizes.items)  # groups of them
    outputs: list[Tensor] = []
    kept: list[Any] = [x]
    floats = 0
    layers: list[list[int]] = []
    mix_tickets = core_tickets = 0
    for call in calls:
        layer = call.layer
        values, indices = _ready(layer.core_values, kept), _ready(layer.core_indices, kept)
        others = (0, 0, 0, 0)
        if layer.pattern != TWO_OF_FOUR:
            _, starts, _, table, *numbers = core_arrays(layer)
            kept += (starts, table)
            values = values.flatten()
            others = (starts.ctypes.data, table.ctypes.data, *numbers)
        left, right = _ready(layer.left, kept), _ready(layer.right, kept)
        out, width = indices.shape
        y = torch.empty(batch, out, dtype=x.dtype, device="cpu")
        outputs.append(y)
        count, block = (0, 0) if right is None else right.shape[:2]
        step = max(1, sizes.mixed // (block * block * sizes.items)) if block else 1
        height = 1 if left is None else left.shape[1]  # blocks of A are never cut
        rows = max(1, sizes.rows // height) * height
        chunks = min(items, max(1, 4 * threads * rows // out))
        room = -(-max(cols, count * block, others[3]) // sizes.room) * sizes.room
        mixed, sums = floats, floats + room * items * sizes.items
        floats = sums + (-(-out // height) * height if sizes.items == 1 else 0)
        layers.append(
            [
                *(values.data_ptr(), indices.data_ptr(), _address(left), _address(right)),
                *(_address(_ready(call.bias, kept)), y.data_ptr(), 4 * mixed, 4 * sums),
                *(
                    out,
                    values.shape[-1] * layer.per_byte,
                    width,
                    room,
                    0 if left is None else height,
                    block,
                    count,
                ),
                *(mix_tickets, core_tickets, step, rows, chunks),
                *others,
                *_of_codes(layer, kept),
            ]
        )
        mix_tickets += (-(-count // step) if block else 1) * items
        core_tickets += -(-out // rows) * chunks
    space = torch.empty(floats + 16, dtype=torch.float32, device="cpu")
    kept.append(space)
    first = -(-space.data_ptr() // 64) * 64
    head = [0] * FIRST_LAYER
    head[LAYERS:FIRST_LAYER] = [
        *(len(calls), batch, x.data_ptr(), cols, mix_tickets, core_tickets, sizes.items, 0)
    ]
    for numbers in layers:
        numbers[MIXED] += first
        numbers[SUMS] += first
        head += numbers
    return Job(array("q", head), outputs, kept)


def _of_codes(layer: PackedLayer, kept: list[Any]) -> list[int]:
    """The numbers from `CORE_SCALES` on: zeros where nothing is rounded."""
    found = [0] * (LAYER - CORE_SCALES)
    if (scales := layer.core_scales) is not None:
        others = (_ready(layer.left_scales, kept), _ready(layer.right_scales, kept))
        codes = list(CORES).index(str(layer.core))
        found[:3] = [_address(_ready(scales, kept)), scales.shape[1], codes]
        found[3:5] = map(_address, others)
    return found


@overload
def _ready(tensor: Tensor, kept: list[Any]) -> Tensor: ...
@overload
def _ready(tensor: Tensor | None, kept: list[Any]) -> Tensor | None: ...
def _ready(tensor: Tensor | None, kept: list[Any]) -> Tensor | None:
    """The tensor itself if it is contiguous, or a copy that `kept` keeps alive."""
    if tensor is None or tensor.is_contiguous():
        return tensor
    kept.append(copy := tensor.contiguous())
    return copy


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
