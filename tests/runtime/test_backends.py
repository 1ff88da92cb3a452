"""Every backend against the float64 product, on random layers."""

from __future__ import annotations

import os
import subprocess
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from armor.runtime import linear, use
from armor.runtime.cpu import choice
from armor.runtime.dispatch import supports
from armor.runtime.registry import BACKENDS, load
from armor.simd.processor import features
from armor.sparse.pattern import TWO_OF_FOUR

HALF = [torch.bfloat16, torch.float16]
FLOATS = [torch.float32, *HALF]


def runs(name: str, device: str) -> bool:
    where = torch.device(device)
    return bool(supports(name, (64, 64), torch.bfloat16, where, 1, TWO_OF_FOUR))


DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
# The wide range of shapes is the cheap backends' business: interpreted kernels are slow.
EVERY = [(name, device) for name in BACKENDS for device in DEVICES if runs(name, device)]


def test_every_backend_but_the_one_for_gpus_runs_here() -> None:
    assert {("cpu", "cpu"), ("reference", "cpu")} <= set(EVERY)
    if os.environ.get("TRITON_INTERPRET") == "1":
        assert ("triton", "cpu") in EVERY or not load("triton").is_available()


layers = {
    "rows": st.integers(1, 150),
    "cols": st.integers(1, 150),
    "block": st.sampled_from([None, 4, 8, 16, 43, 64]),
    "batch": st.integers(1, 12) | st.sampled_from([33, 65, 300]),
    "dtype": st.sampled_from(FLOATS),
    "bias": st.booleans(),
    "contiguous": st.booleans(),
    "seed": st.integers(0, 2**31),
}


@pytest.mark.parametrize(("name", "device"), EVERY)
@given(data=st.data(), **layers)
@settings(max_examples=25)
def test_equals_the_float64_product(make_case, name, device, data, **drawn) -> None:
    if name == "triton" and device == "cpu":
        drawn["batch"] = min(drawn["batch"], 40)
    if name == "semi_structured" and drawn["dtype"] == torch.float32:
        drawn["dtype"] = data.draw(st.sampled_from(HALF))
    case = make_case(device=device, **drawn)
    with use(name):
        case.check(linear(case.x, case.call))


@pytest.mark.parametrize("dtype", FLOATS, ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("batch", [1, 3, 64, 65, 300])
@pytest.mark.parametrize("kernel", ["columns", "panels"])
def test_cpu_on_a_shape_with_full_vectors_and_a_rest(
    make_case, monkeypatch: pytest.MonkeyPatch, kernel: str, batch: int, dtype: torch.dtype
) -> None:
    monkeypatch.setenv(choice.ENVIRONMENT, kernel)
    case = make_case(70, 172, 43, batch, dtype, bias=True)
    with use("cpu"):
        case.check(linear(case.x, case.call))


@pytest.mark.parametrize("kernel", choice.KERNELS)
@pytest.mark.parametrize("shape", [(1, 3), (37, 53), (130, 256)])
@pytest.mark.parametrize("batch", [2, 5, 64, 128])
def test_every_kernel_in_bfloat16(
    make_case, monkeypatch: pytest.MonkeyPatch, batch: int, shape: tuple[int, int], kernel: str
) -> None:
    if kernel not in choice.candidates(torch.bfloat16, batch):
        pytest.skip("this processor has no instructions for it")
    monkeypatch.setenv(choice.ENVIRONMENT, kernel)
    case = make_case(*shape, 32, batch, torch.bfloat16, bias=True)
    with use("cpu"):
        case.check(linear(case.x, case.call))


def test_other_leading_dimensions(make_case) -> None:
    case = make_case(24, 20, 8, 6)
    flat = linear(case.x, case.call)
    assert torch.equal(linear(case.x.view(2, 3, 20), case.call), flat.view(2, 3, 24))
    assert torch.equal(linear(case.x[0], case.call), linear(case.x[:1], case.call)[0])
    assert linear(case.x[:0], case.call).shape == (0, 24)


def test_results_do_not_depend_on_the_neighbours(make_case) -> None:
    """Batch 1 and a row of a larger batch: the same number of roundings, nearly the same sums."""
    case = make_case(64, 128, 16, 8)
    together = linear(case.x, case.call)
    alone = torch.cat([linear(row[None], case.call) for row in case.x])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


PLAIN = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt",
}


@pytest.mark.slow
@pytest.mark.parametrize("processor", [PLAIN, AVX2], ids=["plain", "AVX2"])
def test_cpu_without_avx512(processor: dict[str, str]) -> None:
    """Other instructions than this machine's best, in a process that compiles for such a one."""
    if processor is AVX2 and not {"avx2", "fma"} <= features():
        pytest.skip("this processor has no AVX2")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*command, "-k", "full_vectors and f32"],
        env=os.environ | processor,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "10 passed" in done.stdout, done.stdout + done.stderr


_THREADS = """
import torch
from armor.linear import ArmorLinear
torch.set_num_threads(1)
assert torch.get_num_threads() == 1  # the first time it is set in earnest
layer = ArmorLinear(64, 64, dtype=torch.float32, device="cpu")
for parameter in layer.parameters():
    parameter.fill_(0x44 if parameter.dtype == torch.uint8 else 0.0)
layer(torch.zeros(1, 64, dtype=torch.float32, device="cpu"))
assert "numba" in __import__("sys").modules
assert torch.get_num_threads() == 1, torch.get_num_threads()
"""


def test_cpu_leaves_the_number_of_threads_of_torch() -> None:
    """Numba, when it starts its own, sets it for the whole process."""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", _THREADS], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
