"""What the Triton kernels call; importing this needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from armor.triton import is_interpreted

_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def operand(dtype: torch.dtype) -> tl.dtype:
    """What products of tiles take: `dtype`, but Triton's interpreter multiplies no bfloat16."""
    return tl.float32 if is_interpreted() else _TYPES[dtype]


def power_of_two(size: int) -> int:
    """A tile that holds `size`: at least 16, as tensor cores want it."""
    return max(16, triton.next_power_of_2(size))


@triton.jit
def layer_of(tile, first_tile):  # type: ignore[no-untyped-def]
    """The number of the layer that a tile belongs to."""
    which = 0
    for number in tl.static_range(1, len(first_tile)):
        which += (tile >= first_tile[number]).to(tl.int32)
    return which


@triton.jit
def tensor_of(which, tensors):  # type: ignore[no-untyped-def]
    """The tensor of layer number `which`."""
    chosen = tensors[0]
    for number in tl.static_range(1, len(tensors)):
        if which >= number:  # one comparison of a tile; `==` is kept in a register
            chosen = tensors[number]
    return chosen


@triton.jit
def number_of(which, numbers):  # type: ignore[no-untyped-def]
    """The number of layer number `which`, int32."""
    chosen = tl.cast(numbers[0], tl.int32)
    for number in tl.static_range(1, len(numbers)):
        if which >= number:
            chosen = tl.cast(numbers[number], tl.int32)
    return chosen


@triton.jit
def sum_of_parts(x, shape, item, exists, feature, wanted):  # type: ignore[no-untyped-def]
    """float32 (features, items): the parts of x, of `shape`, added in order."""
    mask = wanted[:, None] & exists[None, :]
    there = x + item[None, :] * shape.width + feature[:, None]
    total = tl.load(there, mask=mask, other=0.0).to(tl.float32)
    for _ in range(1, shape.parts):
        there += tl.cast(shape.batch, tl.int64) * shape.width
        total += tl.load(there, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def sums_of_block(  # type: ignore[no-untyped-def]
    x,
    shape,
    blocks,
    block,
    row,
    item,
    exists,
    features,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """float32 (rows, items): rows of one block of a wrapper times its columns of x.

    Args:
        x: of `shape`, a `Sums`. blocks: (count, SIZE, SIZE), of which number `block`. row, item:
            which; rows from SIZE on are 0. features: that x has. STEP: columns at a time.
    """
    blocks += block.to(tl.int64) * SIZE * SIZE
    total = tl.zeros((row.shape[0], item.shape[0]), tl.float32)
    for start in range(0, SIZE, STEP):
        col = start + tl.arange(0, STEP)
        feature = block * SIZE + col
        factor = tl.load(
            blocks + row[:, None] * SIZE + col[None, :],
            mask=(row[:, None] < SIZE) & (col[None, :] < SIZE),
            other=0.0,
        )
        wanted = (col < SIZE) & (feature < features)
        vector = sum_of_parts(x, shape, item, exists, feature, wanted)
        total = tl.dot(factor.to(OPERAND), vector.to(OPERAND), total, input_precision="ieee")
    return total
