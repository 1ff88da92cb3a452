"""A backend that is added as docs/runtime.md says: a module and one line."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from armor.errors import ArmorError
from armor.linear import ArmorLinear, prepare
from armor.runtime import backends, linear, use
from armor.runtime.dispatch import choose
from armor.runtime.registry import BACKENDS, Registered, candidates, load

CPU = torch.device("cpu")

DENSE = """\
\"\"\"Multiplies with the dense weight, for up to 100 rows of any pattern.\"\"\"

from armor.runtime.backend import YES, Verdict

PRODUCTS = []


def is_available():
    return YES


def is_supported(shape, dtype, device, batch, pattern):
    return YES if batch <= 100 else Verdict("too many rows")


def prepare(layer):
    return layer.dense()


def matmul(x, call):
    PRODUCTS.append((str(call.layer.pattern), call.prepared is not None))
    weight = call.layer.dense() if call.prepared is None else call.prepared
    y = x @ weight.T
    return y if call.bias is None else y + call.bias
"""


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    (tmp_path / "dense_backend.py").write_text(DENSE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("dense_backend")
    del sys.modules["dense_backend"]


@pytest.fixture
def registry() -> Iterator[None]:
    """What a test adds goes away with it."""
    before = dict(BACKENDS)
    yield
    BACKENDS.clear()
    BACKENDS.update(before)


@pytest.mark.parametrize("by_name", [True, False], ids=["by its name", "the module"])
@pytest.mark.parametrize("pattern", ["2:4", "4:8", "50%"])
def test_a_backend_of_ones_own(make_case, registry, dense, pattern: str, by_name: bool) -> None:
    BACKENDS["dense"] = Registered("dense_backend" if by_name else dense, devices=("cpu",))
    case = make_case(24, 32, 8, 5, bias=True, pattern=pattern)
    case.check(linear(case.x, case.call))  # the last one added is tried first
    with use("dense"):
        case.check(linear(case.x, case.call))
    assert [(pattern, False)] * 2 == dense.PRODUCTS
    layer = ArmorLinear.from_packed(case.layer, case.bias)
    prepare(layer)
    assert layer.call().prepared_by == "dense"
    case.check(layer(case.x))
    assert dense.PRODUCTS[2:] == [(pattern, True)]
    with use("cpu"):  # which does not get to see what another backend has prepared
        case.check(layer(case.x))
    assert len(dense.PRODUCTS) == 3
    torch.compiler.reset()
    with torch.no_grad():
        case.check(torch.compile(layer, fullgraph=True, backend="eager")(case.x))
    assert dense.PRODUCTS[3:] == [(pattern, True)]
    assert torch.equal(copy.deepcopy(layer)(case.x), layer(case.x))


def test_what_it_cannot_compute_goes_to_the_next(make_case, registry, dense) -> None:
    BACKENDS["dense"] = Registered(dense, devices=("cpu",))
    case = make_case(24, 32, 8, 101)
    case.check(linear(case.x, case.call))
    assert dense.PRODUCTS == []
    assert {s.name: s.reason for s in backends((24, 32), batch=101, device="cpu")}["dense"] == (
        "too many rows"
    )
    with use("dense"), pytest.raises(ArmorError, match="dense cannot run this layer: too many"):
        linear(case.x, case.call)


def test_only_for_layers_it_has_prepared(registry, dense) -> None:
    BACKENDS["dense"] = Registered(dense, devices=("cpu",), only_prepared=True)
    shape, dtype = (24, 32), torch.float32
    assert choose(shape, dtype, CPU, 1) == "cpu"
    assert choose(shape, dtype, CPU, 1, prepared_by="other") == "cpu"
    assert choose(shape, dtype, CPU, 1, prepared_by="dense") == "dense"


def test_the_order_of_trial(registry, dense) -> None:
    gpu = torch.device("cuda")
    assert candidates(CPU, 1) == ["cpu"]
    assert candidates(gpu, 32) == ["triton", "semi_structured"]
    assert candidates(gpu, 33) == ["semi_structured", "triton"]
    assert candidates(torch.device("mps"), 1) == []
    BACKENDS["dense"] = Registered(dense, devices=("cuda", "mps"), rows="many")
    assert candidates(gpu, 32) == ["triton", "dense", "semi_structured"]
    assert candidates(gpu, 33) == ["dense", "semi_structured", "triton"]
    assert candidates(torch.device("mps"), 1) == ["dense"]


def test_every_entry_names_a_backend() -> None:
    for name in BACKENDS:
        backend = load(name)
        for part in ("is_available", "is_supported", "prepare", "matmul"):
            assert callable(getattr(backend, part))
