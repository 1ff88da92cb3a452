"""Factors: their dtype, and the matrix they stand for."""

from __future__ import annotations

import pytest
import torch

from armor.sparse.factors import Factors, with_wrappers
from armor.sparse.masks import nm_mask


@pytest.fixture
def factors() -> Factors:
    core = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    mask = nm_mask(core.abs())
    return Factors(core * mask, mask)


@pytest.mark.parametrize("block", [None, 4])
def test_cast_changes_every_factor_but_the_mask(factors: Factors, block: int | None) -> None:
    if block is not None:
        factors = with_wrappers(factors, block)
    wide = factors.cast(torch.float64)
    assert wide.core.dtype == wide.dense().dtype == torch.float64
    assert torch.equal(wide.mask, factors.mask)
    assert (wide.left is None) == (wide.right is None) == (block is None)
    assert wide.left is None or wide.left.dtype == wide.right.dtype == torch.float64
    assert torch.equal(wide.cast(torch.float32).dense(), factors.dense())


def test_wrappers_that_do_nothing(factors: Factors) -> None:
    wrapped = with_wrappers(factors, 4)
    assert wrapped.block == 4
    assert wrapped.left.shape == wrapped.right.shape == (2, 4, 4)
    assert torch.equal(wrapped.dense(), factors.dense())
