"""Parts of a packed layer give parts of its output, and parts of its input sum to the whole."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from armor.runtime.backend import Call
from armor.runtime.reference import matmul
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.masks import nm_mask
from armor.sparse.pattern import Pattern
from armor.sparse.shard import cut_columns, cut_rows, held_columns, held_rows

ROWS, COLS = 44, 52  # no multiple of 8, 16 or 32


def make(pattern: Pattern, block: int | None) -> PackedLayer:
    generator = torch.Generator().manual_seed(0)
    core = torch.randn(ROWS, COLS, generator=generator, dtype=torch.float64)
    if pattern.is_unstructured:
        mask = core.abs() >= core.abs().flatten().sort().values[ROWS * COLS // 2]
    else:
        padded = functional.pad(core, (0, -COLS % pattern.group))
        mask = nm_mask(padded.abs(), pattern.kept, pattern.group)[:, :COLS]
    core = core * mask
    if block is None:
        return PackedLayer.from_factors(Factors(core, mask, pattern=pattern))

    def wrapper(size: int) -> Tensor:
        shape = (-(-size // block), block, block)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    factors = Factors(core, mask, wrapper(ROWS), wrapper(COLS), pattern)
    return PackedLayer.from_factors(factors)


PATTERNS = [Pattern.parse(text) for text in ("2:4", "4:8", "1:4", "1:2", "50%")]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("block", [None, 4, 12, 16])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_parts_make_the_whole(pattern: Pattern, block: int | None, parts: int) -> None:
    layer = make(pattern, block)
    x = torch.randn(3, COLS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = matmul(x, Call(layer))
    ends = [round(ROWS * number / parts) for number in range(parts + 1)]
    pieces = []
    for begin, end in pairwise(ends):
        first, last = held_rows(begin, end, ROWS, block)
        part = cut_rows(layer, begin, end)
        assert part.shape == (last - first, COLS)
        assert begin - first < (block or 1)
        pieces.append(matmul(x, Call(part))[:, begin - first : end - first])
    torch.testing.assert_close(torch.cat(pieces, -1), whole)

    ends = [round(COLS * number / parts) for number in range(parts + 1)]
    total = torch.zeros_like(whole)
    for begin, end in pairwise(ends):
        first, last = held_columns(begin, end, COLS, block, pattern)
        part = cut_columns(layer, begin, end)
        assert part.shape == (ROWS, last - first)
        padded = functional.pad(x[:, begin:end], (begin - first, last - end))
        total += matmul(padded, Call(part))
    torch.testing.assert_close(total, whole)


def test_aligned_parts_hold_no_surplus() -> None:
    layer = make(Pattern.parse("2:4"), 4)
    assert cut_rows(layer, 0, 20).shape == (20, COLS)
    assert cut_columns(layer, 24, 52).shape == (ROWS, 28)
    half = cut_rows(layer, 0, 44)
    assert all(
        torch.equal(a, b)
        for a, b in zip(half.tensors().values(), layer.tensors().values(), strict=True)
    )
