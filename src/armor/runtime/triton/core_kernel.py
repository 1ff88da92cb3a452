"""The Triton kernel of the core, alone or with the wrappers; importing this needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from armor.runtime.triton.device_functions import layer_of, number_of, sum_of_parts, tensor_of
from armor.runtime.triton.unpack import unpacked
from armor.sparse.levels import SCALE_GROUP

#: Groups of four whose codes share a scale.
SCALE_GROUPS = tl.constexpr(SCALE_GROUP // 2)


@triton.jit
def _codes(  # type: ignore[no-untyped-def]
    values, first, there, inputs, CORE: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr
):
    """float32 (ROWS, GROUPS), twice: both codes of each group from number `first` on.

    Args:
        values: pointers to the rows of stored codes, (ROWS, 1); of int4 two in a byte.
    """
    if CORE == "int4":
        group = first + tl.arange(0, GROUPS)[None, :]
        both = tl.load(values + group, mask=there & (group < inputs.groups), other=0).to(tl.int32)
        return (both & 15).to(tl.float32) - 7.5, (both >> 4).to(tl.float32) - 7.5
    place = 2 * first + tl.arange(0, 2 * GROUPS)[None, :]
    codes = tl.load(values + place, mask=there & (place < 2 * inputs.groups), other=0)
    if CORE == "fp8":  # the upper bits of a float16, which is too small by a power of two
        bits = codes.to(tl.uint16)
        half = ((bits & 128) << 8) | ((bits & 127) << 7)
        levels = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    else:
        levels = codes.to(tl.float32)
    return tl.split(tl.reshape(levels, (ROWS, GROUPS, 2)))


@triton.jit
def _scale_of(scales, first, there, inputs):  # type: ignore[no-untyped-def]
    """float32 (ROWS, 1): the scale of all codes of a step that begins at group `first`."""
    place = tl.minimum(first // SCALE_GROUPS + tl.zeros((1, 1), tl.int32), inputs.scales - 1)
    return tl.load(scales + place, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _pairs_of(low, high, TYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """int32: two codes as 16-bit floats, as `unpacked` takes them."""
    low = low.to(TYPE).to(tl.uint16, bitcast=True).to(tl.uint32)
    high = high.to(TYPE).to(tl.uint16, bitcast=True).to(tl.uint32)
    return (low | (high << 16)).to(tl.int32, bitcast=True)


@triton.jit
def _sums16(  # type: ignore[no-untyped-def]
    x,
    pairs,
    codes,
    scales,
    right,
    right_scales,
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
    CORE: tl.constexpr,
):
    """float32 (ROWS, ITEMS): `inputs.steps` steps of S (B x) for 16-bit numbers.

    Args:
        x: pointers to the items, (1, ITEMS). pairs, codes, scales: pointers to the rows, (ROWS, 1).
        there: which rows there are, (ROWS, 1). exists: which items.
    """
    total = tl.zeros((ROWS, ITEMS), tl.float32)
    for step in tl.range(first_step, first_step + inputs.steps, num_stages=STAGES):
        first = step * GROUPS
        group = first + tl.arange(0, GROUPS)[None, :]
        byte = first // 2 + tl.arange(0, GROUPS // 2)[None, :]
        if CORE is not None:
            low, high = _codes(pairs, first, there, inputs, CORE, ROWS, GROUPS)
            pair = _pairs_of(low, high, x.dtype.element_ty)
        elif EVEN:
            pair = tl.load(pairs + group)
        else:
            pair = tl.load(pairs + group, mask=there & (group < inputs.groups), other=0)
        if EVEN:
            code = tl.load(codes + byte)
        else:
            code = tl.load(codes + byte, mask=there & (byte < inputs.index_bytes), other=0)
        dense = unpacked(pair, code, ROWS, GROUPS, x.dtype.element_ty)
        feature = 4 * first + tl.arange(0, 4 * GROUPS)
        inside = (feature < inputs.features)[:, None]
        vector = tl.load(x + feature[:, None], mask=inside & exists[None, :], other=0.0)
        if RIGHT:
            place = right + (feature.to(tl.int64) * RIGHT)[:, None] + tl.arange(0, RIGHT)[None, :]
            factor = tl.load(place, mask=inside, other=0.0)
            vector = tl.dot(factor.to(OPERAND), vector.to(OPERAND))
            if right_scales is not None:
                scale = tl.load(right_scales + feature, mask=feature < inputs.features, other=0.0)
                vector *= scale.to(tl.float32)[:, None]
        if CORE is not None:
            unit = _scale_of(scales, first, there, inputs)
            total += unit * tl.dot(dense.to(OPERAND), vector.to(OPERAND))
        else:
            total = tl.dot(dense.to(OPERAND), vector.to(OPERAND), total)
    return total


@triton.jit
def _sums32(  # type: ignore[no-untyped-def]
    x,
    values,
    codes,
    scales,
    there,
    exists,
    first_step,
    inputs,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    GROUPS: tl.constexpr,
    STAGES: tl.constexpr,
    CORE: tl.constexpr,
):
    """`_sums16` of S x for float32.

    A group adds ``sum over c of D_c x_c``: x_c its c-th input, D_c the value kept there.
    """
    total = tl.zeros((ROWS, ITEMS), tl.float32)
    for step in tl.range(first_step, first_step + inputs.steps, num_stages=STAGES):
        first = step * GROUPS
        group = first + tl.arange(0, GROUPS)
        valid = there & (group[None, :] < inputs.groups)
        if CORE is not None:
            scale = _scale_of(scales, first, there, inputs)
            low, high = _codes(values, first, there, inputs, CORE, ROWS, GROUPS)
            low, high = scale * low, scale * high
        else:
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
    y = tensor_of(which, layers.y)
    left = tensor_of(which, layers.left)
    col = tl.arange(0, SPAN)
    vector = sum_of_parts(sums, shape, item, exists, base + col, base + col < rows).to(OPERAND)
    for begin in tl.static_range(0, SPAN, ROWS):
        line = begin + tl.arange(0, ROWS)
        out = base + line
        same = (line // LEFT)[:, None] == (col // LEFT)[None, :]
        place = left + (out.to(tl.int64) * LEFT)[:, None] + (col % LEFT)[None, :]
        factor = tl.load(place, mask=same & (out < rows)[:, None], other=0.0)
        product = tl.dot(factor.to(OPERAND), vector, input_precision="ieee")
        if layers.left_scales is not None:
            scales = tensor_of(which, layers.left_scales)
            scale = tl.load(scales + out, mask=out < rows, other=0.0)
            product *= scale.to(tl.float32)[:, None]
        if layers.bias is not None:
            bias = tensor_of(which, layers.bias)
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
    CORE: tl.constexpr,
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
        CORE: what the core is rounded to, such as "int8", or None. With it, GROUPS divides
            `SCALE_GROUPS`: products of codes, which are exact, take their scale after each step.
    """
    tile = tl.program_id(0)
    part = tl.program_id(1)
    which = layer_of(tile, layers.first_tile)
    first_tile = number_of(which, layers.first_tile)
    tile -= first_tile
    rows = number_of(which, layers.rows)
    row = tile * ROWS + tl.arange(0, ROWS)
    item = (tl.program_id(2) * ITEMS + tl.arange(0, ITEMS)).to(tl.int64)
    exists = item < shape.batch
    x += tl.cast(which, tl.int64) * inputs.x_stride + item[None, :] * inputs.features
    long = row.to(tl.int64)[:, None]
    values = tensor_of(which, layers.core_values) + long * inputs.row_values
    codes = tensor_of(which, layers.core_indices) + long * inputs.index_bytes
    there = row[:, None] < rows
    first_step = part * inputs.steps
    scales = None
    if CORE is not None:
        scales = tensor_of(which, layers.core_scales) + long * inputs.scales
    if x.dtype.element_ty == tl.float32:
        total = _sums32(
            x,
            values,
            codes,
            scales,
            there,
            exists,
            first_step,
            inputs,
            ROWS,
            ITEMS,
            GROUPS,
            STAGES,
            CORE,
        )
    else:
        right = tensor_of(which, layers.right) if RIGHT else None
        right_scales = None
        if layers.right_scales is not None:
            right_scales = tensor_of(which, layers.right_scales)
        total = _sums16(
            x,
            values,
            codes,
            scales,
            right,
            right_scales,
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
            CORE,
        )
    sums += number_of(which, layers.first_row)
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
