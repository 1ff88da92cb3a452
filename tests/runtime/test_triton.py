"""However the Triton kernels cut the work, the numbers are the same; and they compile for GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from armor.linear import ArmorLinear
from armor.runtime import use
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
    held = triton._counters.get(x.device, [])
    assert not any(zeros.any() for zeros in held)


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
    for rows, block, fused in ((2048, 128, True), (4096, 64, True), (4096, 128, False)):
        decode = tilings.by_rule(Product(rows, 4096, block, 1, torch.bfloat16))
        assert decode.fuse_left
        assert decode.fuse_right == fused
    assert not tilings.by_rule(Product(4096, 4096, 128, 64, torch.bfloat16)).fuse_left


def test_layers_that_are_alike_share_a_launch(make_case) -> None:
    calls = [make_case(64, 128, block, 1).call for block in (64, 32, 32, 64, 32, 32, 32)]
    groups = triton.launches(calls, lambda call: call.layer.block)
    assert groups == [[0, 3], [1, 2, 4], [5, 6]]


def test_a_measured_tiling_goes_before_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    product = Product(6144, 4096, 128, 3, torch.bfloat16)
    assert product.key == "6144x4096 block 128 batch 4 bfloat16"
    cpu = torch.device("cpu")
    table = {tilings.compiled_for(cpu): {product.key: {"rows": 16, "warps": 2}}}
    monkeypatch.setattr(tilings, "_measured", lambda: table)
    assert tilings.choose_tiling(product, cpu) == Tiling(rows=16, warps=2)
    other = Product(6144, 4096, 128, 5, torch.bfloat16)
    assert tilings.choose_tiling(other, cpu) == tilings.by_rule(other)


def test_captured_graphs_count_on_zeros_made_before(
    make_case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prepare` makes them, neither a first call nor a capture, for every stream and launch."""
    state = SimpleNamespace(stream=7, capturing=False, may_allocate=True)
    real = torch.zeros

    def zeros(*size, dtype, device):
        assert state.may_allocate
        return real(*size, dtype=dtype)

    monkeypatch.setattr(triton, "_counters", {})
    monkeypatch.setattr(triton, "_streams", {})
    monkeypatch.setattr(torch, "zeros", zeros)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=state.stream)
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    gpu = torch.device("cuda")
    triton._counters_of(gpu, 10)
    state.may_allocate = False
    found = {}
    for state.stream in (7, 8, 9, 7):
        counters = triton._zeroed_counters(gpu, 10)
        assert found.setdefault(state.stream, counters.data_ptr()) == counters.data_ptr()
    state.capturing = True
    for state.stream in (7, 9):
        found[0] = triton._zeroed_counters(gpu, 10).data_ptr()
    assert len(set(found.values())) == 4
    state.may_allocate = True
    assert len(triton._zeroed_counters(gpu, 5000)) >= 5000
    assert len(triton._counters[gpu]) == 2  # the smaller ones stay where graphs know them


def test_prepare_makes_the_counters(make_case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_counters", {})
    case = make_case(64, 64, 16, 1, torch.bfloat16)
    module = ArmorLinear.from_packed(case.layer)
    with use("triton"):
        module.prepare()
    (zeros,) = triton._counters[torch.device("cpu")]
    with use("triton"):
        case.check(module(case.x))
    assert triton._counters[torch.device("cpu")] == [zeros]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ptxas comes with triton on Linux only")
def test_the_kernels_compile_for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few of the real launches; `make gpu-kernels` compiles all."""
    root, found = Path(__file__).parents[2], tmp_path / "found.json"
    script = [sys.executable, "-W", "ignore", root / "scripts" / "compile_kernels.py", "--quick"]
    done = subprocess.run(
        [*script, "--architectures", "80", "90", "100", "--json", found],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 3
    # The model of decoding says how many instructions a step of the core takes.
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    from gpu_decode import STEP_INSTRUCTIONS

    loops = [
        row["loop"]
        for row in json.loads(found.read_text())["launches"]
        if (row["architecture"], row["kernel"]) == (90, "core_kernel")
        and row["launch"].endswith("rows 1 torch.bfloat16")
    ]
    assert 0.9 * STEP_INSTRUCTIONS[0] <= max(loops) <= STEP_INSTRUCTIONS[0]
