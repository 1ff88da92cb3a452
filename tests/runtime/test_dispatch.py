"""The choice of a backend, and the ways to make it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from armor.errors import ArmorError
from armor.linear import ArmorLinear
from armor.runtime import backends, dispatch, linear, use
from armor.runtime.backend import YES, Verdict
from armor.runtime.registry import BACKENDS

CPU = torch.device("cpu")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_backends_says_why_not() -> None:
    found = {status.name: status for status in backends()}
    assert list(found) == ["cpu", "triton", "float8", "semi_structured", "reference"]
    assert found["reference"].usable
    assert found["cpu"].usable
    for status in found.values():
        assert status.usable == (not status.reason)


@no_gpu
def test_backends_without_a_gpu() -> None:
    found = {status.name: status.reason for status in backends()}
    assert found["semi_structured"] == "no NVIDIA GPU"


def test_backends_for_a_layer() -> None:
    found = {s.name: s for s in backends((64, 64), torch.float64, "cpu")}
    assert found["reference"].usable
    assert found["cpu"].reason == "torch.float64 is none of float32, bfloat16, float16"


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "cpu"), (torch.float16, "cpu"), (torch.float64, "reference")],
)
def test_choice_on_the_cpu(dtype: torch.dtype, name: str) -> None:
    assert dispatch.choose((64, 64), dtype, CPU, 1) == name
    assert dispatch.choose((64, 64), dtype, CPU, 3000) == name


@pytest.mark.parametrize(
    ("batch", "prepared", "works", "name"),
    [
        (1, True, {"triton", "semi_structured"}, "triton"),
        (32, True, {"triton", "semi_structured"}, "triton"),
        (33, True, {"triton", "semi_structured"}, "semi_structured"),
        (33, False, {"triton", "semi_structured"}, "triton"),
        (1, True, {"semi_structured"}, "semi_structured"),
        (2048, True, {"triton"}, "triton"),
        (1, True, set(), "reference"),
    ],
)
def test_choice_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, batch: int, prepared: bool, works: set[str], name: str
) -> None:
    for other in ("triton", "semi_structured"):
        verdict = YES if other in works else Verdict("not here")
        fake = SimpleNamespace(
            is_available=lambda verdict=verdict: verdict,
            is_supported=lambda *_: YES,
            prepare=lambda layer: None,
            matmul=lambda *_: None,
        )
        monkeypatch.setitem(BACKENDS, other, replace(BACKENDS[other], backend=fake))
    by = "semi_structured" if prepared else ""
    device = torch.device("cuda")
    found = dispatch.choose((64, 64), torch.bfloat16, device, batch, prepared_by=by)
    assert found == name


def test_use_forces_and_restores(make_case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispatch.forced() is None
    monkeypatch.setenv(dispatch.ENVIRONMENT, "cpu")
    with use("reference"):
        assert dispatch.choose((4, 4), torch.float32, CPU, 1) == "reference"
        with use("cpu"):
            assert dispatch.forced() == "cpu"
        assert dispatch.forced() == "reference"
    assert dispatch.forced() == "cpu"


def test_bad_requests_are_one_line(make_case, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(8, 8, None, 1, torch.float64)
    with pytest.raises(ArmorError, match="unknown backend 'cuda'; valid: cpu, "), use("cuda"):
        pass
    with use("cpu"), pytest.raises(ArmorError, match=r"cpu cannot run this layer: torch\.float64"):
        linear(case.x, case.call)
    monkeypatch.setenv(dispatch.ENVIRONMENT, "fast")
    with pytest.raises(ArmorError, match="unknown backend 'fast'"):
        linear(case.x, case.call)


@no_gpu
def test_a_gpu_backend_on_the_cpu_is_refused(make_case) -> None:
    case = make_case(8, 8, None, 1)
    with use("semi_structured"), pytest.raises(ArmorError, match="no NVIDIA GPU"):
        linear(case.x, case.call)


def test_another_dtype_of_input_is_torchs_own_error(make_case) -> None:
    layer = ArmorLinear.from_packed(make_case(8, 8, None, 1).layer)
    with pytest.raises(RuntimeError, match="same dtype"):
        layer(torch.zeros(2, 8, dtype=torch.bfloat16))


@pytest.mark.parametrize("block", [None, 8])
def test_an_input_of_another_width_is_refused(make_case, block: int | None) -> None:
    case = make_case(8, 16, block, 2)
    with pytest.raises(ArmorError, match="the layer takes 16 inputs, not 12 as given"):
        linear(case.x[:, :12], case.call)
