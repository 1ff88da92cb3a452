"""Numba kernels for several rows of bfloat16, on processors that multiply it: see `has_dot`.

The kept inputs are picked out of 64 by one instruction and multiplied by another, which needs no
unpacked weights: half the multiplications of a dense layer, and a little over half its memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from armor.simd.bfloat16 import dot32, load32, load_places, pick32, store32
from armor.simd.cache import is_kept
from armor.simd.vectors import store_sums, zero16

_JIT: dict[str, Any] = {"cache": is_kept(), "error_model": "numpy", "nogil": True}
_HEIGHT = 8  # rows a thread takes at a time: their values and places stay in its caches
TILE = 4  # rows and items of a tile: its 16 sums fill half the registers


@njit(forceinline=True, **_JIT)
def _core_tile(values, places, x, y, row, rows, height, item):  # type: ignore[no-untyped-def]
    """Four rows of the core times four items; `row` is the first of them in the scratch."""
    kept, width = values.shape[1], x.shape[1]
    a = row * kept
    b, c, d = a + kept, a + 2 * kept, a + 3 * kept
    p = item * width
    q, s, t = p + width, p + 2 * width, p + 3 * width
    a0, a1, a2, a3 = zero16(), zero16(), zero16(), zero16()
    b0, b1, b2, b3 = zero16(), zero16(), zero16(), zero16()
    c0, c1, c2, c3 = zero16(), zero16(), zero16(), zero16()
    d0, d1, d2, d3 = zero16(), zero16(), zero16(), zero16()
    for k in range(0, kept, 32):
        at = 2 * k
        x0, h0 = load32(x, p + at), load32(x, p + at + 32)
        x1, h1 = load32(x, q + at), load32(x, q + at + 32)
        x2, h2 = load32(x, s + at), load32(x, s + at + 32)
        x3, h3 = load32(x, t + at), load32(x, t + at + 32)
        v, i = load32(values, a + k), load32(places, a + k)
        a0, a1 = dot32(a0, v, pick32(x0, h0, i)), dot32(a1, v, pick32(x1, h1, i))
        a2, a3 = dot32(a2, v, pick32(x2, h2, i)), dot32(a3, v, pick32(x3, h3, i))
        v, i = load32(values, b + k), load32(places, b + k)
        b0, b1 = dot32(b0, v, pick32(x0, h0, i)), dot32(b1, v, pick32(x1, h1, i))
        b2, b3 = dot32(b2, v, pick32(x2, h2, i)), dot32(b3, v, pick32(x3, h3, i))
        v, i = load32(values, c + k), load32(places, c + k)
        c0, c1 = dot32(c0, v, pick32(x0, h0, i)), dot32(c1, v, pick32(x1, h1, i))
        c2, c3 = dot32(c2, v, pick32(x2, h2, i)), dot32(c3, v, pick32(x3, h3, i))
        v, i = load32(values, d + k), load32(places, d + k)
        d0, d1 = dot32(d0, v, pick32(x0, h0, i)), dot32(d1, v, pick32(x1, h1, i))
        d2, d3 = dot32(d2, v, pick32(x2, h2, i)), dot32(d3, v, pick32(x3, h3, i))
    items = y.shape[1]
    store_sums(y, (rows + min(row, height)) * items + item, a0, a1, a2, a3)
    store_sums(y, (rows + min(row + 1, height)) * items + item, b0, b1, b2, b3)
    store_sums(y, (rows + min(row + 2, height)) * items + item, c0, c1, c2, c3)
    store_sums(y, (rows + min(row + 3, height)) * items + item, d0, d1, d2, d3)


@njit(parallel=True, **_JIT)
def core_product(values, indices, x, y):  # type: ignore[no-untyped-def]
    """``y = S x``, transposed.

    Args:
        values, indices: the packed core; values uint16 (bits of bfloat16).
        x: uint16 (a multiple of `TILE`, 64*ceil(kept/32)), 0 beyond the layer's inputs.
        y: float32 (out, as many).
    """
    rows, kept = values.shape
    width, full = indices.shape[1], kept // 32 * 32
    padded = (kept + 31) // 32 * 32
    for chunk in prange((rows + _HEIGHT - 1) // _HEIGHT):
        first = np.intp(chunk) * _HEIGHT
        last = min(_HEIGHT, rows - first) - 1  # beyond it the last row is computed again
        own = np.empty((_HEIGHT, padded), np.uint16)
        places = np.empty((_HEIGHT, padded), np.uint16)
        codes = np.zeros(padded // 4, np.uint8)
        for line in range(_HEIGHT):
            row = first + min(line, last)
            for k in range(0, full, 32):
                store32(own, line * padded + k, load32(values, row * kept + k))
                store32(places, line * padded + k, load_places(indices, row * width + k // 4))
            if full < kept:
                for k in range(full, padded):
                    own[line, k] = values[row, k] if k < kept else 0
                for byte in range(full // 4, width):
                    codes[byte] = indices[row, byte]
                store32(places, line * padded + full, load_places(codes, full // 4))
        for line in range(0, _HEIGHT, 4):
            for item in range(0, x.shape[0], 4):
                _core_tile(own, places, x, y, line, first, last, item)


@njit(parallel=True, **_JIT)
def blocks_product(blocks, x, y):  # type: ignore[no-untyped-def]
    """``y = blockdiag(blocks) x`` for blocks of a multiple of 32.

    Args:
        blocks: uint16 (count, b, b). x: uint16 (a multiple of `TILE`, count*b).
        y: float32 (as many, count*b).
    """
    size, width = blocks.shape[1], x.shape[1]
    for quad in prange(blocks.shape[0] * size // 4):
        row = np.intp(quad) * 4
        start = row // size * size
        for item in range(x.shape[0]):
            s0, s1, s2, s3 = zero16(), zero16(), zero16(), zero16()
            for k in range(0, size, 32):
                there = load32(x, item * width + start + k)
                s0 = dot32(s0, load32(blocks, row * size + k), there)
                s1 = dot32(s1, load32(blocks, (row + 1) * size + k), there)
                s2 = dot32(s2, load32(blocks, (row + 2) * size + k), there)
                s3 = dot32(s3, load32(blocks, (row + 3) * size + k), there)
            store_sums(y, item * width + row, s0, s1, s2, s3)
