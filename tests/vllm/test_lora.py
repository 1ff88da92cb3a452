"""An adapter on pruned layers: vLLM adds it to the outputs, as it does for dense ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from armor.checkpoint.reader import Checkpoint

RANK = 8


@pytest.fixture
def adapter(pruned: Callable[..., Path], tmp_path: Path) -> Path:
    """A random adapter of rank 8 for every pruned layer of a Llama."""
    layers = Checkpoint.open(pruned("Llama", {})).layers
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, spec in layers.items():
        rows, cols = spec.shape
        for part, shape in (("A", (RANK, cols)), ("B", (rows, RANK))):
            weight = 0.1 * torch.randn(shape, generator=generator)
            weights[f"base_model.model.{name}.lora_{part}.weight"] = weight
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_lora(
    adapter: Path, pruned: Callable[..., Path], engines: Any, prompts: list[list[int]]
) -> None:
    folder = pruned("Llama", {})
    plain = {"folder": folder, "prompts": prompts}
    job = {**plain, "lora": adapter, "options": {"enable_lora": True, "max_lora_rank": RANK}}
    (found,) = engines.vllm([job])
    assert "error" not in found, found["error"]
    wanted, without = engines.transformers([job, plain])
    assert wanted["outputs"] != without["outputs"]
    for ours, theirs in zip(found["outputs"], wanted["outputs"], strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-4)
