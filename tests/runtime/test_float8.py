"""fp8 cores on tensor cores of 8-bit floats: torch's two functions are played, as torch asserts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from armor.errors import ArmorError
from armor.factorize.problem import Problem
from armor.factorize.rounding import Storage, between_identities, round_core
from armor.linear import ArmorLinear, held_bytes
from armor.runtime import Call, linear, use
from armor.runtime.backend import YES
from armor.runtime.registry import candidates
from armor.runtime.semi_structured import float8
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.masks import nm_mask
from armor.sparse.pack import pack, unpack

FP8 = torch.float8_e4m3fn


def make(rows: int, cols: int, block: int | None, dtype: torch.dtype) -> PackedLayer:
    draw = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, cols, generator=draw)
    weight[:, ::5] = 0  # kept zeros
    mask = nm_mask(weight.abs())
    storage = Storage("fp8", "int8", dtype)
    found = round_core(Problem(weight, torch.ones(cols)), Factors(weight * mask, mask), storage)
    found = found if block is None else between_identities(found, block, storage)
    return PackedLayer.from_factors(found)


def compress(dense: Tensor) -> Tensor:
    assert dense.dtype == FP8
    rows, cols = dense.shape
    assert rows % 32 == cols % 32 == 0
    codes, indices = pack(dense.view(torch.uint8), nm_mask(dense.float().abs()))
    return torch.cat([codes.flatten(), indices.flatten()]).view(FP8)


def multiply(
    compressed: Tensor,
    x: Tensor,
    bias: Tensor | None,
    alpha: Tensor | None,
    out_dtype: torch.dtype | None,
    transpose_result: bool,
) -> Tensor:
    assert bias is alpha is None
    assert transpose_result
    assert compressed.dtype == x.dtype == FP8
    assert compressed.dim() == x.dim() == 2
    rows, (cols, items) = compressed.shape[0], x.shape
    assert rows % 32 == cols % 32 == items % 16 == 0
    assert compressed.shape[1] == cols * 10 // 16
    assert x.t().is_contiguous()
    flat, kept = compressed.view(torch.uint8).flatten(), rows * cols // 2
    codes, indices = flat[:kept].view(rows, -1), flat[kept:].view(rows, -1)
    core = unpack(codes, indices, cols).view(FP8)
    return (x.t().double() @ core.double().T).to(out_dtype)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_cslt_compress", compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    monkeypatch.setattr(float8, "is_available", lambda: YES)
    monkeypatch.setattr(float8, "is_supported", lambda *_: YES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 128, 16), (37, 53, None), (32, 64, None)])
@pytest.mark.parametrize("batch", [1, 40])
def test_product(
    gpu: None, shape: tuple[int, int, int | None], batch: int, dtype: torch.dtype
) -> None:
    rows, cols, block = shape
    layer = make(rows, cols, block, dtype)
    draw = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, cols, generator=draw) * torch.rand(batch, 1, generator=draw).exp()
    x[0] = 0 if batch > 1 else x[0]
    x, bias = x.to(dtype), torch.randn(rows, generator=draw).to(dtype)
    codes, scales = float8.rounded_inputs(x.float())
    given = codes.to(FP8).double() * scales.double()  # the identities around S change nothing
    expected = given @ layer.to_factors().cast(torch.float64).dense().T + bias.double()
    for prepared in (None, float8.compress(layer)):
        y = float8.matmul(x, Call(layer, bias, prepared))
        assert y.dtype == dtype
        assert y.is_contiguous()
        assert (y.double() - expected).norm() <= 8e-3 * expected.norm()
    exact = x.double() @ layer.to_factors().cast(torch.float64).dense().T + bias.double()
    assert (expected - exact).norm() <= 0.05 * exact.norm()


def test_torchs_own_shapes() -> None:
    """The call itself, as torch's meta function takes it."""
    compressed = torch.empty(64, 40, dtype=FP8, device="meta")
    y = float8._product(compressed, torch.empty(16, 64, dtype=FP8, device="meta"))
    assert y.shape == (16, 64)
    assert y.dtype == torch.bfloat16


def test_codes_are_held_once(gpu: None) -> None:
    layer = make(64, 128, None, torch.bfloat16)
    module = ArmorLinear.from_packed(layer)
    before = held_bytes(module)
    with use("float8"):
        module.prepare()
        assert module.call().prepared_by == "float8"
        module(torch.ones(3, 128, dtype=torch.bfloat16))
    assert torch.equal(module.core_values, layer.core_values)
    assert held_bytes(module) == before + 64 * 128 // 8  # positions in the order of the hardware
    assert float8.prepare(make(37, 53, None, torch.bfloat16)) is None


def test_it_computes_only_what_it_is_asked_for(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all("float8" not in candidates(torch.device("cuda"), rows) for rows in (1, 64))
    layer = make(64, 64, None, torch.bfloat16)
    other = replace(layer, core_values=layer.core_values.view(torch.int8))
    assert other.core == "int8"
    with use("float8"), pytest.raises(ArmorError, match="does not read int8 cores"):
        linear(torch.ones(1, 64, dtype=torch.bfloat16), Call(other))
    monkeypatch.undo()
    if not torch.cuda.is_available():
        assert float8.is_available().reason == "no NVIDIA GPU"
