"""The search for tilings, with Triton's interpreter in the place of a GPU."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from armor.runtime.registry import load
from armor.runtime.triton import tiling as tilings
from armor.runtime.triton.tiling import Product, Tiling

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not load("triton").is_available(), reason="triton is not installed")


def test_search_keeps_what_is_faster_and_right(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import tune

    def timed(runs, device, repeats):
        """The more rows a program has, the faster; every run works."""
        for run in runs.values():
            run()
        return {name: 1 / json.loads(name)["rows"] for name in runs}

    right = tune.triton.product

    def product(x, calls, tiling):
        """With 256 rows the numbers are wrong, with 64 groups there is no kernel."""
        outputs = right(x, calls, tiling)
        if tiling.groups == 64:
            raise RuntimeError("out of resources")
        return [2 * y for y in outputs] if tiling.rows == 256 else outputs

    monkeypatch.setattr(tune, "interleaved", timed)
    monkeypatch.setattr(tune.triton, "product", product)
    monkeypatch.setattr(tune, "BLOCK", 32)
    monkeypatch.setattr(tune, "WORKING_SET", 1)
    device = torch.device("cpu")
    layers = tune.weights([(64, 64), (32, 64)], device)
    product_ = Product(96, 64, 32, 2, torch.bfloat16)
    best = tune.search(product_, layers, device)
    assert best.rows == 128
    assert best.groups != 64

    monkeypatch.setattr(tilings, "MEASURED", tmp_path / "tiles.json")
    tune.save("a GPU", {product_.key: asdict(best)})
    tune.save("a GPU", {"another": asdict(Tiling())})
    table = json.loads((tmp_path / "tiles.json").read_text())
    assert Tiling(**table["a GPU"][product_.key]) == best
    assert len(table["a GPU"]) == 2


def test_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import tune

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        tune.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
