"""Measuring whole MLPs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from armor.bench.layers import Measured, measure_shape
from armor.bench.mlp import GatedMlp, MlpSpeed, measure_mlp, random_mlp
from armor.bench.roofline import Cost
from armor.bench.shapes import Shape
from armor.runtime import use
from armor.runtime.dispatch import run_gated
from armor.runtime.gated import Gated
from armor.runtime.registry import load


@pytest.mark.parametrize(
    "backend",
    [
        "reference",
        pytest.param(
            "triton",
            marks=pytest.mark.skipif(
                not load("triton").is_available(), reason="triton is not installed"
            ),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
def test_says_whether_it_ran_as_one(backend: str) -> None:
    with use(backend):
        few, many = measure_mlp(32, 48, 16, [3, 40], torch.bfloat16, torch.device("cpu"), 1)
    assert (few.rows, many.rows) == (3, 40)
    assert not few.is_one
    assert many.is_one == (backend == "triton")
    assert min(few.dense, few.layers, few.whole, many.dense, many.layers, many.whole) > 0


def test_a_random_mlp_is_what_its_layers_say() -> None:
    module = random_mlp(32, 48, 16, torch.float32, torch.device("cpu"))
    x = torch.randn(5, 32, dtype=torch.float32)
    with use("reference"):
        layers = (layer.call() for layer in (module.gate, module.up, module.down))
        expected = run_gated(x, Gated(*layers, "silu"))
        torch.testing.assert_close(GatedMlp.forward(module, x), expected, rtol=1e-4, atol=1e-2)


def test_the_worst_mlp_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import runtime

    layer = Shape("64x64", 64, 64, 16)
    rows = measure_shape(layer, [1], torch.float32, torch.device("cpu"), 1)
    speeds = [
        MlpSpeed(32, 48, 16, 2048, dense=3.0, layers=2.5, whole=2.0, is_one=True),
        MlpSpeed(32, 48, 16, 4096, dense=5.6, layers=4.0, whole=4.0, is_one=False),
    ]
    found = runtime.claims(rows, speeds, [], gpu=True)
    assert found["GPU prefill of 2048 to 8192 rows, MLP as one, speed-up (target 1.35)"] == 1.4
    assert found["the same layer by layer"] == 1.2
    assert found["all of these MLPs ran as one"] is False
    assert found["GPU decode of 1 to 16 rows, MLP as one"] == "not measured yet"
    assert runtime.claims(rows, [], [], gpu=False)["the same layer by layer"] == "not measured yet"


def test_wide_layers_have_claims_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import runtime

    def measured(shape: Shape, batch: int, dense: float) -> list[Measured]:
        cost = Cost(1, 1)
        return [
            Measured("dense", shape, batch, dense, 2 * shape[1] * shape[2], None, cost, "torch"),
            Measured("ARMOR", shape, batch, 1.0, shape[1] * shape[2], None, cost, "triton"),
        ]

    narrow, wide = Shape("q", 4096, 4096, 128), Shape("down", 4096, 14336, 128)
    rows = [*measured(narrow, 1, 0.9), *measured(wide, 1, 1.5), *measured(wide, 16, 1.25)]
    rows += [*measured(narrow, 2048, 1.1), *measured(wide, 2048, 1.3)]
    decode = [
        MlpSpeed(32, 48, 16, rows, dense=3.0, layers=9.0, whole=2.0, is_one=True)
        for rows in (1, 16)
    ]
    found = runtime.claims(rows, decode, [], gpu=True)
    said = "layers of 33,554,432 weights and more, each alone"
    assert found[f"GPU decode of 1 to 16 rows, {said}"] == 1.25
    assert found[f"GPU prefill of 2048 to 8192 rows, {said}"] == 1.3
    assert found["GPU decode of 1 to 16 rows, speed-up (target 1.3)"] == 0.9
    assert found["GPU decode of 1 to 16 rows, MLP as one"] == 1.5
    assert found["all of these MLPs ran as one"] == "not measured yet"
