"""The dense twin: the right weights, and nothing that tells of armor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from armor.checkpoint import export_dense
from armor.errors import ArmorError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [16, None])
def test_weights_are_the_products(
    make: Callable[..., Any], tmp_path: Path, dtype: torch.dtype, block: int | None
) -> None:
    made = make(dtype, block=block, bias=True)
    export_dense(made.folder, tmp_path / "twin")
    before = load_file(made.source / "model.safetensors")
    after = load_file(tmp_path / "twin" / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {
        n: (t.shape, t.dtype) for n, t in before.items()
    }
    for name, tensor in after.items():
        layer = made.layers.get(name.removesuffix(".weight"))
        if layer is None:
            assert torch.equal(tensor, before[name])
        else:
            exact = layer.to_factors().cast(torch.float64).dense()
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(tensor.double(), exact, rtol=eps, atol=1e-6)


def test_no_trace_is_left(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make()
    export_dense(made.folder, tmp_path / "twin")
    files = {path.name: path.read_bytes() for path in (tmp_path / "twin").iterdir()}
    assert set(files) == {path.name for path in made.source.iterdir()}
    assert not any(b"armor" in data.lower() for data in files.values())
    assert not any(word in files["model.safetensors"] for word in (b"core_", b"left", b"right"))
    assert json.loads(files["config.json"]) == json.loads((made.source / "config.json").read_text())


def test_shards_progress_and_determinism(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make()
    seen: list[tuple[int, int]] = []
    export_dense(
        made.folder, tmp_path / "one", 60_000, lambda done, total: seen.append((done, total))
    )
    export_dense(made.folder, tmp_path / "two", 60_000)
    assert seen == [(done, 14) for done in range(1, 15)]
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "model.safetensors.index.json" in names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(weight, made.layers["model.layers.0.self_attn.q_proj"].dense())


def test_a_damaged_checkpoint_leaves_nothing(make: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ArmorError, match="not an armor checkpoint"):
        export_dense(make().source, tmp_path / "twin")
    assert list(tmp_path.iterdir()) == []


def test_an_output_inside_the_checkpoint_is_refused(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    made = make()
    before = sorted(made.folder.rglob("*"))
    with pytest.raises(ArmorError, match="lies inside"):
        export_dense(made.folder, made.folder / "dense")
    assert sorted(made.folder.rglob("*")) == before
