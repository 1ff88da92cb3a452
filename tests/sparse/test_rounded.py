"""Codes and back: every level, how two share a byte, scales of groups."""

import pytest
import torch

from armor.sparse.levels import CORES, FP8, INT4, SCALE_GROUP, Levels
from armor.sparse.rounded import decode, encode, load_codes, steps, store_codes


@pytest.mark.parametrize("levels", CORES.values(), ids=CORES.keys())
def test_every_code_comes_back(levels: Levels) -> None:
    codes = torch.tensor(levels.all()) - levels.offset
    codes = codes.repeat(2)[: len(codes) // 2 * 2].view(2, -1)
    codes = codes[:, : codes.shape[1] // 2 * 2]
    stored = store_codes(levels, codes)
    assert stored.shape == (2, codes.shape[1] // levels.per_byte)
    assert stored.dtype.itemsize == 1
    assert torch.equal(load_codes(levels, stored).float(), codes)
    values = decode(levels, codes, torch.tensor(0.25))
    assert torch.equal(encode(levels, values, torch.tensor(0.25)), codes)


@pytest.mark.parametrize("levels", CORES.values(), ids=CORES.keys())
def test_values_take_the_nearest_level(levels: Levels) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * levels.largest
    every = torch.tensor(levels.all())
    least = (values[:, None] - every).abs().min(1).values
    found = decode(levels, encode(levels, values, torch.ones(())), torch.ones(()))
    torch.testing.assert_close((values - found).abs(), least)
    assert every.sum() == 0


def test_the_first_of_two_codes_lies_in_the_low_bits() -> None:
    assert store_codes(INT4, torch.tensor([[-8, 7]])).tolist() == [[0xF0]]


def test_neighbours_share_a_scale() -> None:
    assert INT4.scale_count(SCALE_GROUP) == 1
    assert INT4.scale_count(SCALE_GROUP + 2) == 2
    each = steps(torch.tensor([[1.0, 2.0]]), SCALE_GROUP + 2)
    assert each[0, :SCALE_GROUP].unique().tolist() == [1.0]
    assert each[0, SCALE_GROUP:].tolist() == [2.0, 2.0]


def test_a_row_of_floats_has_one_scale() -> None:
    assert FP8.scale_count(10 * SCALE_GROUP) == 1
    assert steps(torch.tensor([[2.0], [3.0]]), 3).tolist() == [[2.0] * 3, [3.0] * 3]


def test_the_levels_of_fp8_are_all_its_numbers() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    numbers = every[every.isfinite()].unique()
    assert FP8.all() == numbers.tolist()


def test_a_scale_of_zero_is_zero() -> None:
    codes = encode(INT4, torch.tensor([0.0, 3.0]), torch.zeros(2))
    assert decode(INT4, codes, torch.zeros(2)).tolist() == [0.0, 0.0]
