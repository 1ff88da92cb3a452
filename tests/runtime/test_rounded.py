"""Layers with rounded cores: every backend that reads them against the float64 product."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from armor.errors import ArmorError
from armor.factorize.problem import Problem
from armor.factorize.rounding import Storage, round_core, round_factors
from armor.linear import ArmorLinear, prepare
from armor.runtime import Call, backends, linear, use
from armor.runtime.api import linears
from armor.runtime.registry import BACKENDS
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import CORES
from armor.sparse.masks import nm_mask

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
FORMS = [(core, wrappers) for core in CORES for wrappers in (None, "int8")]
READ = [name for name, backend in BACKENDS.items() if "int8" in backend.cores]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def make(
    rows: int, cols: int, block: int | None, core: str, wrappers: str | None, dtype: torch.dtype
) -> PackedLayer:
    draw = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, cols, generator=draw)
    mask = nm_mask(weight.abs())
    factors, problem = Factors(weight * mask, mask), Problem(weight, torch.ones(cols))
    if block is None:
        return PackedLayer.from_factors(round_core(problem, factors, Storage(core, None, dtype)))
    around = [
        torch.eye(block) + 0.3 * torch.randn(-(-size // block), block, block, generator=draw)
        for size in (rows, cols)
    ]
    factors = replace(factors, left=around[0], right=around[1])
    storage = Storage(core, wrappers, dtype)
    return PackedLayer.from_factors(round_factors(problem, factors, storage, iterations=0)[0])


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("dtype", FLOATS, ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize(("core", "wrappers"), FORMS)
@pytest.mark.parametrize("shape", [(70, 172, 43), (64, 256, 32), (33, 70, 4), (5, 3, None)])
def test_products(
    name: str,
    shape: tuple[int, int, int | None],
    core: str,
    wrappers: str | None,
    dtype: torch.dtype,
) -> None:
    rows, cols, block = shape
    layer = make(rows, cols, block, core, wrappers, dtype)
    dense = layer.to_factors().cast(torch.float64).dense()
    for batch in (1, 3, 4, 64, 65):
        x = torch.randn(batch, cols, generator=torch.Generator().manual_seed(batch)).to(dtype)
        bias = torch.randn(rows, generator=torch.Generator().manual_seed(7)).to(dtype)
        with use(name):
            y = linear(x, Call(layer, bias))
        expected = x.double() @ dense.T + bias.double()
        assert y.shape == expected.shape
        assert y.dtype == dtype
        assert y.is_contiguous()
        assert (y.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize("dtype", FLOATS, ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_layers_of_one_input_each_in_its_own_form(batch: int, dtype: torch.dtype) -> None:
    """In one start of the threads on the CPU, but for the last, which is not rounded."""
    forms = [(16, "int8", "int8"), (16, "int4", None), (8, "fp8", "int8"), (None, "int4", None)]
    rounded = [
        make(rows, 128, block, core, wrappers, dtype)
        for rows, (block, core, wrappers) in zip((64, 32, 48, 40), forms, strict=True)
    ]
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    mask = nm_mask(weight.abs())
    plain = PackedLayer.from_factors(Factors(weight * mask, mask).cast(dtype))
    x = torch.randn(batch, 128, generator=torch.Generator().manual_seed(batch)).to(dtype)
    for layers in (rounded, [*rounded, plain]):
        with use("cpu"):
            found = linears(x, [Call(layer) for layer in layers])
        for layer, y in zip(layers, found, strict=True):
            expected = x.double() @ layer.to_factors().cast(torch.float64).dense().T
            assert (y.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def test_products_without_avx512() -> None:
    """The portable instructions, in a process that compiles for the plainest processor."""
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*command, "-k", "test_products and f32 and cpu and shape0"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{len(FORMS)} passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - set(READ)))
def test_other_backends_say_that_they_do_not_read_codes(name: str) -> None:
    layer = make(16, 32, 4, "int8", None, torch.bfloat16)
    (status,) = (own for own in backends((16, 32), core="int8") if own.name == name)
    assert status.reason == "it does not read int8 cores"
    with use(name), pytest.raises(ArmorError, match="does not read int8 cores"):
        linear(torch.ones(1, 32, dtype=torch.bfloat16), Call(layer))


@pytest.mark.parametrize(("core", "wrappers"), FORMS)
def test_a_module_keeps_codes_and_is_one_operator(core: str, wrappers: str | None) -> None:
    layer = make(64, 128, 16, core, wrappers, torch.float32)
    module = ArmorLinear.from_packed(layer)
    prepare(torch.nn.Sequential(module))
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    y = module(x)
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), y)
    narrow = ArmorLinear.from_packed(layer).to(torch.bfloat16)
    assert narrow.core_values.dtype == layer.core_values.dtype
    assert narrow.core_scales.dtype == torch.bfloat16
    torch.testing.assert_close(narrow(x.bfloat16()).float(), y, rtol=0.1, atol=0.3)
    given = x.clone().requires_grad_()
    module(given).sum().backward()
    expected = layer.dense().sum(0).expand_as(x)
    torch.testing.assert_close(given.grad, expected, rtol=1e-3, atol=1e-3)
    assert f"core={core}" in repr(module)
