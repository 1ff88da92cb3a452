"""The search for tilings, with Triton's interpreter in the place of a GPU."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from armor.bench.shapes import Shape
from armor.checkpoint.format import LayerSpec
from armor.runtime import Call
from armor.runtime.registry import load
from armor.runtime.triton import tiling as tilings
from armor.runtime.triton.tiling import Product, Tiling
from armor.sparse.layer import PackedLayer

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
    monkeypatch.setattr(tune, "WORKING_SET", 1)
    device = torch.device("cpu")
    layers = tune.weights([Shape("", 64, 64, 32), Shape("", 32, 64, 32)], device)
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


def test_searches_what_pruned_models_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys that the backend asks for, where layers have the blocks of a default prune."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import tune

    todo = list(tune.launches())
    keys = [product.key for _, _, product in todo]
    assert len(keys) == len(set(keys)) == 66
    first = [key for key in keys if "batch 1 " in key][:7]
    assert [key.removesuffix(" batch 1 bfloat16") for key in first] == [
        "12288x4096 block 128",
        "4096x4096 block 128",  # output, and the query of Llama-3-8B
        "22016x4096 block 128",
        "4096x11008 block 128",
        "2048x4096 block 64",  # key and value
        "28672x4096 block 128",
        "4096x14336 block 128",
    ]
    assert {product.batch for _, _, product in todo[:22]} == {1, 16}

    asked = []

    def product(x: torch.Tensor, calls: list[Call]) -> list[torch.Tensor]:
        rows = sum(call.layer.shape[0] for call in calls)
        block = calls[0].layer.block
        asked.append(Product(rows, x.shape[1], block, len(x), x.dtype).key)
        return [x] * len(calls)

    monkeypatch.setattr(tune.triton, "product", product)
    shapes = [tune.default_shape("", out, 4096) for out in (4096, 1024, 1024)]
    calls = []
    for shape in shapes:
        parts = {
            name: torch.empty(size, dtype=torch.bfloat16, device="meta")
            for name, size in LayerSpec(shape[1:3], shape.block).tensor_shapes().items()
        }
        calls.append(Call(PackedLayer.of(4096, parts)))
    tune.triton.matmul_shared(torch.zeros(1, 4096, dtype=torch.bfloat16), calls)
    assert len(asked) == 2
    assert set(asked) < set(keys)


def test_stops_in_time_and_keeps_what_it_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import tune

    now = 0.0

    def search(*_: object) -> Tiling:
        nonlocal now
        now += 50
        return Tiling()

    monkeypatch.setattr(tilings, "MEASURED", tmp_path / "tiles.json")
    monkeypatch.setattr(tune, "search", search)
    monkeypatch.setattr(tune, "weights", lambda *_: [])
    monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    tune.main(["--minutes", "2"])
    assert "63 of 66 are left" in capsys.readouterr().out
    (name, found), *others = json.loads((tmp_path / "tiles.json").read_text()).items()
    assert name == tilings.compiled_for(torch.device("cuda"))
    assert name.startswith("a GPU, triton 3.")
    assert len(found) == 3
    assert not others


def test_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import tune

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        tune.main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
