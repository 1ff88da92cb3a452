"""The kernels of the Triton backend; importing this needs Triton.

Up to three layers with the same input (query, key and value, or gate and up) share a launch. What
differs between them comes as a tuple with an entry for each layer, and a program takes the entries
of the layer that its tile belongs to.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


class BlockTensors(NamedTuple):
    """The layers of `blocks_kernel`, an entry for each in every tuple.

    Attributes:
        blocks: (count, SIZE, SIZE). bias: (features,), or None instead of the tuple. y: (batch,
            features). features: of the layer.
        first_tile: the first of the layer's programs. first_feature: where it begins to read x.
    """

    blocks: Any
    bias: Any
    y: Any
    features: Any
    first_tile: Any
    first_feature: Any


class CoreTensors(NamedTuple):
    """The layers of `core_kernel`, an entry for each in every tuple.

    Attributes:
        core_values: (rows, 2*groups), of 16-bit numbers two as one int32. core_indices: (rows,
            ceil(groups/2)). left, right: the wrappers, None where not multiplied here. bias:
            (rows,), or None. y: (batch, rows), None where the sums are the result. rows: outputs.
        first_tile: the first of the layer's programs. first_row: where its sums begin.
    """

    core_values: Any
    core_indices: Any
    left: Any
    right: Any
    bias: Any
    y: Any
    rows: Any
    first_tile: Any
    first_row: Any


class Sums(NamedTuple):
    """The shape (parts, batch, width) of sums that are still to be added up over the parts."""

    parts: Any
    batch: Any
    width: Any


class Inputs(NamedTuple):
    """What the core multiplies.

    Attributes:
        features, groups: of a row of x, and of 4 of them. index_bytes: of a row of positions.
        x_stride: numbers from the input of one layer to that of the next, 0 if they have the same.
        steps: of GROUPS groups, that a program takes.
    """

    features: Any
    groups: Any
    index_bytes: Any
    x_stride: Any
    steps: Any


def operand(dtype: torch.dtype) -> tl.dtype:
    """What products of tiles take: `dtype`, but Triton's interpreter multiplies no bfloat16."""
    return tl.float32 if os.environ.get("TRITON_INTERPRET") == "1" else _TYPES[dtype]


def power_of_two(size: int) -> int:
    """A tile that holds `size`: at least 16, as tensor cores want it."""
    return max(16, triton.next_power_of_2(size))


@triton.jit
def _layer_of(tile, first_tile):  # type: ignore[no-untyped-def]
    """The number of the layer that a tile belongs to."""
    which = 0
    for number in tl.static_range(1, len(first_tile)):
        which += (tile >= first_tile[number]).to(tl.int32)
    return which


@triton.jit
def _tensor_of(which, tensors):  # type: ignore[no-untyped-def]
    """The tensor of layer number `which`."""
    chosen = tensors[0]
    for number in tl.static_range(1, len(tensors)):
        if which == number:
            chosen = tensors[number]
    return chosen


@triton.jit
def _number_of(which, numbers):  # type: ignore[no-untyped-def]
    """The number of layer number `which`, int32."""
    chosen = tl.cast(numbers[0], tl.int32)
    for number in tl.static_range(1, len(numbers)):
        if which == number:
            chosen = tl.cast(numbers[number], tl.int32)
    return chosen


@triton.jit
def _sum_of_parts(x, shape, item, exists, feature, wanted):  # type: ignore[no-untyped-def]
    """float32 (features, items): the parts of x, of `shape`, added in order."""
    mask = wanted[:, None] & exists[None, :]
    there = x + item[None, :] * shape.width + feature[:, None]
    total = tl.load(there, mask=mask, other=0.0).to(tl.float32)
    for _ in range(1, shape.parts):
        there += tl.cast(shape.batch, tl.int64) * shape.width
        total += tl.load(there, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def blocks_kernel(  # type: ignore[no-untyped-def]
    x,
    layers,
    shape,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    STEP: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """y (batch, features) = blockdiag(blocks) (sum over parts of x) + bias, layer by layer.

    A program takes ROWS outputs of one block for ITEMS inputs.

    Args:
        x: of `shape`, a `Sums`. layers: `BlockTensors`.
    """
    tile = tl.program_id(0)
    which = _layer_of(tile, layers.first_tile)
    tile -= _number_of(which, layers.first_tile)
    features = _number_of(which, layers.features)
    x += _number_of(which, layers.first_feature)
    y = _tensor_of(which, layers.y)
    tiles: tl.constexpr = (SIZE + ROWS - 1) // ROWS
    block = tile // tiles
    row = tile % tiles * ROWS + tl.arange(0, ROWS)
    item = (tl.program_id(1) * ITEMS + tl.arange(0, ITEMS)).to(tl.int64)
    exists = item < shape.batch
    blocks = _tensor_of(which, layers.blocks) + block.to(tl.int64) * SIZE * SIZE
    total = tl.zeros((ROWS, ITEMS), tl.float32)
    for start in range(0, SIZE, STEP):
        col = start + tl.arange(0, STEP)
        feature = block * SIZE + col
        factor = tl.load(
            blocks + row[:, None] * SIZE + col[None, :],
            mask=(row[:, None] < SIZE) & (col[None, :] < SIZE),
            other=0.0,
        )
        wanted = (col < SIZE) & (feature < features)
        vector = _sum_of_parts(x, shape, item, exists, feature, wanted)
        total = tl.dot(factor.to(OPERAND), vector.to(OPERAND), total, input_precision="ieee")
    out = block * SIZE + row
    valid = (row < SIZE) & (out < features)
    if layers.bias is not None:
        bias = _tensor_of(which, layers.bias)
        total += tl.load(bias + out, mask=valid, other=0.0).to(tl.float32)[:, None]
    target = y + item[None, :] * features + out[:, None]
    tl.store(target, total.to(y.dtype.element_ty), mask=valid[:, None] & exists[None, :])


@triton.jit
def _unpacked(pairs, codes, ROWS: tl.constexpr, GROUPS: tl.constexpr, TYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The dense tile (ROWS, 4*GROUPS), 16-bit floats.

    Two shifts of 64 bits put a group's values into their places, which is half the instructions of
    comparing each place with both positions.

    Args:
        pairs: int32 (ROWS, GROUPS), the two kept values of a group.
        codes: unsigned (ROWS, GROUPS/2), two nibbles of positions each.
    """
    codes = codes.to(tl.uint32)
    # Sixteen times the first and the second position of each group.
    first = tl.join((codes << 4) & 48, codes & 48)
    second = tl.join((codes << 2) & 48, (codes >> 2) & 48)
    first = tl.reshape(first, (ROWS, GROUPS)).to(tl.uint64)
    second = tl.reshape(second, (ROWS, GROUPS)).to(tl.uint64)
    wide = pairs.to(tl.uint32, bitcast=True).to(tl.uint64)
    group = ((wide & 0xFFFF) << first) | ((wide >> 16) << second)
    even = tl.join(group.to(tl.uint16), (group >> 32).to(tl.uint16))
    odd = tl.join((group >> 16).to(tl.uint16), (group >> 48).to(tl.uint16))
    return tl.reshape(tl.join(even, odd), (ROWS, 4 * GROUPS)).to(TYPE, bitcast=True)


@triton.jit
def _sums16(  # type: ignore[no-untyped-def]
    x,
    pairs,
    codes,
    right,
    there,
    exists,
    first_step,
    inputs,
    RIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    GROUPS: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """float32 (ROWS, ITEMS): `inputs.steps` steps of S (B x) for 16-bit numbers.

    Args:
        x: pointers to the items, (1, ITEMS). pairs, codes: pointers to the rows, (ROWS, 1).
        there: which rows there are, (ROWS, 1). exists: which items.
    """
    total = tl.zeros((ROWS, ITEMS), tl.float32)
    for step in tl.range(first_step, first_step + inputs.steps, num_stages=STAGES):
        first = step * GROUPS
        group = first + tl.arange(0, GROUPS)[None, :]
        byte = first // 2 + tl.arange(0, GROUPS // 2)[None, :]
        if EVEN:
            pair = tl.load(pairs + group)
            code = tl.load(codes + byte)
        else:
            pair = tl.load(pairs + group, mask=there & (group < inputs.groups), other=0)
            code = tl.load(codes + byte, mask=there & (byte < inputs.index_bytes), other=0)
        dense = _unpacked(pair, code, ROWS, GROUPS, x.dtype.element_ty)
        feature = 4 * first + tl.arange(0, 4 * GROUPS)
        inside = (feature < inputs.features)[:, None]
        vector = tl.load(x + feature[:, None], mask=inside & exists[None, :], other=0.0)
        if RIGHT:
            place = right + (feature.to(tl.int64) * RIGHT)[:, None] + tl.arange(0, RIGHT)[None, :]
            factor = tl.load(place, mask=inside, other=0.0)
            vector = tl.dot(factor.to(OPERAND), vector.to(OPERAND))
        total = tl.dot(dense.to(OPERAND), vector.to(OPERAND), total)
    return total


@triton.jit
def _sums32(  # type: ignore[no-untyped-def]
    x,
    values,
    codes,
    there,
    exists,
    first_step,
    inputs,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    GROUPS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """`_sums16` of S x for float32.

    A group adds ``sum over c of D_c x_c``: x_c its c-th input, D_c the value kept there.
    """
    total = tl.zeros((ROWS, ITEMS), tl.float32)
    for step in tl.range(first_step, first_step + inputs.steps, num_stages=STAGES):
        first = step * GROUPS
        group = first + tl.arange(0, GROUPS)
        valid = there & (group[None, :] < inputs.groups)
        place = (2 * first + tl.arange(0, 2 * GROUPS))[None, :]
        both = tl.load(values + place, mask=there & (place < 2 * inputs.groups), other=0.0)
        low, high = tl.split(tl.reshape(both, (ROWS, GROUPS, 2)))
        packed = tl.load(codes + group[None, :] // 2, mask=valid, other=0).to(tl.int32)
        nibble = packed >> (group[None, :] % 2 * 4)
        one = nibble & 3
        two = (nibble >> 2) & 3
        for member in tl.static_range(4):
            dense = tl.where(one == member, low, tl.where(two == member, high, 0.0))
            feature = 4 * group + member
            wanted = (feature < inputs.features)[:, None] & exists[None, :]
            vector = tl.load(x + feature[:, None], mask=wanted, other=0.0)
            total = tl.dot(dense, vector, total, input_precision="ieee")
    return total


@triton.jit
def _times_left(  # type: ignore[no-untyped-def]
    layers,
    which,
    sums,
    shape,
    rows,
    base,
    item,
    exists,
    LEFT: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """y = A times the sums, plus bias, for the SPAN outputs of a layer from `base` on."""
    y = _tensor_of(which, layers.y)
    left = _tensor_of(which, layers.left)
    col = tl.arange(0, SPAN)
    vector = _sum_of_parts(sums, shape, item, exists, base + col, base + col < rows).to(OPERAND)
    for begin in tl.static_range(0, SPAN, ROWS):
        line = begin + tl.arange(0, ROWS)
        out = base + line
        same = (line // LEFT)[:, None] == (col // LEFT)[None, :]
        place = left + (out.to(tl.int64) * LEFT)[:, None] + (col % LEFT)[None, :]
        factor = tl.load(place, mask=same & (out < rows)[:, None], other=0.0)
        product = tl.dot(factor.to(OPERAND), vector, input_precision="ieee")
        if layers.bias is not None:
            bias = _tensor_of(which, layers.bias)
            added = tl.load(bias + out, mask=out < rows, other=0.0)
            product += added.to(tl.float32)[:, None]
        tl.store(
            y + item[None, :] * rows + out[:, None],
            product.to(y.dtype.element_ty),
            mask=(out < rows)[:, None] & exists[None, :],
        )


@triton.jit
def core_kernel(  # type: ignore[no-untyped-def]
    x,
    layers,
    inputs,
    sums,
    shape,
    counters,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    GROUPS: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """y (batch, rows) = A (S (B x)) + bias, with LEFT and RIGHT; the sums of S x without.

    A program adds up `inputs.steps` steps of GROUPS groups for ROWS outputs of one layer and ITEMS
    inputs.

    Args:
        x: (batch, features); or one for each layer, `inputs.x_stride` numbers apart.
        layers: `CoreTensors`. inputs: `Inputs`.
        sums: float32, of `shape`, a `Sums`; its rows are those of all layers in turn.
        counters: int32, how many programs have finished; 0 before and after.
        LEFT: the block size of A, or 0: the sums are the result. With it, the program that is the
            last to finish with a block of outputs adds up its sums, in the order of the parts, and
            multiplies by A.
        RIGHT: the block size of B, or 0: x is what B made of it. With it, B x is computed here, and
            GROUPS*4 = RIGHT.
        EVEN: whether no tile has rows or groups that do not exist.
    """
    tile = tl.program_id(0)
    part = tl.program_id(1)
    which = _layer_of(tile, layers.first_tile)
    first_tile = _number_of(which, layers.first_tile)
    tile -= first_tile
    rows = _number_of(which, layers.rows)
    row = tile * ROWS + tl.arange(0, ROWS)
    item = (tl.program_id(2) * ITEMS + tl.arange(0, ITEMS)).to(tl.int64)
    exists = item < shape.batch
    x += tl.cast(which, tl.int64) * inputs.x_stride + item[None, :] * inputs.features
    long = row.to(tl.int64)[:, None]
    values = _tensor_of(which, layers.core_values)
    codes = _tensor_of(which, layers.core_indices) + long * inputs.index_bytes
    there = row[:, None] < rows
    first_step = part * inputs.steps
    if x.dtype.element_ty == tl.float32:
        values += long * (2 * inputs.groups)
        total = _sums32(
            x, values, codes, there, exists, first_step, inputs, ROWS, ITEMS, GROUPS, STAGES
        )
    else:
        values += long * inputs.groups
        right = _tensor_of(which, layers.right) if RIGHT else None
        total = _sums16(
            x,
            values,
            codes,
            right,
            there,
            exists,
            first_step,
            inputs,
            RIGHT,
            ROWS,
            ITEMS,
            GROUPS,
            EVEN,
            STAGES,
            OPERAND,
        )
    sums += _number_of(which, layers.first_row)
    part_stride = tl.cast(shape.batch, tl.int64) * shape.width
    target = sums + part * part_stride + item[None, :] * shape.width + row[:, None]
    tl.store(target, total, mask=there & exists[None, :])
    if LEFT:
        SPAN: tl.constexpr = LEFT if LEFT > ROWS else ROWS  # outputs that wait for each other
        TILES: tl.constexpr = SPAN // ROWS
        span = tile // TILES
        layer_tiles = (rows + ROWS - 1) // ROWS
        waiting = shape.parts * tl.minimum(TILES, layer_tiles - span * TILES)
        counter = counters + tl.program_id(2) * tl.num_programs(0) + first_tile + span * TILES
        tl.debug_barrier()  # every warp's sums are written before the program counts as finished
        done = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        if done == waiting - 1:
            tl.debug_barrier()
            tl.store(counter, 0)
            base = span * SPAN
            _times_left(
                layers, which, sums, shape, rows, base, item, exists, LEFT, ROWS, SPAN, OPERAND
            )
