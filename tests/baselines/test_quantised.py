"""Rounding to int8, int4 and int3, on cases worked by hand."""

from __future__ import annotations

import torch

from armor.baselines.quantised import int3, int4, int8, rounded, rounded_bytes
from armor.factorize.problem import Problem
from armor.sparse.pattern import EVERYTHING


def test_by_hand() -> None:
    # int4: the largest of a row, 7, has code 7, so the scale is 1; and 14 makes it 2.
    weight = torch.tensor([[7.0, -3.4, 0.6, 0.4], [14.0, -14.0, 0.9, 3.1]])
    assert rounded(weight, 4).tolist() == [[7, -3, 1, 0], [14, -14, 0, 4]]
    weight = torch.tensor([[127.0, -63.4, 0.6, 0.4]])
    assert rounded(weight, 8).tolist() == [[127, -63, 1, 0]]


def test_every_group_has_its_scale_and_the_last_may_be_shorter() -> None:
    weight = torch.cat((torch.full((2, 128), 7.0), torch.full((2, 3), 0.0625)), dim=1)
    weight[:, 0] = 0.4
    weight[1, 128:] = 0  # a group of zeros
    expected = weight.clone()
    expected[:, 0] = 0
    # 0.0625 / 7 in float16, times 7: not quite the same.
    scale = torch.tensor(0.0625 / 7).half().float()
    expected[0, 128:] = 7 * scale
    assert torch.equal(rounded(weight, 4), expected)


def test_the_error_is_half_a_step_at_most() -> None:
    weight = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    for bits, function in ((8, int8), (4, int4), (3, int3)):
        factors = function(Problem(weight, torch.ones(300)))
        assert factors.pattern == EVERYTHING
        step = weight.abs().max() / (2 ** (bits - 1) - 1)
        assert 0 < (factors.dense() - weight).abs().max() <= 0.51 * step


def test_bytes() -> None:
    assert rounded_bytes((10, 256), 8) == 10 * (256 + 4)
    assert rounded_bytes((10, 256), 4) == 10 * (128 + 4)
    assert rounded_bytes((10, 256), 3) == 10 * (96 + 4)
    assert rounded_bytes((10, 129), 8) == 10 * (129 + 4)  # a group of one
    assert rounded_bytes((1, 5), 4) == 3 + 2
