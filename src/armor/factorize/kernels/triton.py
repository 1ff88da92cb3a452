"""The core sweep in Triton: one program for a few blocks, one lane for each group of a row.

A lane keeps its group's four numbers, its 4x4 corner of H and its six inverses in registers and
works out its best move in every step; only the lane whose turn it is moves. Its four changes are
handed to all lanes, which add them times four rows of H to the running row. So a step of the chain
is a few dozen multiply-adds, one broadcast, and 16 coalesced loads that do not depend on it.

Four entries of a group go by one letter: r the running residual, s the current values, q what they
contribute to it, p the partial residual, n the new values, d their change, m the row of dS H.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # the optional extra "gpu"
    triton = None

#: Rows brought up to date together, so that the changes of the rows above are read once for all.
PANEL = 8
#: Blocks a program takes when there are enough of them: one warp each, sharing H through L1.
WARPS = 8


def is_available() -> bool:
    """Whether Triton is installed. It runs on GPUs, and on the CPU only interpreted (in tests)."""
    return triton is not None


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
    each = max(1, 32 // lanes)  # blocks that fill a warp
    blocks = row_blocks * col_blocks
    warps = WARPS
    while warps > 1 and blocks < each * warps * _processors(core.device):
        warps //= 2
    grid = (triton.cdiv(blocks, each * warps),)
    with torch.cuda.device(core.device) if core.is_cuda else nullcontext():
        _sweep[grid](
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
            BLOCKS=each * warps,
            ROWS=PANEL,
            num_warps=warps,
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
def _better(inv11, inv12, inv22, one, two, number: tl.constexpr, best, va, vb, code):  # type: ignore[no-untyped-def]
    """The better of the pair `number` and the best so far."""
    gain, first, second = _pair(inv11, inv12, inv22, one, two)
    more = gain > best
    return (
        tl.where(more, gain, best),
        tl.where(more, first, va),
        tl.where(more, second, vb),
        tl.where(more, number, code),
    )


@_kernel
def _turn(change, turn):  # type: ignore[no-untyped-def]
    """The change of the lane whose turn it is, (blocks, 1)."""
    return tl.gather(change, turn, axis=1)


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
def _subtract_scaled(r0, r1, r2, r3, coupling, change_gram, step: tl.constexpr, mask):  # type: ignore[no-untyped-def]
    m0, m1, m2, m3 = _load4(change_gram, step, mask)
    return r0 - coupling * m0, r1 - coupling * m1, r2 - coupling * m2, r3 - coupling * m3


@_kernel
def _catch_up(  # type: ignore[no-untyped-def]
    residual,
    residual_stride,
    scratch,
    gram_left,
    panel,
    exists,
    valid,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The residual of the panel's rows less the changes of all rows above, into `scratch`."""
    row = (panel + tl.arange(0, ROWS))[:, None, None]
    exists = exists[None, :, :] & (row < SIZE)
    wanted = valid[None, :, :] & (row < SIZE)
    r0, r1, r2, r3 = _load4(residual[None, :, :] + row * residual_stride, 1, wanted)
    for other in range(panel):
        coupling = tl.load(gram_left[None, :, :] + row * SIZE + other, mask=exists, other=0.0)
        source = scratch[None, :, :] + other * SIZE
        r0, r1, r2, r3 = _subtract_scaled(
            r0, r1, r2, r3, coupling, source, SIZE // 4, valid[None, :, :]
        )
    _store4(scratch[None, :, :] + row * SIZE, SIZE // 4, r0, r1, r2, r3, wanted)


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
    lane = tl.arange(0, LANES)[None, :]
    block = (tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS))[:, None]
    exists = block < row_blocks * col_blocks
    valid = exists & (lane < GROUPS)
    # Neighbours share j: H is read all the time, G once a row.
    i = (block % row_blocks).to(tl.int64)
    j = (block // row_blocks).to(tl.int64)
    residual += i * SIZE * residual_stride + j * SIZE + 4 * lane
    core += i * SIZE * core_stride + j * SIZE + 4 * lane
    choice += i * SIZE * choice_stride + j * GROUPS + lane
    gram_left += i * SIZE * SIZE
    planes += j * SIZE * SIZE + lane
    # Rows in planes, like those of H: the residual of a panel's rows, then their change times H.
    scratch += block.to(tl.int64) * SIZE * SIZE + lane

    corner = planes + 4 * lane * SIZE
    h00, h01, h02, h03 = _load4(corner, GROUPS, valid)
    _, h11, h12, h13 = _load4(corner + SIZE, GROUPS, valid)
    _, _, h22, h23 = _load4(corner + 2 * SIZE, GROUPS, valid)
    h33 = tl.load(corner + 3 * SIZE + 3 * GROUPS, mask=valid, other=0.0)
    inverses += (j * GROUPS + lane) * 18
    a11, b11, c11, d11 = _load4(inverses, 3, valid)
    a12, b12, c12, d12 = _load4(inverses + 1, 3, valid)
    a22, b22, c22, d22 = _load4(inverses + 2, 3, valid)
    e11, e12, e22, f11 = _load4(inverses + 12, 1, valid)
    f12 = tl.load(inverses + 16, mask=valid, other=0.0)
    f22 = tl.load(inverses + 17, mask=valid, other=0.0)

    for panel in range(0, SIZE, ROWS):
        _catch_up(residual, residual_stride, scratch, gram_left, panel, exists, valid, SIZE, ROWS)
        tl.debug_barrier()

        for row in range(panel, min(panel + ROWS, SIZE)):
            scale = tl.load(gram_left + row * (SIZE + 1), mask=exists, other=0.0)
            r0, r1, r2, r3 = _load4(scratch + row * SIZE, GROUPS, valid)
            for other in range(panel, row):
                coupling = tl.load(gram_left + row * SIZE + other, mask=exists, other=0.0)
                source = scratch + other * SIZE
                r0, r1, r2, r3 = _subtract_scaled(r0, r1, r2, r3, coupling, source, GROUPS, valid)
            s0, s1, s2, s3 = _load4(core + row * core_stride, 1, valid)
            code = tl.load(choice + row * choice_stride, mask=valid, other=0).to(tl.int32)
            # Partial residuals: each group taken out. A lane's values change in its own turn only.
            q0 = scale * (s0 * h00 + s1 * h01 + s2 * h02 + s3 * h03)
            q1 = scale * (s0 * h01 + s1 * h11 + s2 * h12 + s3 * h13)
            q2 = scale * (s0 * h02 + s1 * h12 + s2 * h22 + s3 * h23)
            q3 = scale * (s0 * h03 + s1 * h13 + s2 * h23 + s3 * h33)
            r0, r1, r2, r3 = r0 + q0, r1 + q1, r2 + q2, r3 + q3
            offset = scale * (s0 * q0 + s1 * q1 + s2 * q2 + s3 * q3)
            can_move = scale > 0.0
            recip = 1.0 / tl.where(can_move, scale, 1.0)
            m0, m1, m2, m3 = r0 * 0.0, r0 * 0.0, r0 * 0.0, r0 * 0.0
            for group in range(GROUPS):
                p0, p1, p2, p3 = (
                    r0 - scale * m0,
                    r1 - scale * m1,
                    r2 - scale * m2,
                    r3 - scale * m3,
                )
                # Gains are kept multiplied by `scale`, which does not change their order.
                current_gain = 2 * scale * (s0 * p0 + s1 * p1 + s2 * p2 + s3 * p3) - offset
                best, va, vb = _pair(a11, a12, a22, p0, p1)
                pair = tl.zeros_like(code)
                best, va, vb, pair = _better(b11, b12, b22, p0, p2, 1, best, va, vb, pair)
                best, va, vb, pair = _better(c11, c12, c22, p0, p3, 2, best, va, vb, pair)
                best, va, vb, pair = _better(d11, d12, d22, p1, p2, 3, best, va, vb, pair)
                best, va, vb, pair = _better(e11, e12, e22, p1, p3, 4, best, va, vb, pair)
                best, va, vb, pair = _better(f11, f12, f22, p2, p3, 5, best, va, vb, pair)
                moves = (best > current_gain) & can_move & (lane == group)
                va, vb = va * recip, vb * recip
                n0 = tl.where(pair < 3, va, 0.0)
                n1 = tl.where(pair == 0, vb, tl.where((pair == 3) | (pair == 4), va, 0.0))
                n2 = tl.where((pair == 1) | (pair == 3), vb, tl.where(pair == 5, va, 0.0))
                n3 = tl.where((pair == 2) | (pair > 3), vb, 0.0)
                n0, n1 = tl.where(moves, n0, s0), tl.where(moves, n1, s1)
                n2, n3 = tl.where(moves, n2, s2), tl.where(moves, n3, s3)
                code = tl.where(moves, pair, code)
                turn = tl.full((BLOCKS, 1), group, tl.int32)
                d0, d1 = _turn(n0 - s0, turn), _turn(n1 - s1, turn)
                d2, d3 = _turn(n2 - s2, turn), _turn(n3 - s3, turn)
                s0, s1, s2, s3 = n0, n1, n2, n3
                source = planes + 4 * group * SIZE
                x0, x1, x2, x3 = _load4(source, GROUPS, valid)
                y0, y1, y2, y3 = _load4(source + SIZE, GROUPS, valid)
                z0, z1, z2, z3 = _load4(source + 2 * SIZE, GROUPS, valid)
                w0, w1, w2, w3 = _load4(source + 3 * SIZE, GROUPS, valid)
                m0 += d0 * x0 + d1 * y0 + d2 * z0 + d3 * w0
                m1 += d0 * x1 + d1 * y1 + d2 * z1 + d3 * w1
                m2 += d0 * x2 + d1 * y2 + d2 * z2 + d3 * w2
                m3 += d0 * x3 + d1 * y3 + d2 * z3 + d3 * w3
            _store4(core + row * core_stride, 1, s0, s1, s2, s3, valid)
            tl.store(choice + row * choice_stride, code.to(tl.uint8), mask=valid)
            _store4(scratch + row * SIZE, GROUPS, m0, m1, m2, m3, valid)
            tl.debug_barrier()
