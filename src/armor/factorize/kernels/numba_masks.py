"""The core sweep of any pattern in Numba, float32: `lockstep` with the gains of every mask.

A gain is a sum of products of two partial residuals, as many as the mask has pairs: 10 of them for
each of the 70 masks of 4:8. A vector takes 16 blocks, so that every entry of the tables is read for
all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import get_num_threads, njit, prange
from torch import Tensor

from armor.factorize.inverses import TERMS_AT_A_TIME, GainTerms
from armor.factorize.kernels.lockstep import (
    earlier_panels,
    earlier_rows,
    gather,
    scatter,
    times_gram,
)
from armor.simd.cache import is_kept
from armor.simd.vectors import LANES, choose16, every16, load16, multiply_add16, store16, zero16

_JIT: dict[str, Any] = {"cache": is_kept(), "error_model": "numpy", "nogil": True}
_L = LANES
_C = TERMS_AT_A_TIME
_ZERO, _ONE, _INFINITE = np.float32(0), np.float32(1), np.float32(np.inf)


def sweep(
    residual: Tensor,
    core: Tensor,
    choice: Tensor,
    gram_left: Tensor,
    gram_right: Tensor,
    tables: Tensor,
    terms: GainTerms,
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
def _partial_residuals(  # type: ignore[no-untyped-def]
    running_residual, current, change, change_gram, gram, base, scale, partial_residual
):
    """The partial residual of a group; returns its present gain over the scale."""
    width = partial_residual.shape[0]
    none = zero16()
    if width == 2:
        for col in range(base, base + 2):
            total = none
            for entry in range(base):
                total = multiply_add16(total, load16(change, entry * _L), every16(gram[entry, col]))
            store16(change_gram, col * _L, total)
    else:
        for col in range(base, base + width, 4):
            o0, o1, o2, o3 = times_gram(change, gram, 0, base, col, none, none, none, none)
            store16(change_gram, col * _L, o0)
            store16(change_gram, (col + 1) * _L, o1)
            store16(change_gram, (col + 2) * _L, o2)
            store16(change_gram, (col + 3) * _L, o3)
    gain = none
    for place in range(width):
        at = (base + place) * _L
        contribution = none
        for other in range(width):
            entry = every16(gram[base + other, base + place])
            contribution = multiply_add16(contribution, load16(current, (base + other) * _L), entry)
        contribution = scale * contribution
        p = load16(running_residual, at) - scale * load16(change_gram, at) + contribution
        store16(partial_residual, place * _L, p)
        gain = gain + load16(current, at) * (p + p - contribution)
    return gain


@njit(**_JIT)
def _best(partial_residual, products, table, places, starts, sizes, penalties, best, code):  # type: ignore[no-untyped-def]
    """The mask of the largest gain less penalty above `best`, else `code`."""
    width = partial_residual.shape[0]
    for one in range(width):
        p = load16(partial_residual, one * _L)
        for two in range(one, width):
            store16(products, (width * one + two) * _L, p * load16(partial_residual, two * _L))
    for mask in range(sizes.size):
        gain = zero16()
        for t in range(starts[mask], starts[mask + 1], _C):
            gain = multiply_add16(gain, load16(products, places[t]), every16(table[t]))
            gain = multiply_add16(gain, load16(products, places[t + 1]), every16(table[t + 1]))
            gain = multiply_add16(gain, load16(products, places[t + 2]), every16(table[t + 2]))
            gain = multiply_add16(gain, load16(products, places[t + 3]), every16(table[t + 3]))
            gain = multiply_add16(gain, load16(products, places[t + 4]), every16(table[t + 4]))
        gain = gain - load16(penalties, sizes[mask] * _L)
        code = choose16(gain, best, every16(np.float32(mask)), code)
        best = choose16(gain, best, gain, best)
    return code


@njit(**_JIT)
def _move(  # type: ignore[no-untyped-def]
    current, change, codes, choice, partial_residual, table, one, two, starts, recip, base, values
):
    """Each lane's group to the mask in `codes`; one of -1 stays."""
    width = partial_residual.shape[0]
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
            values[one[t]] += half * partial_residual[two[t], lane]
            values[two[t]] += half * partial_residual[one[t], lane]
        for place in range(width):
            value = recip[lane] * values[place]
            change[base + place, lane] = value - current[base + place, lane]
            current[base + place, lane] = value


@njit(**_JIT)
def _sweep_row(  # type: ignore[no-untyped-def]
    running_residual,
    current,
    choice,
    change_gram,
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
    partial_residual,
    products,
    penalties,
    codes,
    recips,
    values,
):
    """One row of every block: its groups in order, then its row of dS H."""
    size = running_residual.shape[0]
    width = partial_residual.shape[0]
    recip = choose16(scale, zero16(), every16(_ONE) / scale, zero16())
    store16(recips, 0, recip)
    for group in range(size // width):
        base = width * group
        gain = _partial_residuals(
            running_residual, current, change, change_gram, gram, base, scale, partial_residual
        )
        current_size = zero16()
        for lane in range(_L):
            codes[lane] = np.float32(sizes[int(choice[group, lane])])
        current_size = load16(codes, 0)
        # A penalty for every size that a mask can have: its price, or what forbids it.
        for count in range(width + 1):
            number = every16(np.float32(count))
            if price < _ZERO:
                apart = (current_size - number) * (current_size - number)
                penalty = choose16(apart, zero16(), every16(_INFINITE), zero16())
            else:
                penalty = scale * every16(price * np.float32(count))
            store16(penalties, count * _L, penalty)
        if price >= _ZERO:
            gain = gain - every16(price) * current_size
        # Gains are kept multiplied by the scale, which does not change their order.
        current_gain = choose16(scale, zero16(), scale * gain, every16(_INFINITE))
        code = _best(
            partial_residual,
            products,
            tables[group],
            places,
            starts,
            sizes,
            penalties,
            current_gain,
            every16(-_ONE),
        )
        store16(codes, 0, code)
        _move(
            current,
            change,
            codes,
            choice[group],
            partial_residual,
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
            m0, m1 = load16(change_gram, at), load16(change_gram, at + _L)
            m2, m3 = load16(change_gram, at + 2 * _L), load16(change_gram, at + 3 * _L)
        else:
            m0, m1, m2, m3 = zero16(), zero16(), zero16(), zero16()
            start = 0
        m0, m1, m2, m3 = times_gram(change, gram, start, size, col, m0, m1, m2, m3)
        store16(change_gram, at, m0)
        store16(change_gram, at + _L, m1)
        store16(change_gram, at + 2 * _L, m2)
        store16(change_gram, at + 3 * _L, m3)


@njit(**_JIT)
def _sweep_lanes(  # type: ignore[no-untyped-def]
    residual, core, choice, gram_left, gram, tables, places, one, two, starts, sizes, price
):
    """At most 16 blocks of (n*b, b) matrices in place; `gram_left` (n, b, b), H (b, b)."""
    count, size = gram_left.shape[0], gram_left.shape[1]
    groups = tables.shape[0]
    width = size // groups
    running_residual = np.zeros((4, size, _L), np.float32)
    current = np.zeros((4, size, _L), np.float32)
    couplings = np.zeros((4, size, _L), np.float32)
    chosen = np.zeros((4, groups, _L), np.float32)
    change = np.empty((size, _L), np.float32)
    change_gram = np.empty((size, size, _L), np.float32)  # dS H
    partial_residual = np.empty((width, _L), np.float32)
    products = np.empty((width * width, _L), np.float32)
    penalties = np.empty((width + 1, _L), np.float32)
    codes, recips = np.empty(_L, np.float32), np.empty(_L, np.float32)
    values = np.empty(width, np.float32)
    for first in range(0, size, 4):
        gather(running_residual, current, couplings, residual, core, gram_left, first)
        for lane in range(count):
            for row in range(4):
                for group in range(groups):
                    chosen[row, group, lane] = choice[lane * size + first + row, group]
        earlier_panels(running_residual, couplings, change_gram, first, size)
        for row in range(first, first + 4):
            earlier_rows(running_residual, couplings, change_gram, first, row, size)
            scale = load16(couplings, ((row - first) * size + row) * _L)
            _sweep_row(
                running_residual[row - first],
                current[row - first],
                chosen[row - first],
                change_gram[row],
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
                partial_residual,
                products,
                penalties,
                codes,
                recips,
                values,
            )
        scatter(core, choice, current, chosen, count, size, first)


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
    row_blocks, col_blocks = gram_left.shape[0], gram_right.shape[0]
    size, groups = gram_left.shape[1], tables.shape[1]
    # Full vectors, unless threads would be idle.
    parts = max(
        (row_blocks + _L - 1) // _L, min(row_blocks, (threads + col_blocks - 1) // col_blocks)
    )
    step = (row_blocks + parts - 1) // parts
    for task in prange(parts * col_blocks):
        part, j = task // col_blocks, task % col_blocks
        start, stop = part * step, min((part + 1) * step, row_blocks)
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
