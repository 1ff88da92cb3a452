"""The core sweep in Triton: a lane for each group of a row, the rows of a block by sets.

A set of `ROWS_TOGETHER` rows moves at once, each as if the others of the set stood still, and of
what they come to is kept, row after row, what still lowers the loss with those kept before (see
`reference.sweep_block`). So a block keeps many warps busy, and its chain of dependent steps is as
many times shorter.

A lane keeps its group's four numbers, its 4x4 corner of H and its six inverses in registers and
works out its best move in every step; only the lane whose turn it is moves. Its four changes are
handed to all lanes of the row, which add them times four rows of H to the running row. So a step of
the chain is a few dozen multiply-adds, one broadcast, and 16 coalesced loads that do not depend on
it.

Four entries of a group go by one letter: r the running residual, s the current values, q what they
contribute to it, p the partial residual, n the new values, d their change, m the row of dS H, c the
row of dS.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from armor.factorize.kernels.rows import ROWS_TOGETHER
from armor.triton import is_older_than, why_no_triton

try:
    import triton
    import triton.language as tl
except ImportError:  # the optional extra "gpu"
    triton = None

#: Warps of a program where blocks are too small to fill as many by themselves; of any program.
WARPS, MOST_WARPS = 4, 16
#: The axis of the lanes in a tile: (lanes, rows, blocks), or (blocks, rows, lanes). Where a load
#: has no neighbours, Triton lays threads along the first axis, from 3.7 on along the last. It must
#: be the lanes': a row that is spread over warps takes a barrier a load.
LANE: Any = None if triton is None else tl.constexpr(0 if is_older_than(3, 7) else 2)


def is_available() -> bool:
    """Whether Triton can run. It does on GPUs, and on the CPU only interpreted (in tests)."""
    return not why_no_triton()


def sweep(
    residual: Tensor,
    core: Tensor,
    choice: Tensor,
    gram_left: Tensor,
    gram_right: Tensor,
    inverses: Tensor,
) -> None:
    """Sweep every block of (i*b, j*b) matrices in place; see `reference.sweep_block`.

    Args:
        residual, core: (i*b, j*b). choice: uint8 (i*b, j*b/4). Rows may be strided, columns not.
        gram_left: (i, b, b). gram_right: (j, b, b). inverses: (j, b/4, 6, 3).
    """
    row_blocks, size = gram_left.shape[:2]
    col_blocks = gram_right.shape[0]
    lanes = triton.next_power_of_2(size // 4)
    # Columns by their place in a group, so that neighbouring lanes read neighbouring numbers.
    planes = gram_right.unflatten(-1, (-1, 4)).transpose(-1, -2).contiguous()
    blocks = row_blocks * col_blocks
    each = max(1, 32 * WARPS // (ROWS_TOGETHER * lanes))  # blocks of a program
    while each > 1 and blocks < each * _processors(core.device):
        each //= 2
    with torch.cuda.device(core.device) if core.is_cuda else nullcontext():
        _sweep[(triton.cdiv(blocks, each),)](
            residual,
            core,
            choice,
            gram_left.contiguous(),
            planes,
            inverses.contiguous(),
            core.new_empty(blocks, size, size),
            residual.stride(0),
            core.stride(0),
            choice.stride(0),
            row_blocks,
            col_blocks,
            SIZE=size,
            LANES=lanes,
            BLOCKS=each,
            ROWS=ROWS_TOGETHER,
            num_warps=min(MOST_WARPS, max(1, each * ROWS_TOGETHER * lanes // 32)),
        )


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _kernel(function):  # type: ignore[no-untyped-def]
    return function if triton is None else triton.jit(function)


@_kernel
def _pair(inv11, inv12, inv22, one, two):  # type: ignore[no-untyped-def]
    """Gain and values, both times the row's scale, of keeping one pair."""
    first = inv11 * one + inv12 * two
    second = inv12 * one + inv22 * two
    return one * first + two * second, first, second


@_kernel
def _better(gain, va, vb, pair, other_gain, other_va, other_vb, other):  # type: ignore[no-untyped-def]
    """The better of two pairs, the first if they are equal."""
    more = other_gain > gain
    return (
        tl.where(more, other_gain, gain),
        tl.where(more, other_va, va),
        tl.where(more, other_vb, vb),
        tl.where(more, other, pair),
    )


@_kernel
def _load4(pointer, step: tl.constexpr, mask):  # type: ignore[no-untyped-def]
    return (
        tl.load(pointer, mask=mask, other=0.0),
        tl.load(pointer + step, mask=mask, other=0.0),
        tl.load(pointer + 2 * step, mask=mask, other=0.0),
        tl.load(pointer + 3 * step, mask=mask, other=0.0),
    )


@_kernel
def _store4(pointer, step: tl.constexpr, x0, x1, x2, x3, mask):  # type: ignore[no-untyped-def]
    tl.store(pointer, x0, mask=mask)
    tl.store(pointer + step, x1, mask=mask)
    tl.store(pointer + 2 * step, x2, mask=mask)
    tl.store(pointer + 3 * step, x3, mask=mask)


@_kernel
def _along(numbers, AXIS: tl.constexpr):  # type: ignore[no-untyped-def]
    """`numbers` along one axis of a tile."""
    return tl.expand_dims(numbers, (0 if AXIS > 0 else 1, 1 if AXIS > 1 else 2))


@_kernel
def _turn(change, turn):  # type: ignore[no-untyped-def]
    """The change of the lane whose turn it is, for every lane of the row."""
    return tl.gather(change, turn, axis=LANE)


@_kernel
def _keep(  # type: ignore[no-untyped-def]
    gain,
    c0,
    c1,
    c2,
    c3,
    change_gram,
    gram_row,
    number,
    left,
    exists,
    valid,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Which rows of a set are kept, bool (blocks, ROWS), or (ROWS, blocks) as all of this shape.

    Args:
        gain: what each alone takes off the loss, (blocks, ROWS). c0 to c3: the change of the row.
        change_gram: pointers to the first row of the set's dS H. gram_row: to G between the row and
            the first of the set. number: of the row in the set.
        left: how many rows of the block there are from the first of the set on.
    """
    lost = gain * 0.0  # of it, to the rows kept before
    kept = gain < 0.0
    for other in tl.static_range(ROWS):
        there = other < left
        m0, m1, m2, m3 = _load4(change_gram + other * SIZE, GROUPS, valid & there)
        coupling = tl.load(gram_row + other, mask=exists & there, other=0.0)
        meet = coupling * tl.sum(c0 * m0 + c1 * m1 + c2 * m2 + c3 * m3, axis=LANE)
        is_kept = (number == other) & ((lost <= 0.0) | (gain > lost))
        counts = tl.expand_dims(tl.sum(is_kept.to(tl.int32), axis=LANE // 2), LANE // 2) > 0
        kept = kept | is_kept
        lost += tl.where(counts & (number > other), 2.0 * meet, 0.0)
    return kept


@_kernel
def _sweep(  # type: ignore[no-untyped-def]
    residual,
    core,
    choice,
    gram_left,
    planes,
    inverses,
    scratch,
    residual_stride,
    core_stride,
    choice_stride,
    row_blocks,
    col_blocks,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
):
    GROUPS: tl.constexpr = SIZE // 4
    # Every tile is (BLOCKS, ROWS, LANES), also what is the same for all rows: one layout, in which
    # the lanes of a row are those of one warp. What is the same for all lanes is loaded once a row.
    shape: tl.constexpr = (LANES, ROWS, BLOCKS) if LANE == 0 else (BLOCKS, ROWS, LANES)
    lane = tl.broadcast_to(_along(tl.arange(0, LANES), LANE), shape)
    number = tl.broadcast_to(_along(tl.arange(0, ROWS), 1), shape)
    block = tl.broadcast_to(_along(tl.arange(0, BLOCKS), 2 - LANE), shape)
    block += tl.program_id(0) * BLOCKS
    is_block = block < row_blocks * col_blocks
    row, row_block = tl.max(number, axis=LANE), tl.max(block, axis=LANE)
    some = is_block & (lane < GROUPS)
    # Neighbours share j: H is read all the time, G once a row.
    i = (block % row_blocks).to(tl.int64)
    j = (block // row_blocks).to(tl.int64)
    residual += (i * SIZE + number) * residual_stride + j * SIZE + 4 * lane
    core += (i * SIZE + number) * core_stride + j * SIZE + 4 * lane
    choice += (i * SIZE + number) * choice_stride + j * GROUPS + lane
    gram_left += (row_block % row_blocks).to(tl.int64) * SIZE * SIZE + row * SIZE
    planes += j * SIZE * SIZE + lane
    # dS H, with rows in planes like those of H.
    scratch += block.to(tl.int64) * SIZE * SIZE + lane

    corner = planes + 4 * lane * SIZE
    h00, h01, h02, h03 = _load4(corner, GROUPS, some)
    _, h11, h12, h13 = _load4(corner + SIZE, GROUPS, some)
    _, _, h22, h23 = _load4(corner + 2 * SIZE, GROUPS, some)
    h33 = tl.load(corner + 3 * SIZE + 3 * GROUPS, mask=some, other=0.0)
    inverses += (j * GROUPS + lane) * 18
    a11, b11, c11, d11 = _load4(inverses, 3, some)
    a12, b12, c12, d12 = _load4(inverses + 1, 3, some)
    a22, b22, c22, d22 = _load4(inverses + 2, 3, some)
    e11, e12, e22, f11 = _load4(inverses + 12, 1, some)
    f12 = tl.load(inverses + 16, mask=some, other=0.0)
    f22 = tl.load(inverses + 17, mask=some, other=0.0)
    none = tl.zeros(shape, tl.int32)

    for first in range(0, SIZE, ROWS):
        exists = (row_block < row_blocks * col_blocks) & (first + row < SIZE)
        valid = some & (first + number < SIZE)
        # The residual less the changes of all sets above, which are read side by side.
        r0, r1, r2, r3 = _load4(residual + first * residual_stride, 1, valid)
        gram_row = gram_left + first * SIZE
        for above in range(0, first, ROWS):
            for other in tl.static_range(ROWS):
                coupling = tl.load(gram_row + above + other, mask=exists, other=0.0)
                coupling = tl.expand_dims(coupling, LANE)
                m0, m1, m2, m3 = _load4(scratch + (above + other) * SIZE, GROUPS, valid)
                r0, r1, r2, r3 = (
                    r0 - coupling * m0,
                    r1 - coupling * m1,
                    r2 - coupling * m2,
                    r3 - coupling * m3,
                )
        scale = tl.load(gram_row + first + row, mask=exists, other=0.0)
        scale = tl.broadcast_to(tl.expand_dims(scale, LANE), shape)
        s0, s1, s2, s3 = _load4(core + first * core_stride, 1, valid)
        code = tl.load(choice + first * choice_stride, mask=valid, other=0).to(tl.int32)
        # Partial residuals: each group taken out. A lane's values change in its own turn only.
        q0 = scale * (s0 * h00 + s1 * h01 + s2 * h02 + s3 * h03)
        q1 = scale * (s0 * h01 + s1 * h11 + s2 * h12 + s3 * h13)
        q2 = scale * (s0 * h02 + s1 * h12 + s2 * h22 + s3 * h23)
        q3 = scale * (s0 * h03 + s1 * h13 + s2 * h23 + s3 * h33)
        offset = scale * (s0 * q0 + s1 * q1 + s2 * q2 + s3 * q3)
        q0, q1, q2, q3 = r0 + q0, r1 + q1, r2 + q2, r3 + q3
        can_move = scale > 0.0
        recip = 1.0 / tl.where(can_move, scale, 1.0)
        m0, m1, m2, m3 = r0 * 0.0, r0 * 0.0, r0 * 0.0, r0 * 0.0
        # A lane compares with its own gain before it has moved.
        t0, t1, t2, t3 = 2 * scale * s0, 2 * scale * s1, 2 * scale * s2, 2 * scale * s3
        for group in range(GROUPS):
            p0, p1, p2, p3 = q0 - scale * m0, q1 - scale * m1, q2 - scale * m2, q3 - scale * m3
            # Gains are kept multiplied by `scale`, which does not change their order.
            current_gain = (t0 * p0 + t1 * p1) + (t2 * p2 + t3 * p3) - offset
            # A tournament, as shallow as can be: the chain of all groups goes through it.
            ga, va, wa = _pair(a11, a12, a22, p0, p1)
            gb, vb, wb = _pair(b11, b12, b22, p0, p2)
            gc, vc, wc = _pair(c11, c12, c22, p0, p3)
            gd, vd, wd = _pair(d11, d12, d22, p1, p2)
            ge, ve, we = _pair(e11, e12, e22, p1, p3)
            gf, vf, wf = _pair(f11, f12, f22, p2, p3)
            ga, va, wa, pair = _better(ga, va, wa, none, gb, vb, wb, none + 1)
            gc, vc, wc, third = _better(gc, vc, wc, none + 2, gd, vd, wd, none + 3)
            ge, ve, we, fifth = _better(ge, ve, we, none + 4, gf, vf, wf, none + 5)
            ga, va, wa, pair = _better(ga, va, wa, pair, gc, vc, wc, third)
            ga, va, wa, pair = _better(ga, va, wa, pair, ge, ve, we, fifth)
            moves = (ga > current_gain) & can_move & (lane == group)
            va, wa = va * recip, wa * recip
            n0 = tl.where(pair < 3, va, 0.0)
            n1 = tl.where(pair == 0, wa, tl.where((pair == 3) | (pair == 4), va, 0.0))
            n2 = tl.where((pair == 1) | (pair == 3), wa, tl.where(pair == 5, va, 0.0))
            n3 = tl.where((pair == 2) | (pair > 3), wa, 0.0)
            d0, d1 = tl.where(moves, n0 - s0, 0.0), tl.where(moves, n1 - s1, 0.0)
            d2, d3 = tl.where(moves, n2 - s2, 0.0), tl.where(moves, n3 - s3, 0.0)
            s0, s1 = tl.where(moves, n0, s0), tl.where(moves, n1, s1)
            s2, s3 = tl.where(moves, n2, s2), tl.where(moves, n3, s3)
            code = tl.where(moves, pair, code)
            turn = none + group
            d0, d1, d2, d3 = _turn(d0, turn), _turn(d1, turn), _turn(d2, turn), _turn(d3, turn)
            source = planes + 4 * group * SIZE
            x0, x1, x2, x3 = _load4(source, GROUPS, some)
            y0, y1, y2, y3 = _load4(source + SIZE, GROUPS, some)
            z0, z1, z2, z3 = _load4(source + 2 * SIZE, GROUPS, some)
            w0, w1, w2, w3 = _load4(source + 3 * SIZE, GROUPS, some)
            m0 += (d0 * x0 + d1 * y0) + (d2 * z0 + d3 * w0)
            m1 += (d0 * x1 + d1 * y1) + (d2 * z1 + d3 * w1)
            m2 += (d0 * x2 + d1 * y2) + (d2 * z2 + d3 * w2)
            m3 += (d0 * x3 + d1 * y3) + (d2 * z3 + d3 * w3)
        own = scratch + (first + number) * SIZE
        _store4(own, GROUPS, m0, m1, m2, m3, valid)
        tl.debug_barrier()
        c0, c1, c2, c3 = _load4(core + first * core_stride, 1, valid)
        c0, c1, c2, c3 = s0 - c0, s1 - c1, s2 - c2, s3 - c3
        gain = c0 * (2 * r0 - scale * m0) + c1 * (2 * r1 - scale * m1)
        gain += c2 * (2 * r2 - scale * m2) + c3 * (2 * r3 - scale * m3)
        kept = _keep(
            tl.sum(gain, axis=LANE),
            c0,
            c1,
            c2,
            c3,
            scratch + first * SIZE,
            gram_row + first,
            row,
            SIZE - first,
            exists,
            valid,
            ROWS,
            GROUPS,
            SIZE,
        )
        tl.debug_barrier()  # all have read dS H
        stays = valid & tl.broadcast_to(tl.expand_dims(kept, LANE), shape)
        _store4(core + first * core_stride, 1, s0, s1, s2, s3, stays)
        tl.store(choice + first * choice_stride, code.to(tl.uint8), mask=stays)
        dropped = valid & ~tl.broadcast_to(tl.expand_dims(kept, LANE), shape)
        zero = r0 * 0.0
        _store4(own, GROUPS, zero, zero, zero, zero, dropped)
        tl.debug_barrier()
