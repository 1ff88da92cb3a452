"""Packing and padding for 2:4 tensor cores; the GPU's two functions are played by torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from armor.linear import ArmorLinear
from armor.runtime import prepare, semi_structured
from armor.runtime.backend import YES
from armor.sparsity import nm_mask, pack, unpack

SHAPES = [(32, 64), (64, 128), (37, 53), (1, 3), (40, 172), (33, 60)]


@pytest.mark.parametrize("engine", ["cusparselt", "cutlass"])
@pytest.mark.parametrize("shape", SHAPES)
def test_padding_adds_zeros_only(make_call, shape: tuple[int, int], engine: str) -> None:
    rows, cols = shape
    layer = make_call(rows, cols, None, 1, torch.bfloat16).layer
    values, indices = semi_structured.padded(layer, engine)
    tall, wide = semi_structured.padded_shape(shape, engine)
    assert values.shape == (tall, wide // 2)
    assert indices.shape == (tall, wide // 8)
    core = unpack(values, indices, wide)
    assert torch.equal(core[:rows, :cols], unpack(layer.core_values, layer.core_indices, cols))
    assert int((core != 0).sum()) == int((core[:rows, :cols] != 0).sum())


@pytest.mark.parametrize("shape", [(32, 64), (64, 256), (96, 128)])
def test_cutlass_positions_are_torchs(shape: tuple[int, int]) -> None:
    mask = nm_mask(torch.rand(shape))
    core = torch.where(mask, torch.randn(shape), 0.0).to(torch.bfloat16)
    values, indices = pack(core, mask)
    expected_values, expected = sparse_semi_structured_from_dense_cutlass(core)
    positions = semi_structured.cutlass_positions(indices)
    assert torch.equal(values, expected_values)
    assert torch.equal(positions, expected.flatten())


class Gpu:
    """What torch's cuSPARSELt functions do, in plain torch: a compressed tensor and its product."""

    def __init__(self, values_first: bool = True) -> None:
        self.values_first = values_first
        self.searches = 0

    def compress(self, dense: Tensor) -> Tensor:
        if self.values_first:
            values, indices = pack(dense, nm_mask(dense.abs()))
        else:
            values, indices = pack(dense.flip(0), nm_mask(dense.flip(0).abs()))
        return torch.cat([values.flatten(), indices.flatten().view(dense.dtype)])

    def multiply(self, packed: Tensor, x: Tensor, *, transpose_result: bool, alg_id: int) -> Tensor:
        assert transpose_result
        assert alg_id == 7
        cols, items = x.shape
        assert items % 8 == cols % 16 == 0
        assert x.t().is_contiguous()
        rows = packed.numel() * 16 // 9 // cols
        assert rows % 16 == 0
        kept = rows * cols // 2
        values, indices = packed[:kept].view(rows, -1), packed[kept:].view(torch.uint8)
        core = unpack(values, indices.view(rows, -1), cols)
        core = core if self.values_first else core.flip(0)
        return (x.t().double() @ core.double().T).to(packed.dtype)

    def search(self, packed: Tensor, x: Tensor, *, transpose_result: bool) -> int:
        self.searches += 1
        return 7


@pytest.fixture(params=[True, False], ids=["values first", "another order"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu(request.param)
    monkeypatch.setattr(torch, "_cslt_compress", gpu.compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", gpu.multiply)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", gpu.search)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(semi_structured, "_engine", lambda device: "cusparselt")
    monkeypatch.setattr(semi_structured, "_algorithms", {})
    monkeypatch.setattr(semi_structured.blocks, "is_available", lambda: False)
    monkeypatch.setattr(semi_structured, "is_available", lambda: YES)
    monkeypatch.setattr(semi_structured, "is_supported", lambda *_: YES)
    monkeypatch.setattr(
        "armor.runtime.packing.order", lambda device, batch: ("semi_structured", "reference")
    )
    return gpu


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 300])
def test_product(
    gpu: Gpu, make_call, shape: tuple[int, int], batch: int, block: int | None
) -> None:
    call = make_call(*shape, block, batch, torch.bfloat16, bias=True)
    packed = semi_structured.pack(call.layer)
    y = semi_structured.matmul(call.x, call.layer, call.bias, packed)
    call.check(y)


def test_the_algorithm_is_searched_once_for_similar_batches(gpu: Gpu, make_call) -> None:
    call = make_call(64, 64, None, 64, torch.bfloat16)
    packed = semi_structured.pack(call.layer)
    for batch in (64, 60, 33, 64):
        semi_structured.matmul(call.x[:batch], call.layer, None, packed)
    assert gpu.searches == 1
    semi_structured.matmul(call.x[:30], call.layer, None, packed)
    assert gpu.searches == 2


def held(module: nn.Module) -> int:
    """Bytes of all distinct storages that `module` holds on to."""
    extra = [module._packed] if module._packed is not None else []
    storages = {t.untyped_storage().data_ptr(): t for t in [*module.parameters(), *extra]}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def test_packing_shares_the_values_and_saves_the_same(gpu: Gpu, make_call) -> None:
    call = make_call(256, 256, None, 40, torch.bfloat16)
    module = ArmorLinear.from_packed(call.layer)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    bytes_before = held(module)
    prepare(nn.Sequential(module))
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    dense = 2 * 256 * 256
    assert bytes_before == 0.5625 * dense
    # The positions twice, or without sharing everything.
    assert held(module) == bytes_before + (0.0625 if gpu.values_first else 0.5625) * dense


def test_what_was_packed_goes_with_its_tensors(gpu: Gpu, make_call) -> None:
    call, other = (make_call(64, 64, None, 40, torch.bfloat16, seed=seed) for seed in (0, 1))
    module = ArmorLinear.from_packed(call.layer)
    module.prepare()
    assert module._packed is not None
    module.load_state_dict(other.layer.tensors())
    assert module._packed is None
    module.prepare()
    module.to(torch.float16)
    assert module._packed is None
    module.to(torch.bfloat16).prepare()
    seen = []
    module.core_values = nn.Parameter(call.layer.core_values, requires_grad=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("armor.runtime.linear", lambda *arguments: seen.append(arguments[-1]))
        module(call.x)
    assert seen == [None]


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_for_cutlass(
    make_call, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def multiply(values: Tensor, positions: Tensor, x: Tensor) -> Tensor:
        assert x.shape[1] % 8 == 0
        core = sparse_semi_structured_to_dense_cutlass(values, positions)
        return (core.double() @ x.double()).to(x.dtype)

    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", multiply)
    monkeypatch.setattr(semi_structured, "_engine", lambda device: "cutlass")
    monkeypatch.setattr(semi_structured.blocks, "is_available", lambda: False)
    call = make_call(*shape, 16, 20, torch.float16, bias=True)
    packed = semi_structured.pack(call.layer)
    call.check(semi_structured.matmul(call.x, call.layer, call.bias, packed))


def test_what_it_supports_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert not semi_structured.is_available()
    verdict = semi_structured.is_supported((64, 64), torch.bfloat16, torch.device("cpu"), 64)
    assert verdict.reason == "the tensors are on cpu"
