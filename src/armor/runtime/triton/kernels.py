"""The kernels of the Triton backend; importing this needs Triton.

Up to three layers with the same input (query, key and value, or gate and up) share a launch: each
pointer comes three times, and a program picks those of the layer its tile belongs to.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def operand(dtype: torch.dtype) -> tl.dtype:
    """What products of tiles take: `dtype`, but Triton's interpreter multiplies no bfloat16."""
    return tl.float32 if os.environ.get("TRITON_INTERPRET") == "1" else _TYPES[dtype]


def stored(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of `dtype`."""
    return _TYPES[dtype]


def power_of_two(size: int) -> int:
    """A tile that holds `size`: at least 16, as tensor cores want it."""
    return max(16, triton.next_power_of_2(size))


@triton.jit
def _pick(which, first, second, third, LAYERS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The one of layer number `which`."""
    chosen = first
    # Nested: Triton decides on the constant while compiling only if it stands alone.
    if LAYERS > 1:  # noqa: SIM102
        if which == 1:
            chosen = second
    if LAYERS > 2:  # noqa: SIM102
        if which == 2:
            chosen = third
    return chosen


@triton.jit
def _sum_of_parts(  # type: ignore[no-untyped-def]
    x, parts, part_stride, item, exists, feature, wanted, width
):
    """float32 (features, items): the parts of x added in order. x: (parts, batch, width)."""
    mask = wanted[:, None] & exists[None, :]
    there = x + item[None, :] * width + feature[:, None]
    total = tl.load(there, mask=mask, other=0.0).to(tl.float32)
    for _ in range(1, parts):
        there += part_stride
        total += tl.load(there, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def blocks_kernel(  # type: ignore[no-untyped-def]
    x,
    blocks0,
    blocks1,
    blocks2,
    bias0,
    bias1,
    bias2,
    y0,
    y1,
    y2,
    parts,
    part_stride,
    batch,
    width,
    end0,
    end1,
    features0,
    features1,
    features2,
    offset1,
    offset2,
    LAYERS: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    STEP: tl.constexpr,
    BIAS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """y (batch, features) = blockdiag(blocks) (sum over parts of x) + bias, layer by layer.

    A program takes ROWS outputs of one block for ITEMS inputs. x is (parts, batch, width); a layer
    reads it from its offset on (offset 0 for the first).
    """
    place = tl.program_id(0)
    which = 0
    if LAYERS > 1:
        which = (place >= end0).to(tl.int32)
    if LAYERS > 2:
        which += (place >= end1).to(tl.int32)
    place -= _pick(which, 0, end0, end1, LAYERS)
    features = _pick(which, features0, features1, features2, LAYERS)
    x += _pick(which, 0, offset1, offset2, LAYERS)
    y = _pick(which, y0, y1, y2, LAYERS)
    tiles: tl.constexpr = (SIZE + ROWS - 1) // ROWS
    block = place // tiles
    row = place % tiles * ROWS + tl.arange(0, ROWS)
    item = (tl.program_id(1) * ITEMS + tl.arange(0, ITEMS)).to(tl.int64)
    exists = item < batch
    blocks = _pick(which, blocks0, blocks1, blocks2, LAYERS) + block.to(tl.int64) * SIZE * SIZE
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
        vector = _sum_of_parts(x, parts, part_stride, item, exists, feature, wanted, width)
        total = tl.dot(factor.to(OPERAND), vector.to(OPERAND), total, input_precision="ieee")
    out = block * SIZE + row
    valid = (row < SIZE) & (out < features)
    if BIAS:
        bias = _pick(which, bias0, bias1, bias2, LAYERS)
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
def core_kernel(  # type: ignore[no-untyped-def]
    x,
    values0,
    values1,
    values2,
    indices0,
    indices1,
    indices2,
    place_row0,
    place_row1,
    place_row2,
    place_column0,
    place_column1,
    place_column2,
    left0,
    left1,
    left2,
    right0,
    right1,
    right2,
    bias0,
    bias1,
    bias2,
    y0,
    y1,
    y2,
    sums,
    counters,
    parts,
    each,
    batch,
    features,
    groups,
    index_bytes,
    x_layer,
    end0,
    end1,
    tiles,
    rows0,
    rows1,
    rows2,
    all_rows,
    LAYERS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    GROUPS: tl.constexpr,
    PAIRS: tl.constexpr,
    PLACED: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
    TYPE: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """y (batch, rows) = A (S (B x)) + bias, with LEFT and RIGHT; the sums of S x without.

    A program adds up `each` steps of GROUPS groups for ROWS outputs of one layer and ITEMS inputs.

    RIGHT, the block size of B or 0: B x is computed here, GROUPS*4 = RIGHT inputs a step; or x is
    what B made of it, one for each layer, `x_layer` numbers apart.
    LEFT, the block size of A or 0: the program that is the last to finish with a block of outputs
    adds up the block's sums, in the order of the parts, and multiplies by A. `counters` (int32)
    count who has finished; they are 0 before and after. With 0, the float32 `sums`
    (parts, batch, rows of all layers) are the result.
    PLACED: the positions are in the order of `armor.runtime.semi_structured.places`.
    """
    tile = tl.program_id(0)
    part = tl.program_id(1)
    which = 0
    if LAYERS > 1:
        which = (tile >= end0).to(tl.int32)
    if LAYERS > 2:
        which += (tile >= end1).to(tl.int32)
    first_tile = _pick(which, 0, end0, end1, LAYERS)
    tile -= first_tile
    rows = _pick(which, rows0, rows1, rows2, LAYERS)
    values = _pick(which, values0, values1, values2, LAYERS)
    indices = _pick(which, indices0, indices1, indices2, LAYERS)
    row = tile * ROWS + tl.arange(0, ROWS)
    long = row.to(tl.int64)[:, None]
    item = (tl.program_id(2) * ITEMS + tl.arange(0, ITEMS)).to(tl.int64)
    exists = item < batch
    if RIGHT:
        right = _pick(which, right0, right1, right2, LAYERS)
        inner = tl.arange(0, RIGHT)
    else:
        x += tl.cast(which, tl.int64) * x_layer
    here = x + item[None, :] * features
    if PLACED:
        lines = _pick(which, place_row0, place_row1, place_row2, LAYERS)
        columns = _pick(which, place_column0, place_column1, place_column2, LAYERS)
        own = tl.load(lines + row, mask=row < rows, other=0)[:, None]
    else:
        indices += long * index_bytes
    values += long * (groups if PAIRS else 2 * groups)
    total = tl.zeros((ROWS, ITEMS), tl.float32)
    for step in tl.range(part * each, part * each + each, num_stages=STAGES):
        first = step * GROUPS
        group = first + tl.arange(0, GROUPS)
        if PAIRS:
            code = first // 2 + tl.arange(0, GROUPS // 2)
            valid = row[:, None] < rows
            if EVEN:
                pairs = tl.load(values + group[None, :])
            else:
                pairs = tl.load(
                    values + group[None, :], mask=valid & (group[None, :] < groups), other=0
                )
            if PLACED:
                unit = first // 4 + tl.arange(0, GROUPS // 4)
                if EVEN:
                    word = tl.load(indices + own + tl.load(columns + unit)[None, :])
                else:
                    inside = 2 * unit < index_bytes
                    column = tl.load(columns + unit, mask=inside, other=0)[None, :]
                    word = tl.load(indices + own + column, mask=valid & inside[None, :], other=0)
                word = word.to(tl.uint16, bitcast=True)
                codes = tl.reshape(tl.join(word & 255, word >> 8), (ROWS, GROUPS // 2))
            elif EVEN:
                codes = tl.load(indices + code[None, :])
            else:
                codes = tl.load(
                    indices + code[None, :], mask=valid & (code[None, :] < index_bytes), other=0
                )
            dense = _unpacked(pairs, codes, ROWS, GROUPS, TYPE)
            feature = 4 * first + tl.arange(0, 4 * GROUPS)
            wanted = (feature < features)[:, None] & exists[None, :]
            vector = tl.load(here + feature[:, None], mask=wanted, other=0.0)
            if RIGHT:
                place = right + (feature.to(tl.int64) * RIGHT)[:, None] + inner[None, :]
                factor = tl.load(place, mask=(feature < features)[:, None], other=0.0)
                vector = tl.dot(factor.to(OPERAND), vector.to(OPERAND))
            total = tl.dot(dense.to(OPERAND), vector.to(OPERAND), total)
        else:
            # A group adds ``sum over c of D_c x_c``: x_c its c-th input, D_c the value kept there.
            valid = (row[:, None] < rows) & (group[None, :] < groups)
            place = 2 * first + tl.arange(0, 2 * GROUPS)
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
                feature = 4 * group + member
                wanted = (feature < features)[:, None] & exists[None, :]
                vector = tl.load(here + feature[:, None], mask=wanted, other=0.0)
                total = tl.dot(dense, vector, total, input_precision="ieee")
    part_stride = batch.to(tl.int64) * all_rows
    sums += _pick(which, 0, rows0, rows0 + rows1, LAYERS)
    target = sums + part * part_stride + item[None, :] * all_rows + row[:, None]
    tl.store(target, total, mask=(row[:, None] < rows) & exists[None, :])
    if LEFT:
        SPAN: tl.constexpr = max(LEFT, ROWS)  # outputs that wait for each other
        TILES: tl.constexpr = SPAN // ROWS
        span = tile // TILES
        layer_tiles = (rows + ROWS - 1) // ROWS
        waiting = parts * tl.minimum(TILES, layer_tiles - span * TILES)
        counter = counters + tl.program_id(2) * tiles + first_tile + span * TILES
        tl.debug_barrier()  # every warp's sums are written before the program counts as finished
        done = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        if done == waiting - 1:
            tl.debug_barrier()
            tl.store(counter, 0)
            y = _pick(which, y0, y1, y2, LAYERS)
            left = _pick(which, left0, left1, left2, LAYERS)
            base = span * SPAN
            col = tl.arange(0, SPAN)
            vector = _sum_of_parts(
                sums, parts, part_stride, item, exists, base + col, base + col < rows, all_rows
            ).to(OPERAND)
            for begin in tl.static_range(0, SPAN, ROWS):
                line = begin + tl.arange(0, ROWS)
                out = base + line
                same = (line // LEFT)[:, None] == (col // LEFT)[None, :]
                place = left + (out.to(tl.int64) * LEFT)[:, None] + (col % LEFT)[None, :]
                factor = tl.load(place, mask=same & (out < rows)[:, None], other=0.0)
                product = tl.dot(factor.to(OPERAND), vector, input_precision="ieee")
                if BIAS:
                    bias = _pick(which, bias0, bias1, bias2, LAYERS)
                    added = tl.load(bias + out, mask=out < rows, other=0.0)
                    product += added.to(tl.float32)[:, None]
                tl.store(
                    y + item[None, :] * rows + out[:, None],
                    product.to(y.dtype.element_ty),
                    mask=(out < rows)[:, None] & exists[None, :],
                )
