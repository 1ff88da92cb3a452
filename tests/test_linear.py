"""ArmorLinear against the multiplied-out weight."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from armor.linear import ArmorLinear
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.masks import nm_mask


def random_factors(
    rows: int, cols: int, block: int | None, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Factors:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    core = normal(rows, cols)
    mask = nm_mask(core.abs())
    if block is None:
        return Factors(core * mask, mask)
    left = normal(-(-rows // block), block, block)
    right = normal(-(-cols // block), block, block)
    return Factors(core * mask, mask, left, right)


@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    block=st.sampled_from([None, 4, 8, 16]),
    batch=st.sampled_from([(), (1,), (7,), (2, 3), (0,)]),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_forward_is_the_dense_product(
    rows: int, cols: int, block: int | None, batch: tuple[int, ...], bias: bool, seed: int
) -> None:
    factors = random_factors(rows, cols, block, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(*batch, cols, generator=generator, dtype=torch.float64)
    offset = torch.randn(rows, generator=generator, dtype=torch.float64) if bias else None
    layer = ArmorLinear.from_factors(factors, offset)
    expected = torch.nn.functional.linear(x, factors.dense(), offset)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.dense_weight(), factors.dense())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype, device: torch.device) -> None:
    factors = random_factors(24, 20, 8, dtype)
    layer = ArmorLinear.from_factors(factors).to(device)
    x = torch.randn(5, 20, dtype=torch.float64).to(device, dtype)
    expected = x.double() @ layer.dense_weight().double().T
    tolerance = 20 * torch.finfo(dtype).eps
    error = (layer(x).double() - expected).norm() / expected.norm()
    assert layer(x).dtype == dtype
    assert float(error) < tolerance


def test_dense_weight_is_rounded_once() -> None:
    factors = random_factors(24, 20, 8, torch.bfloat16)
    wide = factors.cast(torch.float64).dense()
    weight = PackedLayer.from_factors(factors).dense()
    assert weight.dtype == torch.bfloat16
    # Within one rounding to bfloat16 (8 bits) of the float64 product.
    torch.testing.assert_close(weight.double(), wide, rtol=2**-8, atol=1e-4)


def test_casting_leaves_the_indices_alone() -> None:
    layer = ArmorLinear.from_factors(random_factors(8, 8, 4, torch.float32))
    before = layer.core_indices.clone()
    layer.half()
    assert layer.core_indices.dtype == torch.uint8
    assert torch.equal(layer.core_indices, before)
    assert layer.core_values.dtype == layer.left.dtype == torch.float16


def test_empty_on_meta_has_the_shapes_of_the_packed_factors() -> None:
    filled = ArmorLinear.from_factors(random_factors(22, 18, 8), torch.zeros(22).double())
    empty = ArmorLinear(18, 22, 8, bias=True, dtype=torch.float64, device="meta")
    described = {name: (t.shape, t.dtype) for name, t in empty.state_dict().items()}
    assert described == {name: (t.shape, t.dtype) for name, t in filled.state_dict().items()}
    assert list(described) == ["core_values", "core_indices", "left", "right", "bias"]
    assert not any(parameter.requires_grad for parameter in filled.parameters())


def test_state_dict_round_trip() -> None:
    layer = ArmorLinear.from_factors(random_factors(22, 18, 8))
    again = ArmorLinear(18, 22, 8, dtype=torch.float64)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.dense_weight(), layer.dense_weight())


def test_repr_names_the_shape() -> None:
    layer = ArmorLinear(18, 22, None)
    assert "in_features=18, out_features=22, block=None, bias=False" in repr(layer)
