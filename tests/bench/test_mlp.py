"""Measuring whole MLPs."""

from __future__ import annotations

import pytest
import torch

from armor.bench.mlp import GatedMlp, layers_of, measure_mlp, random_mlp
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
