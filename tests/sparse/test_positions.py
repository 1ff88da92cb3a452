"""The packed form of other patterns than 2:4."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from armor.errors import ArmorError
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.masks import nm_mask
from armor.sparse.pack import pack, packed_shapes, unpack, unpack_mask, valid_indices
from armor.sparse.pattern import Pattern
from armor.sparse.positions import count_ones

NM = [Pattern(n, m) for m in (2, 4, 8) for n in range(1, m)]
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 70))
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


def random_mask(scores: Tensor, pattern: Pattern) -> Tensor:
    if pattern.group:
        return nm_mask(scores, pattern.kept, pattern.group)
    rows, cols = scores.shape
    kept = scores.flatten().argsort(descending=True)[: pattern.count((rows, cols))]
    mask = torch.zeros(rows * cols, dtype=torch.bool)
    mask[kept] = True
    return mask.view(rows, cols)


@given(
    shape=SHAPES,
    pattern=st.sampled_from(NM) | st.integers(1, 99).map(lambda percent: Pattern(0, 0, percent)),
    dtype=DTYPES,
    seed=st.integers(0, 2**31),
)
def test_round_trip(
    shape: tuple[int, int], pattern: Pattern, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=generator)
    mask = random_mask(scores.abs(), pattern)
    core = scores.to(dtype) * mask
    core[torch.rand(shape, generator=generator) < 0.2] = 0.0  # a kept value may be zero
    values, indices = pack(core, mask, pattern)
    expected_values, expected_indices = packed_shapes(*shape, pattern)
    assert (values.shape, values.dtype) == (expected_values, dtype)
    assert (indices.shape, indices.dtype) == (expected_indices, torch.uint8)
    assert valid_indices(indices, pattern, shape[1])
    assert torch.equal(unpack(values, indices, shape[1], pattern), core)
    assert torch.equal(unpack_mask(indices, shape[1], pattern), mask)
    if pattern.is_unstructured:
        assert count_ones(indices) == len(values)
    factors = PackedLayer.from_factors(Factors(core, mask, pattern=pattern)).to_factors()
    assert torch.equal(factors.core, core)
    assert torch.equal(factors.mask, mask)
    assert factors.pattern == pattern


@pytest.mark.parametrize(
    ("text", "most"), [("4:8", 0.56), ("2:8", 0.30), ("1:4", 0.29), ("50%", 0.5626), ("75%", 0.313)]
)
def test_bytes(text: str, most: float) -> None:
    """Of a dense weight in bfloat16."""
    pattern, shape = Pattern.parse(text), (96, 512)
    mask = random_mask(torch.rand(shape, generator=torch.Generator().manual_seed(0)), pattern)
    values, indices = pack(torch.ones(shape, dtype=torch.bfloat16), mask, pattern)
    packed = values.nbytes + indices.nbytes
    assert pattern.density < packed / (2 * 96 * 512) <= most


def test_layout_of_codes() -> None:
    """The masks of 1:4 are 0, 1, 2, 3, of two bits each, low bits first: 3, 0, 2, 1 is 0x63."""
    core = torch.zeros(1, 16)
    core[0, [3, 4, 10, 13]] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    values, indices = pack(core, core != 0, Pattern(1, 4))
    assert values.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert indices.tolist() == [[0b01_10_00_11]]


def test_layout_of_codes_across_bytes() -> None:
    """4:8 has 70 masks, 7 bits: the last one, 69, then the first, 0, then 69."""
    last, first = [0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]
    core = torch.tensor([[*last, *first, *last]]).float()
    _, indices = pack(core, core != 0, Pattern(4, 8))
    number = 69 | 69 << 14
    assert indices.tolist() == [list(number.to_bytes(3, "little"))]


def test_layout_of_a_bitmap() -> None:
    core = torch.tensor([[0.0, 5, 0, 0, 0, 0, 0, 0, 6, 0], [7.0, 0, 0, 0, 0, 0, 0, 0, 0, 8]])
    values, indices = pack(core, core != 0, Pattern(0, 0, 80))
    assert values.tolist() == [5, 6, 7, 8]
    assert indices.tolist() == [[2, 1], [1, 2]]


@pytest.mark.parametrize("pattern", NM, ids=str)
def test_validity_is_exact(pattern: Pattern) -> None:
    """Of every two bytes: each code below the number of masks, the rest zero."""
    width = max(1, (len(pattern.masks) - 1).bit_length())
    inputs = pattern.group * (16 // width) - 1  # one short of whole groups
    every = torch.arange(1 << 16)
    rows = torch.stack([every & 255, every >> 8], 1).to(torch.uint8)
    groups = 16 // width
    codes = torch.stack([every >> width * g & (1 << width) - 1 for g in range(groups)], 1)
    sound = (codes < len(pattern.masks)).all(1) & (every >> width * groups == 0)
    if pattern == Pattern(2, 4):
        return  # of its own form, see test_sparsity
    assert valid_indices(rows[sound], pattern, inputs)
    for row in rows[~sound][:: max(1, int((~sound).sum()) // 50)]:
        assert not valid_indices(row.unsqueeze(0), pattern, inputs)


def test_a_bit_beyond_the_bitmap() -> None:
    pattern = Pattern(0, 0, 50)
    assert valid_indices(torch.tensor([[255, 3]], dtype=torch.uint8), pattern, 10)
    assert not valid_indices(torch.tensor([[255, 4]], dtype=torch.uint8), pattern, 10)


@pytest.mark.parametrize("pattern", [Pattern(1, 4), Pattern(4, 8), Pattern(2, 8)], ids=str)
def test_another_mask_is_refused(pattern: Pattern) -> None:
    mask = nm_mask(torch.rand(3, 16), pattern.kept, pattern.group)
    mask[1, int(mask[1].int().argmin())] = True
    with pytest.raises(ArmorError, match=f"exactly {pattern.kept} of every {pattern.group}"):
        pack(torch.ones(3, 16), mask, pattern)


@pytest.mark.parametrize("text", ["1:4", "4:8", "30%"])
def test_unpack_is_differentiable_in_the_values(text: str) -> None:
    pattern = Pattern.parse(text)
    core = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    mask = random_mask(core.abs(), pattern)
    values, indices = pack(core, mask, pattern)
    values.requires_grad_()
    weights = torch.arange(64.0).view(4, 16)
    (unpack(values, indices, 16, pattern) * weights).sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad.flatten(), weights[mask])
