"""N:M masks and the packed form."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from armor.errors import ArmorError
from armor.sparse.masks import nm_mask
from armor.sparse.pack import pack, packed_shapes, unpack, unpack_mask, valid_indices

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 40))
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@given(shape=SHAPES, dtype=DTYPES, seed=st.integers(0, 2**31))
def test_pack_round_trip(shape: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=generator)
    mask = nm_mask(scores.abs())
    core = scores.to(dtype) * mask
    core[torch.rand(shape, generator=generator) < 0.2] = 0.0  # a kept value may be zero
    values, indices = pack(core, mask)
    expected_values, expected_indices = packed_shapes(*shape)
    assert (values.shape, values.dtype) == (expected_values, dtype)
    assert (indices.shape, indices.dtype) == (expected_indices, torch.uint8)
    assert valid_indices(indices)
    assert torch.equal(unpack(values, indices, shape[1]), core)
    assert torch.equal(unpack_mask(indices, shape[1]), mask)


@pytest.mark.parametrize("cols", [1, 2, 3])
def test_partial_group_pads_with_zero_values(cols: int) -> None:
    core = torch.arange(1.0, cols + 1).unsqueeze(0)
    mask = nm_mask(core)
    core = core * mask
    values, indices = pack(core, mask)
    assert values.shape == (1, 2)
    assert valid_indices(indices)
    assert torch.equal(unpack(values, indices, cols), core)
    assert float(values.sum()) == float(core.sum())


def test_layout_is_low_bits_first() -> None:
    """Positions 1,3 then 0,2 make the nibbles 0b1101 and 0b1000: the byte 0x8D."""
    core = torch.tensor([[0.0, 5.0, 0.0, 6.0, 7.0, 0.0, 8.0, 0.0]])
    values, indices = pack(core, core != 0)
    assert values.tolist() == [[5.0, 6.0, 7.0, 8.0]]
    assert indices.tolist() == [[0x8D]]


def test_odd_number_of_groups_pads_a_valid_nibble() -> None:
    _, indices = pack(
        torch.tensor([[0.0, 0.0, 1.0, 2.0]]), torch.tensor([[False, False, True, True]])
    )
    assert indices.tolist() == [[0x4E]]


def test_values_outside_the_mask_are_not_stored() -> None:
    core = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    mask = torch.tensor([[True, False, False, True]])
    values, indices = pack(core, mask)
    assert unpack(values, indices, 4).tolist() == [[1.0, 0.0, 0.0, 4.0]]


@pytest.mark.parametrize("kept", [[0], [0, 1, 2], []])
def test_pack_refuses_another_pattern(kept: list[int]) -> None:
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[:, 4:6] = True
    mask[1, kept] = True
    mask[0, :2] = True
    with pytest.raises(ArmorError, match="exactly 2 of every 4"):
        pack(torch.ones(2, 8), mask)


@given(byte=st.integers(0, 255))
def test_valid_indices_is_exact(byte: int) -> None:
    positions = [byte >> shift & 3 for shift in (0, 2, 4, 6)]
    expected = positions[0] < positions[1] and positions[2] < positions[3]
    assert valid_indices(torch.tensor([[0x44, byte]], dtype=torch.uint8)) == expected


def test_unpack_is_differentiable_in_the_values() -> None:
    values, indices = pack(
        torch.tensor([[0.0, 1.0, 2.0, 0.0]]), torch.tensor([[False, True, True, False]])
    )
    values.requires_grad_()
    (unpack(values, indices, 4) * torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[2.0, 3.0]]


@given(shape=SHAPES, n=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_mask_keeps_the_largest(shape: tuple[int, int], n: int, seed: int) -> None:
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    mask = nm_mask(scores, n, 4)
    for start in range(0, shape[1], 4):
        group, kept = scores[:, start : start + 4], mask[:, start : start + 4]
        assert (kept.sum(-1) == min(n, group.shape[1])).all()
        dropped = group.masked_fill(kept, -1.0).amax(-1)
        assert (group.masked_fill(~kept, 2.0).amin(-1) >= dropped).all()


def test_mask_ties_go_to_the_lower_index() -> None:
    assert nm_mask(torch.ones(1, 4)).tolist() == [[True, True, False, False]]
