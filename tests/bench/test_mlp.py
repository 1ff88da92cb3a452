"""Measuring whole MLPs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from armor.bench.layers import measure_shape
from armor.bench.mlp import GatedMlp, MlpSpeed, layers_of, measure_mlp, random_mlp
from armor.bench.shapes import Shape
from armor.runtime import use
from armor.runtime.dispatch import run_gated
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
        expected = run_gated(x, layers_of(module))
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
    assert runtime.claims(rows, [], [], gpu=False)["the same layer by layer"] == "not measured yet"
