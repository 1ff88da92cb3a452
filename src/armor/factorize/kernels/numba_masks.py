"""The core sweep of any pattern in Numba, float32: `lockstep` with the gains of every mask.

A gain is a sum of products of two forces, as many as the mask has pairs: 10 of them for each of the
70 masks of 4:8. A vector takes 16 blocks, so that every entry of the tables is read for all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import get_num_threads, njit, prange
from torch import Tensor

from armor.factorize.kernels.lockstep import (
    earlier_panels,
    earlier_rows,
    gather,
    scatter,
    times_gram,
)
from armor.factorize.masks import CHUNK, Terms
from armor.simd.vectors import LANES, choose16, every16, load16, multiply_add16, store16, zero16

_JIT: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}
_L = LANES
_C = CHUNK
_ZERO, _ONE, _INFINITE = np.float32(0), np.float32(1), np.float32(np.inf)


def sweep(
    residual: Tensor,
    core: Tensor,
    choice: Tensor,
    gram_left: Tensor,
    gram_right: Tensor,
    tables: Tensor,
    terms: Terms,
    price: Tensor | None,
) -> None:
    """See `torch_masks.sweep`; float32 on the CPU."""
    width = gram_right.shape[1] // tables.shape[1]
    one, two = terms.one.numpy(), terms.two.numpy()
    _sweep_blocks(
        residual.numpy(),
        core.numpy(),
        choice.numpy(),
        gram_left.contiguous().numpy(),
        gram_right.contiguous().numpy(),
        tables.contiguous().numpy(),
        (width * one + two) * _L,
        one,
        two,
        terms.starts.numpy(),
        terms.sizes.numpy(),
        np.float32(-1 if price is None else price),
        get_num_threads(),
    )


@njit(**_JIT)
def _forces(pull, held, change, moved, gram, base, scale, force):  # type: ignore[no-untyped-def]
    """The force on a group with the group taken out; returns its present gain over the scale."""
    width = force.shape[0]
    none = zero16()
    if width == 2:
        for col in range(base, base + 2):
            total = none
            for entry in range(base):
                total = multiply_add16(total, load16(change, entry * _L), every16(gram[entry, col]))
            store16(moved, col * _L, total)
    else:
        for col in range(base, base + width, 4):
            o0, o1, o2, o3 = times_gram(change, gram, 0, base, col, none, none, none, none)
            store16(moved, col * _L, o0)
            store16(moved, (col + 1) * _L, o1)
            store16(moved, (col + 2) * _L, o2)
            store16(moved, (col + 3) * _L, o3)
    gain = none
    for place in range(width):
        at = (base + place) * _L
        own = none
        for other in range(width):
            entry = every16(gram[base + other, base + place])
            own = multiply_add16(own, load16(held, (base + other) * _L), entry)
        own = scale * own
        p = load16(pull, at) - scale * load16(moved, at) + own
        store16(force, place * _L, p)
        gain = gain + load16(held, at) * (p + p - own)
    return gain


@njit(**_JIT)
def _best(force, products, table, places, starts, sizes, fines, best, code):  # type: ignore[no-untyped-def]
    """The mask of the largest gain less fine above `best`, else `code`."""
    width = force.shape[0]
    for one in range(width):
        p = load16(force, one * _L)
        for two in range(one, width):
            store16(products, (width * one + two) * _L, p * load16(force, two * _L))
    for mask in range(sizes.size):
        gain = zero16()
        for t in range(starts[mask], starts[mask + 1], _C):
            gain = multiply_add16(gain, load16(products, places[t]), every16(table[t]))
            gain = multiply_add16(gain, load16(products, places[t + 1]), every16(table[t + 1]))
            gain = multiply_add16(gain, load16(products, places[t + 2]), every16(table[t + 2]))
            gain = multiply_add16(gain, load16(products, places[t + 3]), every16(table[t + 3]))
            gain = multiply_add16(gain, load16(products, places[t + 4]), every16(table[t + 4]))
        gain = gain - load16(fines, sizes[mask] * _L)
        code = choose16(gain, best, every16(np.float32(mask)), code)
        best = choose16(gain, best, gain, best)
    return code


@njit(**_JIT)
def _move(held, change, codes, choice, force, table, one, two, starts, recip, base, values):  # type: ignore[no-untyped-def]
    """Each lane's group to the mask in `codes`; one of -1 stays."""
    width = force.shape[0]
    for lane in range(_L):
        mask = int(codes[lane])
        if mask < 0:
            for place in range(width):
                change[base + place, lane] = _ZERO
            continue
        choice[lane] = codes[lane]
        for place in range(width):
            values[place] = _ZERO
        for t in range(starts[mask], starts[mask + 1]):
            half = np.float32(0.5) * table[t]  # the diagonal comes twice, too
            values[one[t]] += half * force[two[t], lane]
            values[two[t]] += half * force[one[t], lane]
        for place in range(width):
            value = recip[lane] * values[place]
            change[base + place, lane] = value - held[base + place, lane]
            held[base + place, lane] = value


@njit(**_JIT)
def _sweep_row(  # type: ignore[no-untyped-def]
    pull,
    held,
    choice,
    moved,
    change,
    gram,
    tables,
    places,
    one,
    two,
    starts,
    sizes,
    price,
    scale,
    force,
    products,
    fines,
    codes,
    recips,
    values,
):
    """One row of every block: its groups in order, then its row of dS H."""
    size = pull.shape[0]
    width = force.shape[0]
    recip = choose16(scale, zero16(), every16(_ONE) / scale, zero16())
    store16(recips, 0, recip)
    for group in range(size // width):
        base = width * group
        gain = _forces(pull, held, change, moved, gram, base, scale, force)
        now = zero16()
        for lane in range(_L):
            codes[lane] = np.float32(sizes[int(choice[group, lane])])
        now = load16(codes, 0)
        # A fine for every size that a mask can have: its price, or what forbids it.
        for count in range(width + 1):
            number = every16(np.float32(count))
            if price < _ZERO:
                apart = (now - number) * (now - number)
                fine = choose16(apart, zero16(), every16(_INFINITE), zero16())
            else:
                fine = scale * every16(price * np.float32(count))
            store16(fines, count * _L, fine)
        if price >= _ZERO:
            gain = gain - every16(price) * now
        # Gains are kept multiplied by the scale, which does not change their order.
        bound = choose16(scale, zero16(), scale * gain, every16(_INFINITE))
        code = _best(
            force, products, tables[group], places, starts, sizes, fines, bound, every16(-_ONE)
        )
        store16(codes, 0, code)
        _move(
            held,
            change,
            codes,
            choice[group],
            force,
            tables[group],
            one,
            two,
            starts,
            recips,
            base,
            values,
        )
    for col in range(0, size, 4):
        at, start = col * _L, col // width * width
        if width > 2:
            m0, m1 = load16(moved, at), load16(moved, at + _L)
            m2, m3 = load16(moved, at + 2 * _L), load16(moved, at + 3 * _L)
        else:
            m0, m1, m2, m3 = zero16(), zero16(), zero16(), zero16()
            start = 0
        m0, m1, m2, m3 = times_gram(change, gram, start, size, col, m0, m1, m2, m3)
        store16(moved, at, m0)
        store16(moved, at + _L, m1)
        store16(moved, at + 2 * _L, m2)
        store16(moved, at + 3 * _L, m3)


@njit(**_JIT)
def _sweep_lanes(  # type: ignore[no-untyped-def]
    residual, core, choice, gram_left, gram, tables, places, one, two, starts, sizes, price
):
    """At most 16 blocks of (n*b, b) matrices in place; `gram_left` (n, b, b), H (b, b)."""
    count, size = gram_left.shape[0], gram_left.shape[1]
    groups = tables.shape[0]
    width = size // groups
    pull = np.zeros((4, size, _L), np.float32)
    held = np.zeros((4, size, _L), np.float32)
    weight = np.zeros((4, size, _L), np.float32)
    chosen = np.zeros((4, groups, _L), np.float32)
    change = np.empty((size, _L), np.float32)
    moved = np.empty((size, size, _L), np.float32)  # dS H
    force = np.empty((width, _L), np.float32)
    products = np.empty((width * width, _L), np.float32)
    fines = np.empty((width + 1, _L), np.float32)
    codes, recips = np.empty(_L, np.float32), np.empty(_L, np.float32)
    values = np.empty(width, np.float32)
    for first in range(0, size, 4):
        gather(pull, held, weight, residual, core, gram_left, first)
        for lane in range(count):
            for row in range(4):
                for group in range(groups):
                    chosen[row, group, lane] = choice[lane * size + first + row, group]
        earlier_panels(pull, weight, moved, first, size)
        for row in range(first, first + 4):
            earlier_rows(pull, weight, moved, first, row, size)
            scale = load16(weight, ((row - first) * size + row) * _L)
            _sweep_row(
                pull[row - first],
                held[row - first],
                chosen[row - first],
                moved[row],
                change,
                gram,
                tables,
                places,
                one,
                two,
                starts,
                sizes,
                price,
                scale,
                force,
                products,
                fines,
                codes,
                recips,
                values,
            )
        scatter(core, choice, held, chosen, count, size, first)


@njit(parallel=True, **_JIT)
def _sweep_blocks(  # type: ignore[no-untyped-def]
    residual,
    core,
    choice,
    gram_left,
    gram_right,
    tables,
    places,
    one,
    two,
    starts,
    sizes,
    price,
    threads,
):
    lefts, rights = gram_left.shape[0], gram_right.shape[0]
    size, groups = gram_left.shape[1], tables.shape[1]
    # Full vectors, unless threads would be idle.
    parts = max((lefts + _L - 1) // _L, min(lefts, (threads + rights - 1) // rights))
    step = (lefts + parts - 1) // parts
    for task in prange(parts * rights):
        part, j = task // rights, task % rights
        start, stop = part * step, min((part + 1) * step, lefts)
        if start < stop:
            rows = slice(start * size, stop * size)
            _sweep_lanes(
                residual[rows, j * size : (j + 1) * size],
                core[rows, j * size : (j + 1) * size],
                choice[rows, j * groups : (j + 1) * groups],
                gram_left[start:stop],
                gram_right[j],
                tables[j],
                places,
                one,
                two,
                starts,
                sizes,
                price,
            )
