"""Codes as Numba kernels load them, sixteen at a time and alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from armor.simd.codes import LEVELS, load_code1, load_codes16
from armor.simd.vectors import store16
from armor.sparse.levels import CORES, FP8, INT4, Levels
from armor.sparse.rounded import decode, store_codes


@njit
def _loaded(stored: Any, count: Any) -> Any:  # type: ignore[no-untyped-def]
    by_vector = np.empty(count, np.float32)
    alone = np.empty(count, np.float32)
    for place in range(0, count, 16):
        store16(by_vector, place, load_codes16(stored, place))
    for place in range(count):
        alone[place] = load_code1(stored, place)
    return by_vector, alone


@pytest.mark.parametrize("levels", CORES.values(), ids=CORES.keys())
def test_every_code_is_loaded_as_its_level(levels: Levels) -> None:
    codes = (torch.tensor(levels.all()) - levels.offset).repeat(16).unsqueeze(0)
    expected = decode(levels, codes, torch.ones(())).numpy()[0]
    stored = store_codes(levels, codes).numpy()[0]
    for found in _loaded(stored.view(bool) if levels == FP8 else stored, codes.shape[1]):
        assert np.array_equal(found, expected)


def test_the_levels_of_a_nibble_are_those_of_int4() -> None:
    assert [place + INT4.lowest + INT4.offset for place in range(16)] == LEVELS


def test_floats_pass_through() -> None:
    values = np.arange(32, dtype=np.float32)
    for found in _loaded(values, 32):
        assert np.array_equal(found, values)
