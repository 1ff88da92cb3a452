"""The device that the user asks for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from armor.device import float32_products, kind_of_device, resolve_device
from armor.engines.job import Job, Result
from armor.errors import ArmorError
from armor.factorize.exact import factorize
from armor.factorize.problem import Problem
from armor.sparse.factors import Factors


@pytest.mark.parametrize(
    ("name", "gpu", "remote", "expected"),
    [
        ("auto", True, False, "cuda"),
        ("auto", False, True, "cpu"),
        ("cpu", True, False, "cpu"),
        ("cuda", True, False, "cuda"),
        ("cuda", False, True, "cuda"),
        ("cuda:1", True, False, "cuda:1"),
    ],
)
def test_devices(
    name: str, gpu: bool, remote: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(name, remote=remote) == expected


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArmorError, match="no CUDA device is available; use --device cpu"):
        resolve_device("cuda")
    with pytest.raises(ArmorError, match="unknown device 'tpu'; valid: auto, cpu, cuda, cuda:N"):
        resolve_device("tpu")
    with pytest.raises(ArmorError, match="no CUDA device is available"):
        resolve_device("cuda:0")
    with pytest.raises(ArmorError, match="a GPU of a cluster has no number"):
        resolve_device("cuda:0", remote=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ArmorError, match=r"there is no cuda:2: this machine has 2 GPU\(s\)"):
        resolve_device("cuda:2")


def test_the_kind_of_a_device_decides_on_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind_of_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kind_of_device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    assert kind_of_device("cuda:1") == kind_of_device("cuda") == "cuda (H100)"


def precisions() -> tuple[str, str]:
    """What products of float32 matrices are computed in, on a GPU and on the CPU."""
    backends = torch.backends
    return backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision


@pytest.fixture
def coarse() -> Iterator[tuple[str, str]]:
    """A program that asks for speed before exactness."""
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this torch has the older settings only")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield precisions()
    torch.set_float32_matmul_precision(before)


def test_products_of_float32_are_of_float32(coarse: tuple[str, str]) -> None:
    assert coarse == ("tf32", "bf16")
    with float32_products():
        assert precisions() == ("ieee", "ieee")
        with float32_products("tf32"):
            assert precisions() == ("tf32", "ieee")
        assert precisions() == ("ieee", "ieee")
    assert precisions() == coarse
    assert torch.get_float32_matmul_precision() == "medium"


def look(_context: object) -> Result:
    return Result(precisions())


def test_jobs_and_the_solver_do_not_take_over_what_the_program_has_set(
    coarse: tuple[str, str],
) -> None:
    assert Job(look, {}, results=0).run(None, dict).value == ("ieee", "ieee")
    seen = []

    def starts() -> Iterator[Factors]:
        seen.append(precisions())
        yield Factors(torch.zeros(4, 4), torch.tensor([[True, True, False, False]] * 4))

    factorize(Problem(torch.eye(4), torch.ones(4)), 4, starts(), 2)
    assert seen == [("ieee", "ieee")]
    assert precisions() == coarse
