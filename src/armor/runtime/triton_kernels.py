"""The kernels of the Triton backend; importing this needs Triton."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def operand(dtype: torch.dtype) -> tl.dtype:
    """What products of tiles take: `dtype`, but Triton's interpreter multiplies no bfloat16."""
    return tl.float32 if os.environ.get("TRITON_INTERPRET") == "1" else _TYPES[dtype]


def power_of_two(size: int) -> int:
    """A tile that holds `size`: at least 16, as tensor cores want it."""
    return max(16, triton.next_power_of_2(size))


@triton.jit
def blocks_kernel(  # type: ignore[no-untyped-def]
    x,
    blocks,
    bias,
    y,
    parts,
    part_stride,
    batch,
    features,
    quarter,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    STEP: tl.constexpr,
    BIAS: tl.constexpr,
    PLANES: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """y (batch, features) = blockdiag(blocks) (sum over parts of x) + bias.

    A program takes ROWS outputs of one block for ITEMS inputs.
    """
    tiles: tl.constexpr = (SIZE + ROWS - 1) // ROWS
    block = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    item = (tl.program_id(1) * ITEMS + tl.arange(0, ITEMS)).to(tl.int64)
    exists = item < batch
    blocks += block.to(tl.int64) * SIZE * SIZE
    total = tl.zeros((ROWS, ITEMS), tl.float32)
    for start in range(0, SIZE, STEP):
        col = start + tl.arange(0, STEP)
        feature = block * SIZE + col
        factor = tl.load(
            blocks + row[:, None] * SIZE + col[None, :],
            mask=(row[:, None] < SIZE) & (col[None, :] < SIZE),
            other=0.0,
        )
        wanted = (col[:, None] < SIZE) & (feature[:, None] < features) & exists[None, :]
        there = x + item[None, :] * features + feature[:, None]
        vector = tl.zeros((STEP, ITEMS), tl.float32)
        for _ in range(parts):
            vector += tl.load(there, mask=wanted, other=0.0).to(tl.float32)
            there += part_stride
        total = tl.dot(factor.to(OPERAND), vector.to(OPERAND), total, input_precision="ieee")
    out = block * SIZE + row
    valid = (row < SIZE) & (out < features)
    if BIAS:
        total += tl.load(bias + out, mask=valid, other=0.0).to(tl.float32)[:, None]
    if PLANES:
        out = out % 4 * quarter + out // 4
    target = y + item[None, :] * features + out[:, None]
    tl.store(target, total.to(y.dtype.element_ty), mask=valid[:, None] & exists[None, :])


@triton.jit
def core_kernel(  # type: ignore[no-untyped-def]
    x,
    values,
    indices,
    y,
    part_stride,
    batch,
    rows,
    features,
    groups,
    index_bytes,
    group_stride,
    member_stride,
    each,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    GROUPS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """y[part] (batch, rows), float32 = the core's product over the part's groups of inputs.

    A group of 4 adds ``sum over c of D_c x_c``: x_c is its c-th input, D_c the value kept there or
    0. So nothing is gathered, and each of the four terms is a plain product of tiles. A program
    takes ROWS outputs, ITEMS inputs and `each` steps of GROUPS groups.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    part = tl.program_id(1)
    item = (tl.program_id(2) * ITEMS + tl.arange(0, ITEMS)).to(tl.int64)
    exists = item < batch
    kept = tl.arange(0, 2 * GROUPS)
    values += row[:, None] * (2 * groups)
    indices += row[:, None] * index_bytes
    x += item[None, :] * features
    total = tl.zeros((ROWS, ITEMS), tl.float32)
    for step in range(part * each, part * each + each):
        first = step * GROUPS
        group = first + tl.arange(0, GROUPS)
        place = 2 * first + kept
        valid = (row[:, None] < rows) & (group[None, :] < groups)
        both = tl.load(
            values + place[None, :],
            mask=(row[:, None] < rows) & (place[None, :] < 2 * groups),
            other=0.0,
        )
        low, high = tl.split(tl.reshape(both, (ROWS, GROUPS, 2)))
        packed = tl.load(indices + group[None, :] // 2, mask=valid, other=0).to(tl.int32)
        nibble = packed >> (group[None, :] % 2 * 4)
        one = nibble & 3
        two = (nibble >> 2) & 3
        for member in tl.static_range(4):
            dense = tl.where(one == member, low, tl.where(two == member, high, 0.0))
            wanted = (4 * group + member < features)[:, None] & exists[None, :]
            vector = tl.load(
                x + group[:, None] * group_stride + member * member_stride, mask=wanted, other=0.0
            )
            total = tl.dot(dense.to(OPERAND), vector.to(OPERAND), total, input_precision="ieee")
    target = y + part.to(tl.int64) * part_stride + item[None, :] * rows + row[:, None]
    tl.store(target, total, mask=(row[:, None] < rows) & exists[None, :])
