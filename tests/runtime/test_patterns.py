"""Other patterns than 2:4 on the CPU backend, against the float64 product."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from armor.errors import ArmorError
from armor.runtime import Call, backends, linear, use
from armor.runtime.cpu import choice
from armor.runtime.dispatch import choose
from armor.sparse.layer import PackedLayer
from armor.sparse.pack import unpack_mask
from armor.sparse.pattern import Pattern

PATTERNS = ["4:8", "1:4", "3:4", "2:8", "7:8", "1:2", "1%", "50%", "99%"]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def product(case) -> torch.Tensor:
    with use("cpu"):
        return linear(case.x, case.call)


@given(
    rows=st.integers(1, 90),
    cols=st.integers(1, 90) | st.sampled_from([172, 256, 352]),
    block=st.sampled_from([None, 16, 43]),
    batch=st.integers(1, 9) | st.sampled_from([64, 65, 130]),
    dtype=st.sampled_from(FLOATS),
    bias=st.booleans(),
    contiguous=st.booleans(),
    pattern=st.sampled_from(PATTERNS),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150)
def test_equals_the_float64_product(make_case, **drawn) -> None:
    case = make_case(**drawn)
    case.check(product(case))


@pytest.mark.parametrize("dtype", FLOATS, ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("batch", [1, 3, 64, 65, 130])
@pytest.mark.parametrize("kernel", ["columns", "panels"])
@pytest.mark.parametrize("pattern", ["4:8", "1:4", "50%"])
def test_full_vectors_and_a_rest(make_case, monkeypatch, pattern, kernel, batch, dtype) -> None:
    monkeypatch.setenv(choice.ENVIRONMENT, kernel)
    case = make_case(70, 172, 43, batch, dtype, bias=True, pattern=pattern)
    case.check(product(case))


@pytest.mark.parametrize("pattern", ["4:8", "50%"])
@pytest.mark.parametrize("batch", [2, 5, 64])
def test_the_processors_products_of_bfloat16(
    make_case, monkeypatch: pytest.MonkeyPatch, batch: int, pattern: str
) -> None:
    if "dot" not in choice.candidates(torch.bfloat16, batch):
        pytest.skip("this processor has no instructions for them")
    monkeypatch.setenv(choice.ENVIRONMENT, "dot")
    case = make_case(37, 352, 32, batch, torch.bfloat16, pattern=pattern)
    case.check(product(case))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_masks_are_those_of_the_codes(make_case, pattern: str) -> None:
    """A unit vector picks a column: which entries are kept, one column at a time."""
    layer = make_case(9, 44, None, 1, pattern=pattern).layer
    ones = replace(layer, core_values=torch.ones_like(layer.core_values))
    mask = unpack_mask(layer.core_indices, 44, layer.pattern).float()
    with use("cpu"):
        for col in range(44):
            unit = torch.eye(44)[col : col + 1]
            assert torch.equal(linear(unit, Call(ones))[0], mask[:, col])


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=["f32", "bf16"])
@pytest.mark.parametrize("batch", [1, 8, 130])
@pytest.mark.parametrize("pattern", ["4:8", "50%"])
def test_threads_do_not_change_a_bit(make_case, pattern, batch, dtype) -> None:
    case = make_case(1300, 352, 32, batch, dtype, pattern=pattern)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(product(case))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


@pytest.mark.skipif(sys.platform != "linux", reason="protects memory by Linux's C library")
@pytest.mark.parametrize("pattern", ["4:8", "50%", "99%"])
@pytest.mark.parametrize("dtype", FLOATS[:2], ids=["f32", "bf16"])
def test_nothing_beyond_the_values_is_read(make_case, pattern: str, dtype: torch.dtype) -> None:
    """Values and codes end where a page begins that may not be read: that kills the process."""
    case = make_case(33, 172, None, 130, dtype, pattern=pattern)
    tensors = {name: _guarded(tensor) for name, tensor in case.layer.tensors().items()}
    guarded = replace(case, layer=PackedLayer.of(172, tensors, case.layer.pattern))
    for batch in (1, 4, 130):
        shorter = replace(guarded, x=guarded.x[:batch])
        shorter.check(product(shorter))


def _guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A copy right before a page that may not be read."""
    size = -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    last = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert protect(last, mmap.PAGESIZE, 0) == 0
    offset = size - tensor.nbytes
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return copy.view(tensor.shape).copy_(tensor)


def test_the_cpu_backend_is_chosen(make_case) -> None:
    for pattern in ("2:4", *PATTERNS):
        found = backends((64, 64), torch.float32, "cpu", pattern=pattern)
        assert {status.name: status for status in found}["cpu"].usable
        cpu = torch.device("cpu")
        chosen = choose((64, 64), torch.float32, cpu, 1, Pattern.parse(pattern))
        assert chosen == "cpu"


def test_a_bitmap_of_another_number_of_values_is_refused(make_case) -> None:
    case = make_case(8, 32, None, 1, pattern="50%")
    short = replace(case.layer, core_values=case.layer.core_values[:-1])
    with use("cpu"), pytest.raises(ArmorError, match=r"keeps [0-9]+ values, but there are"):
        linear(case.x, Call(short))


def test_without_avx512() -> None:
    """The portable instructions, in a process that compiles for the plainest processor."""
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*command, "-k", "full_vectors and f32"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "30 passed" in done.stdout, done.stdout + done.stderr
