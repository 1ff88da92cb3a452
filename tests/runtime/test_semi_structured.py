"""Packing and padding for 2:4 tensor cores; the GPU's two functions are played by torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from armor.linear import ArmorLinear, held_bytes
from armor.runtime import linear, prepare, use
from armor.runtime.api import linears
from armor.runtime.backend import YES, Verdict
from armor.runtime.frontend import backend
from armor.runtime.semi_structured import backend as semi_structured
from armor.runtime.semi_structured import compressed
from armor.runtime.semi_structured.places import learn
from armor.sparse.masks import nm_mask
from armor.sparse.pack import pack, unpack

SHAPES = [(32, 64), (64, 128), (37, 53), (1, 3), (40, 172), (33, 60)]


@pytest.mark.parametrize("engine", ["cusparselt", "cutlass"])
@pytest.mark.parametrize("shape", SHAPES)
def test_padding_adds_zeros_only(make_call, shape: tuple[int, int], engine: str) -> None:
    rows, cols = shape
    layer = make_call(rows, cols, None, 1, torch.bfloat16).layer
    values, indices = compressed.padded(layer, engine)
    tall, wide = compressed.padded_shape(shape, engine)
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
    positions = compressed.cutlass_positions(indices)
    assert torch.equal(values, expected_values)
    assert torch.equal(positions, expected.flatten())


class Gpu:
    """What torch's cuSPARSELt functions do, in plain torch: a compressed tensor and its product.

    order: "rows", positions as they are stored; "tiles", rearranged as hardware does; "mixed", in
    an order that is no sum of a row's and a column's place; "reversed", the values' rows, too.
    """

    def __init__(self, order: str) -> None:
        self.order = order
        self.searches = 0

    def places(self, rows: int, units: int) -> Tensor:
        plain = torch.arange(rows * units).view(rows, units)
        if self.order == "tiles":
            # Rows in eights, units in twos, and the rows of a tile run fastest.
            return plain.view(rows // 8, 8, units // 1, 1).permute(2, 0, 3, 1).flatten()
        if self.order == "mixed":
            return torch.randperm(rows * units, generator=torch.Generator().manual_seed(0))
        return plain.flatten()

    def compress(self, dense: Tensor) -> Tensor:
        dense = dense.flip(0) if self.order == "reversed" else dense
        values, indices = pack(dense, nm_mask(dense.abs()))
        words = indices.view(torch.int16)
        tail = words.flatten()[self.places(*words.shape)]
        return torch.cat([values.flatten(), tail.view(dense.dtype)])

    def multiply(self, packed: Tensor, x: Tensor, *, transpose_result: bool, alg_id: int) -> Tensor:
        assert transpose_result
        assert alg_id == 7
        cols, items = x.shape
        assert items % 8 == cols % 16 == 0
        assert x.t().is_contiguous()
        rows = packed.numel() * 16 // 9 // cols
        assert rows % 16 == 0
        kept = rows * cols // 2
        values, tail = packed[:kept].view(rows, -1), packed[kept:].view(torch.int16)
        words = torch.empty_like(tail)
        words[self.places(rows, cols // 16)] = tail
        core = unpack(values, words.view(torch.uint8).view(rows, -1), cols)
        core = core.flip(0) if self.order == "reversed" else core
        return (x.t().double() @ core.double().T).to(packed.dtype)

    def search(self, packed: Tensor, x: Tensor, *, transpose_result: bool) -> int:
        self.searches += 1
        return 7


def play(monkeypatch: pytest.MonkeyPatch, order: str) -> Gpu:
    gpu = Gpu(order)
    monkeypatch.setattr(torch, "_cslt_compress", gpu.compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", gpu.multiply)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", gpu.search)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for module in (semi_structured, compressed):
        monkeypatch.setattr(module, "engine_of", lambda device: "cusparselt")
    monkeypatch.setattr(semi_structured, "_algorithms", {})
    monkeypatch.setattr(compressed, "_places", {})
    monkeypatch.setattr(semi_structured, "is_available", lambda: YES)
    monkeypatch.setattr(semi_structured, "is_supported", lambda *_: YES)
    monkeypatch.setattr(
        "armor.runtime.packing.order", lambda device, batch: ("semi_structured", "reference")
    )
    return gpu


@pytest.fixture(params=["rows", "tiles", "mixed", "reversed"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    monkeypatch.setattr(semi_structured.blocks, "is_available", lambda: Verdict("not here"))
    return play(monkeypatch, request.param)


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return play(monkeypatch, "tiles")


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 300])
def test_product(
    gpu: Gpu, make_call, shape: tuple[int, int], batch: int, block: int | None
) -> None:
    call = make_call(*shape, block, batch, torch.bfloat16, bias=True)
    packed = compressed.compress(call.layer)
    y = semi_structured.matmul(call.x, call.layer, call.bias, packed)
    call.check(y)


def test_the_algorithm_is_searched_once_for_similar_batches(tiles: Gpu, make_call) -> None:
    call = make_call(64, 64, None, 64, torch.bfloat16)
    packed = semi_structured.pack(call.layer)
    for batch in (64, 60, 33, 64):
        semi_structured.matmul(call.x[:batch], call.layer, None, packed)
    assert tiles.searches == 1
    semi_structured.matmul(call.x[:30], call.layer, None, packed)
    assert tiles.searches == 2


def held(module: nn.Module) -> int:
    """Bytes of all distinct storages that `module` holds on to."""
    extra = [module._packed] if module._packed is not None else []
    storages = {t.untyped_storage().data_ptr(): t for t in [*module.parameters(), *extra]}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def test_packing_replaces_what_is_stored_and_saves_the_same(gpu: Gpu, make_call) -> None:
    call = make_call(256, 256, None, 40, torch.bfloat16)
    module = ArmorLinear.from_packed(call.layer)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    dense = 2 * 256 * 256
    assert held(module) == 0.5625 * dense
    prepare(nn.Sequential(module))
    # An unknown order of the positions costs them twice; one of the values is not packed at all.
    assert module.is_packed == (gpu.order != "reversed")
    assert (
        held_bytes(module)
        == held(module)
        == (0.5625 + (0.0625 if gpu.order == "mixed" else 0)) * dense
    )
    after = module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(module.dense_weight(), call.layer.dense())


def test_every_backend_reads_the_replaced_positions(tiles: Gpu, make_call) -> None:
    for rows, batch, block in ((48, 3, 16), (256, 3, 16), (256, 40, 64), (40, 1, None)):
        call = make_call(rows, 128, block, batch, torch.bfloat16, bias=True)
        module = ArmorLinear.from_packed(call.layer, call.bias)
        module.prepare()
        assert module.core_indices.numel() == 0
        for name in ("reference", "cpu", "triton", "semi_structured"):
            if backend(name).is_available():
                with use(name):
                    call.check(linear(call.x, *module.arguments()))
        x = call.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(x).sum(), x)
        expected = torch.ones(batch, rows).bfloat16() @ call.layer.dense()
        torch.testing.assert_close(gradient, expected, rtol=0.05, atol=0.1)


@pytest.mark.skipif(not backend("triton").is_available(), reason="triton is not installed")
def test_layers_run_together_with_replaced_positions(tiles: Gpu, make_call) -> None:
    calls = [make_call(rows, 128, 32, 3, torch.bfloat16, seed=rows) for rows in (64, 32, 48)]
    modules = [ArmorLinear.from_packed(call.layer) for call in calls]
    for module in modules:
        module.prepare()
    arguments = [module.arguments() for module in modules]
    for name in ("triton", "semi_structured"):
        with use(name):
            for call, y in zip(calls, linears(calls[0].x, arguments), strict=True):
                type(call)(calls[0].x, call.layer, None).check(y)


def test_what_was_packed_goes_with_its_tensors(tiles: Gpu, make_call) -> None:
    call, other = (make_call(64, 64, None, 40, torch.bfloat16, seed=seed) for seed in (0, 1))
    module = ArmorLinear.from_packed(call.layer)
    module.prepare()
    assert module.is_packed
    module.load_state_dict(other.layer.tensors())
    assert module._packed is None
    assert torch.equal(module.core_indices, other.layer.core_indices)
    module.prepare()
    module.to(torch.float16)
    assert module._packed is None
    assert torch.equal(module.core_indices, other.layer.core_indices)
    module.to(torch.bfloat16).prepare()
    # Offloading puts other tensors into the module's place behind its back.
    module.core_values = nn.Parameter(call.layer.core_values, requires_grad=False)
    values, indices, *_, packed = module.arguments()
    assert packed is None
    assert values is module.core_values
    assert torch.equal(indices, other.layer.core_indices)


def test_places_of_another_kind_are_refused() -> None:
    here = torch.device("cpu")
    assert learn(16, 4, lambda indices: indices.view(torch.int16).flatten()[:-1], here) is None
    assert learn(16, 4, lambda indices: indices.view(torch.int16).flatten() * 0, here) is None
    twice = learn(16, 4, lambda i: i.view(torch.int16)[:, :2].repeat(1, 2).flatten(), here)
    assert twice is None


def test_the_places_of_cutlass_are_learnt() -> None:
    places = learn(128, 16, compressed.cutlass_positions, torch.device("cpu"))
    assert places is not None
    indices = pack(torch.randn(128, 256), nm_mask(torch.rand(128, 256)))[1]
    tail = compressed.cutlass_positions(indices)
    where = (places.rows[:, None] + places.columns).long()
    assert torch.equal(tail[where], indices.view(torch.int16))


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_for_cutlass(
    make_call, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def multiply(values: Tensor, positions: Tensor, x: Tensor) -> Tensor:
        assert x.shape[1] % 8 == 0
        core = sparse_semi_structured_to_dense_cutlass(values, positions)
        return (core.double() @ x.double()).to(x.dtype)

    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", multiply)
    for module in (semi_structured, compressed):
        monkeypatch.setattr(module, "engine_of", lambda device: "cutlass")
    monkeypatch.setattr(semi_structured.blocks, "is_available", lambda: Verdict("not here"))
    call = make_call(*shape, 16, 20, torch.float16, bias=True)
    packed = compressed.compress(call.layer)
    call.check(semi_structured.matmul(call.x, call.layer, call.bias, packed))


def test_what_it_supports_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert not semi_structured.is_available()
    verdict = semi_structured.is_supported((64, 64), torch.bfloat16, torch.device("cpu"), 64)
    assert verdict.reason == "the tensors are on cpu"
