"""What prefill of a gated MLP asks of a GPU: held here, as none is at hand to time it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from armor.runtime.registry import load

pytestmark = pytest.mark.skipif(not load("triton").is_available(), reason="triton is not installed")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu_mlp(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that counts."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_mlp

    return gpu_mlp


def test_one_pass_between_the_cores_and_no_copies(gpu_mlp: Any) -> None:
    counts = gpu_mlp.count_mlp(as_one=True)
    assert counts.launches == {gpu_mlp.CORE: 3, "blocks_kernel": 2, "gated_kernel": 1}
    assert not counts.waits
    rows, width, inner, block = gpu_mlp.ROWS, gpu_mlp.WIDTH, gpu_mlp.INNER, gpu_mlp.BLOCK
    assert counts.bytes["gated_kernel"] == 2 * (3 * rows * inner + 3 * inner * block)
    assert counts.bytes["blocks_kernel"] == 2 * (5 * rows * width + 3 * width * block)


def test_layer_by_layer_each_wrapper_is_a_pass(gpu_mlp: Any) -> None:
    counts = gpu_mlp.count_mlp(as_one=False)
    assert counts.launches == {gpu_mlp.CORE: 3, "blocks_kernel": 5}
    assert not counts.waits


@pytest.mark.parametrize("name", ["H100", "H200"])
def test_the_arithmetic_says_that_it_pays(gpu_mlp: Any, name: str) -> None:
    from gpu_model import GPUS

    counted = (gpu_mlp.count_mlp(as_one) for as_one in (True, False))
    found = gpu_mlp.prefill_seconds(*counted, GPUS[name])
    dense, other, one = found.values()
    assert dense / one > 1.34 > 1.28 > dense / other > 1.2
