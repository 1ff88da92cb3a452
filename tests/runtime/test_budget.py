"""What prefill of a gated MLP and decoding ask of a GPU: held, as none is at hand to time them."""

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


@pytest.fixture
def gpu_decode(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that counts."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_decode

    return gpu_decode


def test_decoding_layers_of_one_input_takes_two_launches(gpu_decode: Any) -> None:
    """B of all, then the core of all with A; B in the core's launch where the layers are small."""
    for outs in ([4096], [4096] * 3, [11008] * 2):
        counts = gpu_decode.count_decode(outs, 4096, 132)
        assert counts.launches == {"blocks_kernel": 1, "core_kernel": 1}
        assert not counts.waits
        # What is read: a nibble and two numbers of four, A and B; the inputs twice.
        core = sum(outs) * 4096 * 9 // 8
        left, right = (2 * 128 * size for size in (sum(outs), 4096 * len(outs)))
        assert counts.bytes["blocks_kernel"] == right + 2 * 4096 * (1 + len(outs))
        assert counts.bytes["core_kernel"] == core + left + 2 * (4096 * len(outs) + sum(outs))
    assert gpu_decode.count_decode([1024] * 2, 4096, 132).launches == {"core_kernel": 1}
    as_one = gpu_decode.count_mlp(11008, 132, as_one=True)
    assert as_one.launches == {"blocks_kernel": 1, "core_kernel": 2, "gated_kernel": 1}
    # Grouped queries: blocks of 128 and, for k and v, of 64.
    assert gpu_decode.count_decode([4096, 1024, 1024], 4096, 132).launches["core_kernel"] == 2


@pytest.mark.parametrize(("name", "least"), [("H100", 1.35), ("H200", 1.26)])
def test_the_arithmetic_says_that_decoding_pays(gpu_decode: Any, name: str, least: float) -> None:
    from gpu_model import GPUS

    found = gpu_decode.decode_ratios(GPUS[name])
    for what, ratio in found.items():
        if what not in ("4096x4096", "q, k and v of Llama-3-8B"):
            assert ratio > least, what
