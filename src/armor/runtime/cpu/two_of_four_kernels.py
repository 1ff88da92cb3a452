"""Unpacking rows of a 2:4 core into panels, for products by BLAS."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from armor.simd.cache import is_kept

# Counters of parallel loops are unsigned, and times a signed number float: hence np.intp below.
_JIT: dict[str, Any] = {"cache": is_kept(), "error_model": "numpy", "nogil": True}


@njit(forceinline=True, **_JIT)
def _group_word(values, row, group, nibble):  # type: ignore[no-untyped-def]
    """A group of four 16-bit numbers as one of 64 bits."""
    first = np.uint64(values[row, 2 * group]) << np.uint64(16 * (nibble & 3))
    second = np.uint64(values[row, 2 * group + 1]) << np.uint64(16 * (nibble >> 2))
    return first | second


@njit(parallel=True, **_JIT)
def unpack_rows16(values, indices, start, stop, panel):  # type: ignore[no-untyped-def]
    """panel[:stop-start] = rows start .. stop-1 of S; values uint16, panel uint64 (., groups)."""
    groups = values.shape[1] // 2
    for place in prange(stop - start):
        row = start + np.intp(place)
        for byte in range(groups // 2):
            two = indices[row, byte]
            panel[row - start, 2 * byte] = _group_word(values, row, 2 * byte, two & 15)
            panel[row - start, 2 * byte + 1] = _group_word(values, row, 2 * byte + 1, two >> 4)
        if groups % 2:
            last = groups - 1
            panel[row - start, last] = _group_word(values, row, last, indices[row, last // 2] & 15)


@njit(parallel=True, **_JIT)
def unpack_rows32(values, indices, start, stop, panel):  # type: ignore[no-untyped-def]
    """panel[:stop-start] (., 4*groups) = rows start .. stop-1 of S; float32."""
    zero = np.float32(0)
    for place in prange(stop - start):
        row = start + np.intp(place)
        for group in range(values.shape[1] // 2):
            nibble = indices[row, group // 2] >> (4 * (group % 2))
            one, two = nibble & 3, nibble >> 2 & 3
            first, second = values[row, 2 * group], values[row, 2 * group + 1]
            for member in range(4):
                other = second if two == member else zero
                panel[row - start, 4 * group + member] = first if one == member else other
