"""Packing and padding for 2:4 tensor cores; the GPU's two functions are played by torch."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from armor.linear import ArmorLinear, held_bytes, prepare
from armor.runtime import use
from armor.runtime.api import linears
from armor.runtime.backend import YES, Verdict
from armor.runtime.dispatch import gating, run_gated
from armor.runtime.gated import Gated
from armor.runtime.registry import BACKENDS, load
from armor.runtime.semi_structured import backend as semi_structured
from armor.runtime.semi_structured import compressed
from armor.sparse.masks import nm_mask
from armor.sparse.pack import pack, unpack
from armor.sparse.pattern import TWO_OF_FOUR

SHAPES = [(32, 64), (64, 128), (37, 53), (1, 3), (40, 172), (33, 60)]


@pytest.mark.parametrize("engine", ["cusparselt", "cutlass"])
@pytest.mark.parametrize("shape", SHAPES)
def test_padding_adds_zeros_only(make_case, shape: tuple[int, int], engine: str) -> None:
    rows, cols = shape
    layer = make_case(rows, cols, None, 1, torch.bfloat16).layer
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

    order: "tiles", positions rearranged as hardware does; "reversed", the values' rows, too.
    """

    def __init__(self, order: str) -> None:
        self.order = order
        self.searches = 0
        self.algorithms: list[tuple[int, ...]] = []
        self.refused: set[int] = set()  # numbers of items that no searched algorithm takes

    def places(self, rows: int, units: int) -> Tensor:
        """Rows in eights, of which those of a tile run fastest."""
        return torch.arange(rows * units).view(rows // 8, 8, units).permute(0, 2, 1).flatten()

    def compress(self, dense: Tensor) -> Tensor:
        dense = dense.flip(0) if self.order == "reversed" else dense
        values, indices = pack(dense, nm_mask(dense.abs()))
        words = indices.view(torch.int16)
        tail = words.flatten()[self.places(*words.shape)]
        return torch.cat([values.flatten(), tail.view(dense.dtype)])

    def multiply(
        self,
        compressed: Tensor,
        x: Tensor,
        bias: Tensor | None,
        alpha: Tensor | None,
        out_dtype: torch.dtype | None,
        transpose_result: bool,
        *algorithm: int,
    ) -> Tensor:
        assert bias is alpha is out_dtype is None
        assert transpose_result
        self.algorithms.append(algorithm)
        if algorithm and x.shape[1] in self.refused:
            raise RuntimeError("CUDA error: operation not supported")
        # As torch asserts: the number of outputs is the first size of the compressed form.
        assert compressed.dim() == x.dim() == 2
        assert compressed.dtype == x.dtype
        rows, (cols, items) = compressed.shape[0], x.shape
        assert compressed.shape[1] == cols * 9 // 16
        assert items % 8 == cols % 16 == rows % 16 == 0
        assert x.t().is_contiguous()
        kept, flat = rows * cols // 2, compressed.flatten()
        values, tail = flat[:kept].view(rows, -1), flat[kept:].view(torch.int16)
        words = torch.empty_like(tail)
        words[self.places(rows, cols // 16)] = tail
        core = unpack(values, words.view(torch.uint8).view(rows, -1), cols)
        core = core.flip(0) if self.order == "reversed" else core
        return (x.t().double() @ core.double().T).to(compressed.dtype)

    def search(
        self,
        compressed: Tensor,
        x: Tensor,
        bias: Tensor | None,
        alpha: Tensor | None,
        out_dtype: torch.dtype | None,
        transpose_result: bool,
    ) -> tuple[int, int, int, int]:
        assert compressed.dim() == 2
        self.searches += 1
        return 7, 4, 1, 9


def play(monkeypatch: pytest.MonkeyPatch, order: str) -> Gpu:
    """Let the backend compute on the CPU as if it were a GPU."""
    gpu = Gpu(order)
    monkeypatch.setattr(torch, "_cslt_compress", gpu.compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", gpu.multiply)
    library = SimpleNamespace(mm_search=gpu.search)
    monkeypatch.setattr(torch._C, "_cusparselt", library, raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for module in (semi_structured, compressed):
        monkeypatch.setattr(module, "engine_of", lambda device: "cusparselt")
    monkeypatch.setattr(semi_structured, "_algorithms", {})
    monkeypatch.setattr(semi_structured, "is_available", lambda: YES)
    monkeypatch.setattr(semi_structured, "is_supported", lambda *_: YES)
    entry = BACKENDS["semi_structured"]
    monkeypatch.setitem(BACKENDS, "semi_structured", replace(entry, devices=("cpu",)))
    return gpu


@pytest.fixture(params=["tiles", "reversed"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    monkeypatch.setattr(semi_structured.triton, "is_available", lambda: Verdict("not here"))
    return play(monkeypatch, request.param)


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return play(monkeypatch, "tiles")


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 300])
def test_product(
    gpu: Gpu, make_case, shape: tuple[int, int], batch: int, block: int | None
) -> None:
    case = make_case(*shape, block, batch, torch.bfloat16, bias=True)
    case.check(semi_structured.matmul(case.x, case.call))
    prepared = compressed.compress(case.layer)
    case.check(semi_structured.matmul(case.x, case.call._replace(prepared=prepared)))


def test_the_algorithm_is_searched_once_for_similar_batches(tiles: Gpu, make_case) -> None:
    case = make_case(64, 64, None, 64, torch.bfloat16)
    call = case.call._replace(prepared=semi_structured.prepare(case.layer))
    for batch in (64, 60, 33, 64):
        semi_structured.matmul(case.x[:batch], call)
    assert tiles.searches == 1
    semi_structured.matmul(case.x[:30], call)
    assert tiles.searches == 2
    assert set(tiles.algorithms) == {(7, 4, 1)}  # also how it splits the inputs


def test_an_algorithm_that_fails_gives_way_to_the_default(tiles: Gpu, make_case) -> None:
    case = make_case(64, 64, None, 64, torch.bfloat16)
    call = case.call._replace(prepared=semi_structured.prepare(case.layer))
    tiles.refused = {56}
    for batch in (64, 56, 64):
        replace(case, x=case.x[:batch]).check(semi_structured.matmul(case.x[:batch], call))
    assert tiles.algorithms == [(7, 4, 1), (7, 4, 1), (), ()]


def test_an_older_torch_tells_the_number_alone(
    tiles: Gpu, make_case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch._C, "_cusparselt")
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda *_, transpose_result: 5)
    case = make_case(64, 64, None, 64, torch.bfloat16)
    case.check(semi_structured.matmul(case.x, case.call))
    assert tiles.algorithms == [(5,)]


def test_torchs_own_shapes() -> None:
    """The call itself, as torch's meta function takes it."""
    compressed = torch.empty(48, 36, dtype=torch.bfloat16, device="meta")
    x = torch.empty(16, 64, dtype=torch.bfloat16, device="meta")
    for algorithm in ((), (7, 4, 1)):
        y = semi_structured._cusparselt(compressed, x, algorithm)
        assert y.shape == (16, 48)
        assert y.dtype == torch.bfloat16


def held(module: ArmorLinear) -> int:
    """Bytes of all distinct storages that `module` keeps."""
    prepared = module.call().prepared
    extra = [] if prepared is None else [prepared]
    storages = {t.untyped_storage().data_ptr(): t for t in [*module.parameters(), *extra]}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def test_the_values_are_held_once_and_saved_as_before(gpu: Gpu, make_case) -> None:
    case = make_case(256, 256, None, 40, torch.bfloat16)
    module = ArmorLinear.from_packed(case.layer)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    dense = 2 * 256 * 256
    assert held(module) == 0.5625 * dense
    prepare(nn.Sequential(module))
    # The positions are held twice. With the values in another order nothing is prepared.
    assert module.is_prepared == (gpu.order != "reversed")
    assert held_bytes(module) == held(module) == (0.5625 + 0.0625 * module.is_prepared) * dense
    after = module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(module.dense_weight(), case.layer.dense())


def test_every_backend_reads_a_prepared_layer(tiles: Gpu, make_case) -> None:
    for rows, batch, block in ((48, 3, 16), (256, 3, 16), (256, 40, 64), (40, 1, None)):
        case = make_case(rows, 128, block, batch, torch.bfloat16, bias=True)
        module = ArmorLinear.from_packed(case.layer, case.bias)
        module.prepare()
        assert module.call().prepared_by == "semi_structured"
        for name in ("reference", "cpu", "triton", "semi_structured"):
            if load(name).is_available():
                with use(name):
                    case.check(module(case.x))
        x = case.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(x).sum(), x)
        expected = torch.ones(batch, rows).bfloat16() @ case.layer.dense()
        torch.testing.assert_close(gradient, expected, rtol=0.05, atol=0.1)


@pytest.mark.skipif(not load("triton").is_available(), reason="triton is not installed")
@pytest.mark.parametrize(
    "blocks",  # as q, k and v get them, where k and v have fewer rows
    [(32, 32, 32), (64, 32, 32), (32, 64, 64), (32, None, 32), (64, 32, 64, 32, 32, 32)],
)
def test_prepared_layers_run_together(
    tiles: Gpu, make_case, blocks: tuple[int | None, ...]
) -> None:
    sizes = zip((64, 32, 48) * 2, blocks, strict=False)
    cases = [
        make_case(rows, 128, block, 3, torch.bfloat16, seed=seed)
        for seed, (rows, block) in enumerate(sizes)
    ]
    modules = [ArmorLinear.from_packed(case.layer) for case in cases]
    for module in modules:
        module.prepare()
    x, calls = cases[0].x, [module.call() for module in modules]
    for name in ("triton", "semi_structured"):
        with use(name):
            for case, y in zip(cases, linears(x, calls), strict=True):
                replace(case, x=x).check(y)


@pytest.mark.skipif(not load("triton").is_available(), reason="triton is not installed")
@pytest.mark.parametrize("inner", [64, 104])  # the latter is padded
def test_a_gated_mlp_as_one(tiles: Gpu, make_case, inner: int) -> None:
    sizes = (inner, 128), (inner, 128), (48, inner)
    cases = [make_case(*size, 16, 40, torch.bfloat16, seed=n) for n, size in enumerate(sizes)]
    modules = [ArmorLinear.from_packed(case.layer) for case in cases]
    for module in modules:
        module.prepare()
    gated = Gated(*(module.call() for module in modules), "silu")
    x = cases[0].x
    with use("semi_structured"):
        assert gating(x, gated) == "semi_structured"
        y = run_gated(x, gated)
    assert len(tiles.algorithms) == 3
    gate, up, down = (case.layer.to(torch.float64).dense() for case in cases)
    expected = (functional.silu(x.double() @ gate.T) * (x.double() @ up.T)) @ down.T
    assert y.shape == expected.shape
    assert float((y - expected).norm()) <= 0.03 * float(expected.norm())


def test_what_was_prepared_goes_with_its_tensors(
    tiles: Gpu, make_case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, other = (make_case(64, 64, None, 40, torch.bfloat16, seed=seed) for seed in (0, 1))
    module = ArmorLinear.from_packed(case.layer)
    module.prepare()
    assert module.is_prepared
    module.load_state_dict(other.layer.tensors())
    assert not module.is_prepared
    module.prepare()
    with monkeypatch.context() as patch:
        patch.setattr(semi_structured, "is_supported", lambda *_: Verdict("another device"))
        module.to(torch.float16)
        assert not module.is_prepared
    module.to(torch.bfloat16)  # back again
    assert module.is_prepared
    # Offloading replaces parameters without a notice.
    module.core_values = nn.Parameter(case.layer.core_values, requires_grad=False)
    call = module.call()
    assert call.prepared is None
    assert call.layer.core_values is module.core_values


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_for_cutlass(
    make_case, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def multiply(values: Tensor, positions: Tensor, x: Tensor) -> Tensor:
        assert x.shape[1] % 8 == 0
        core = sparse_semi_structured_to_dense_cutlass(values, positions)
        return (core.double() @ x.double()).to(x.dtype)

    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", multiply)
    for module in (semi_structured, compressed):
        monkeypatch.setattr(module, "engine_of", lambda device: "cutlass")
    monkeypatch.setattr(semi_structured.triton, "is_available", lambda: Verdict("not here"))
    case = make_case(*shape, 16, 20, torch.float16, bias=True)
    case.check(semi_structured.matmul(case.x, case.call))


def test_what_it_supports_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert not semi_structured.is_available()
    cpu = torch.device("cpu")
    verdict = semi_structured.is_supported((64, 64), torch.bfloat16, cpu, 64, TWO_OF_FOUR)
    assert verdict.reason == "the tensors are on cpu"
