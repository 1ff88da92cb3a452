"""However the Triton kernels cut the work, the numbers are the same; and they compile for GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from armor.runtime.registry import load
from armor.runtime.triton import backend as triton
from armor.runtime.triton import tiling as tilings
from armor.runtime.triton.tiling import Product, Tiling

pytestmark = pytest.mark.skipif(not load("triton").is_available(), reason="triton is not installed")


@given(
    rows=st.lists(st.sampled_from([37, 64, 128, 200]), min_size=1, max_size=3),
    cols=st.sampled_from([37, 100, 128, 256]),
    block=st.sampled_from([None, 4, 32, 43, 64, 128]),
    batch=st.sampled_from([1, 5, 33]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    bias=st.booleans(),
    left=st.booleans(),
    right=st.booleans(),
    tile=st.sampled_from([16, 64, 128]),
    programs=st.sampled_from([1, 4, 16]),
)
@settings(max_examples=12)
def test_every_way_of_cutting_gives_the_product(
    make_case, rows, cols, block, batch, dtype, bias, left, right, tile, programs
) -> None:
    cases = [make_case(n, cols, block, batch, dtype, bias, seed=s) for s, n in enumerate(rows)]
    product = Product(sum(rows), cols, block, batch, dtype)
    cut = Tiling(
        rows=tile,
        programs=programs,
        fuse_left=left and tilings.can_fuse_left(product),
        fuse_right=right and tilings.can_fuse_right(product),
    )
    x = cases[0].x
    found = triton.product(x, [case.call for case in cases], cut)
    for case, y in zip(cases, found, strict=True):
        replace(case, x=x).check(y)
    assert all(not zeros.any() for zeros in triton._counters.values())


def test_the_rule_fuses_only_what_the_kernels_can() -> None:
    for block in (None, 8, 43, 128, 256):
        for dtype in (torch.float32, torch.bfloat16):
            for batch in (1, 32, 33, 4096):
                product = Product(4096, 4096, block, batch, dtype)
                rule = tilings.by_rule(product)
                fused = [replace(rule, **change) for change in tilings.alternatives(product)[0]]
                assert rule in fused
                for cut in fused:
                    assert not cut.fuse_left or tilings.can_fuse_left(product)
                    assert not cut.fuse_right or tilings.can_fuse_right(product)
    decode = tilings.by_rule(Product(4096, 4096, 128, 1, torch.bfloat16))
    assert decode.fuse_left
    assert decode.fuse_right
    assert not tilings.by_rule(Product(4096, 4096, 128, 64, torch.bfloat16)).fuse_left


def test_a_measured_tiling_goes_before_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    product = Product(6144, 4096, 128, 3, torch.bfloat16)
    assert product.key == "6144x4096 block 128 batch 4 bfloat16"
    table = {"cpu": {product.key: {"rows": 16, "warps": 2}}}
    monkeypatch.setattr(tilings, "_measured", lambda: table)
    assert tilings.choose_tiling(product, torch.device("cpu")) == Tiling(rows=16, warps=2)
    other = Product(6144, 4096, 128, 5, torch.bfloat16)
    assert tilings.choose_tiling(other, torch.device("cpu")) == tilings.by_rule(other)


def test_captured_graphs_count_on_zeros_made_before(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(stream=7, capturing=False)
    real = torch.zeros

    def zeros(size, dtype, device):
        assert not state.capturing
        return real(size, dtype=dtype)

    monkeypatch.setattr(triton, "_counters", {})
    monkeypatch.setattr(torch, "zeros", zeros)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=state.stream)
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    gpu = torch.device("cuda")
    eager, large = triton._zeroed_counters(gpu, 10), triton._zeroed_counters(gpu, 5000)
    assert len(eager) >= 10
    assert len(large) >= 5000
    state.stream = 8
    assert triton._zeroed_counters(gpu, 10) is not eager
    state.capturing, state.stream = True, 7
    captured = triton._zeroed_counters(gpu, 10)
    assert captured is not eager
    state.stream = 9
    assert triton._zeroed_counters(gpu, 10) is captured


_COMPILE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction
from armor.runtime import Call
from armor.runtime.triton import backend
from armor.sparse.layer import PackedLayer
from armor.sparse.pack import packed_shapes

launch = JITFunction.run
compiled = []


class Gpu:
    # What Triton asks its driver before it compiles; nothing is loaded, nothing runs.
    capability = None

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


def only_compile(kernel, *arguments, grid, warmup, **constants):
    found = launch(kernel, *arguments, grid=grid, warmup=True, **constants)
    compiled.append((kernel.__name__, found, constants.get("STAGES", 1)))


def layer(rows, cols, dtype, block):
    values, indices = (torch.empty(shape, dtype=torch.uint8) for shape in packed_shapes(rows, cols))
    left, right = (torch.empty(-(-n // block), block, block, dtype=dtype) for n in (rows, cols))
    packed = PackedLayer(cols, values.to(dtype), indices, left, right)
    return Call(packed, torch.empty(rows, dtype=dtype))


gpu = Gpu()
driver.set_active(gpu)
JITFunction.run = only_compile
for gpu.capability, processors, shared in ((80, 108, 163), (90, 132, 227)):
    backend._processors = lambda device: processors
    for rows, batch in (((4096,), 1), ((4096, 1024, 1024), 1), ((14336, 14336), 32), ((4096,), 64)):
        compiled.clear()
        x = torch.empty(batch, 4096, dtype=torch.bfloat16)
        backend.product(x, [layer(out, 4096, x.dtype, 128) for out in rows])
        for name, kernel, stages in compiled:
            case = (gpu.capability, rows, batch, name)
            ptx = kernel.asm["ptx"]
            assert ".local" not in ptx, (case, "spills")
            assert kernel.metadata.shared <= shared * 1024, (case, kernel.metadata.shared)
            # The values arrive 16 bytes at a time, asynchronously where there is a pipeline.
            wide = "cp.async.cg.shared.global" if stages > 1 else "ld.global.v4"
            assert name != "core_kernel" or wide in ptx, (case, "narrow loads")
            print("compiled", *case)
    # Shapes of 1, which Triton compiles into the kernel; partial tiles; float32.
    for rows, block, name in ((1, 4, "bfloat16"), (37, 48, "float16"), (5, 4, "float32")):
        dtype = getattr(torch, name)
        x = torch.empty(1, 6, dtype=dtype)
        backend.product(x, [layer(rows, 6, dtype, block)] * 3)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ptxas comes with triton on Linux only")
def test_the_kernels_compile_for_gpus() -> None:
    """The real launches, for capability 8.0 and 9.0: wide loads, no spills, memory that fits."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _COMPILE],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("core_kernel") == 8
    assert done.stdout.count("blocks_kernel") >= 4
