"""A lazy block of SparseGPT in one launch, for 2:4 on a GPU: a warp for each row of the weight.

A lane holds the four numbers of its group. Group after group, the lane whose turn it is picks what
it keeps and hands its four errors to the lanes after it; see `obs_block.prune_block_torch`, which
takes a thousand launches for the same.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from armor.triton import why_no_triton

try:
    import triton
    import triton.language as tl
except ImportError:  # the optional extra "gpu"
    triton = None

GROUP, KEPT = 4, 2
#: Columns of a block: a lane for each group, at most a warp.
MOST_COLUMNS = 32 * GROUP
#: Rows of a program, one for each of its warps.
ROWS = 8


def runs(weight: Tensor, n: int, m: int) -> bool:
    """Whether it prunes such a block: (columns, rows)."""
    return (
        weight.device.type == "cuda"
        and (n, m) == (KEPT, GROUP)
        and weight.shape[0] <= MOST_COLUMNS
        and weight.shape[0] % GROUP == 0
        and not why_no_triton()
    )


def prune_block(weight: Tensor, upper: Tensor, mask: Tensor) -> Tensor:
    """`obs_block.prune_block` for 2:4.

    Args:
        weight, mask: (columns, rows), columns a multiple of 4 and at most `MOST_COLUMNS`.
        upper: (columns, columns). All contiguous.
    """
    columns, rows = weight.shape
    error = torch.empty_like(weight)
    with torch.cuda.device(weight.device) if weight.is_cuda else nullcontext():
        _prune[(triton.cdiv(rows, ROWS),)](
            weight,
            upper,
            mask,
            error,
            rows,
            COLUMNS=columns,
            LANES=triton.next_power_of_2(columns // GROUP),
            ROWS=ROWS,
            num_warps=ROWS,
        )
    return error


def _kernel(function):  # type: ignore[no-untyped-def]
    return function if triton is None else triton.jit(function)


@_kernel
def _beats(other, own, is_before: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 where another score goes first: the larger, of equal ones the one before."""
    return ((other >= own) if is_before else (other > own)).to(tl.int32)


@_kernel
def _turn(error, turn):  # type: ignore[no-untyped-def]
    """The error of the lane whose turn it is, for every lane of the row."""
    return tl.gather(error, turn, axis=1)


@_kernel
def _less(w0, w1, w2, w3, error, upper, later):  # type: ignore[no-untyped-def]
    """The numbers of the lanes after an error, less their shares of it."""
    return (
        w0 - error * tl.load(upper, mask=later, other=0.0),
        w1 - error * tl.load(upper + 1, mask=later, other=0.0),
        w2 - error * tl.load(upper + 2, mask=later, other=0.0),
        w3 - error * tl.load(upper + 3, mask=later, other=0.0),
    )


@_kernel
def _prune(  # type: ignore[no-untyped-def]
    weight,
    upper,
    mask,
    error,
    rows,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    shape: tl.constexpr = (ROWS, LANES)
    lane = tl.broadcast_to(tl.arange(0, LANES)[None, :], shape)
    row = tl.broadcast_to((tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None], shape)
    exists = (row < rows) & (4 * lane < COLUMNS)
    inside = 4 * lane < COLUMNS
    place = (4 * lane).to(tl.int64) * rows + row
    w0 = tl.load(weight + place, mask=exists, other=0.0)
    w1 = tl.load(weight + place + rows, mask=exists, other=0.0)
    w2 = tl.load(weight + place + 2 * rows, mask=exists, other=0.0)
    w3 = tl.load(weight + place + 3 * rows, mask=exists, other=0.0)
    corner = upper + 4 * lane * (COLUMNS + 1)
    d0 = tl.load(corner, mask=inside, other=1.0)
    u01 = tl.load(corner + 1, mask=inside, other=0.0)
    u02 = tl.load(corner + 2, mask=inside, other=0.0)
    u03 = tl.load(corner + 3, mask=inside, other=0.0)
    d1 = tl.load(corner + COLUMNS + 1, mask=inside, other=1.0)
    u12 = tl.load(corner + COLUMNS + 2, mask=inside, other=0.0)
    u13 = tl.load(corner + COLUMNS + 3, mask=inside, other=0.0)
    d2 = tl.load(corner + 2 * COLUMNS + 2, mask=inside, other=1.0)
    u23 = tl.load(corner + 2 * COLUMNS + 3, mask=inside, other=0.0)
    d3 = tl.load(corner + 3 * COLUMNS + 3, mask=inside, other=1.0)
    e0, e1, e2, e3 = w0 * 0.0, w0 * 0.0, w0 * 0.0, w0 * 0.0
    k0, k1, k2, k3 = lane < 0, lane < 0, lane < 0, lane < 0
    for group in range(COLUMNS // 4):
        is_turn = lane == group
        s0, s1, s2, s3 = w0 / d0, w1 / d1, w2 / d2, w3 / d3
        s0, s1, s2, s3 = s0 * s0, s1 * s1, s2 * s2, s3 * s3
        h0 = _beats(s1, s0, False) + _beats(s2, s0, False) + _beats(s3, s0, False) < 2
        h1 = _beats(s0, s1, True) + _beats(s2, s1, False) + _beats(s3, s1, False) < 2
        h2 = _beats(s0, s2, True) + _beats(s1, s2, True) + _beats(s3, s2, False) < 2
        h3 = _beats(s0, s3, True) + _beats(s1, s3, True) + _beats(s2, s3, True) < 2
        # Column after column: what one loses the next ones make good for.
        x0 = tl.where(h0, 0.0, w0 / d0)
        v1 = w1 - u01 * x0
        x1 = tl.where(h1, 0.0, v1 / d1)
        v2 = w2 - u02 * x0 - u12 * x1
        x2 = tl.where(h2, 0.0, v2 / d2)
        v3 = w3 - u03 * x0 - u13 * x1 - u23 * x2
        x3 = tl.where(h3, 0.0, v3 / d3)
        w0 = tl.where(is_turn, tl.where(h0, w0, 0.0), w0)
        w1 = tl.where(is_turn, tl.where(h1, v1, 0.0), w1)
        w2 = tl.where(is_turn, tl.where(h2, v2, 0.0), w2)
        w3 = tl.where(is_turn, tl.where(h3, v3, 0.0), w3)
        e0, e1 = tl.where(is_turn, x0, e0), tl.where(is_turn, x1, e1)
        e2, e3 = tl.where(is_turn, x2, e2), tl.where(is_turn, x3, e3)
        k0, k1 = k0 | (is_turn & h0), k1 | (is_turn & h1)
        k2, k3 = k2 | (is_turn & h2), k3 | (is_turn & h3)
        turn = lane * 0 + group
        x0, x1, x2, x3 = _turn(x0, turn), _turn(x1, turn), _turn(x2, turn), _turn(x3, turn)
        later = inside & (lane > group)
        source = upper + 4 * group * COLUMNS + 4 * lane
        w0, w1, w2, w3 = _less(w0, w1, w2, w3, x0, source, later)
        w0, w1, w2, w3 = _less(w0, w1, w2, w3, x1, source + COLUMNS, later)
        w0, w1, w2, w3 = _less(w0, w1, w2, w3, x2, source + 2 * COLUMNS, later)
        w0, w1, w2, w3 = _less(w0, w1, w2, w3, x3, source + 3 * COLUMNS, later)
    _store4(weight + place, rows, w0, w1, w2, w3, exists)
    _store4(error + place, rows, e0, e1, e2, e3, exists)
    _store4(mask + place, rows, k0, k1, k2, k3, exists)


@_kernel
def _store4(pointer, step, x0, x1, x2, x3, exists):  # type: ignore[no-untyped-def]
    tl.store(pointer, x0, mask=exists)
    tl.store(pointer + step, x1, mask=exists)
    tl.store(pointer + 2 * step, x2, mask=exists)
    tl.store(pointer + 3 * step, x3, mask=exists)
