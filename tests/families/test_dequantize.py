"""``model.dequantize()``: the same weights and logits as the dense export, and a plain model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import armor
from armor.config import PruneConfig
from armor.linear import ArmorLinear
from armor.models.load import load_model

pytestmark = pytest.mark.transformers_compat


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(48).view(2, 24) + 10, use_cache=False).logits.float()


@pytest.mark.parametrize(
    "family",
    ["Qwen2, Qwen2.5", "Phi-3", "GPT-NeoX", "Mixtral", "Qwen3-MoE", "gpt-oss", "Llama 4 (text)"],
    indirect=True,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_multiplied_out_and_saved(
    family: Any, dtype: torch.dtype, tokenizer: Any, text: Path, tmp_path: Path
) -> None:
    source, out, again, twin = (tmp_path / name for name in ("source", "out", "again", "twin"))
    family.model(dtype).save_pretrained(source)
    tokenizer.save_pretrained(source)
    config = PruneConfig(
        calibration=str(text), samples=4, seq_len=32, method="wanda", exclude=("*layers.1.*",)
    )
    armor.prune(source, config, out)

    model = armor.load(out, dtype="auto")
    before = logits(model)
    model.dequantize()
    assert not any(isinstance(module, ArmorLinear) for module in model.modules())
    loose = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(logits(model), before, **loose)

    model.save_pretrained(again)
    assert "quantization_config" not in json.loads((again / "config.json").read_text())
    armor.export_dense(out, twin)
    saved, exported = (load_file(folder / "model.safetensors") for folder in (again, twin))
    assert saved.keys() == exported.keys()
    assert all(torch.equal(saved[name], exported[name]) for name in saved)
    assert torch.equal(logits(load_model(again)), logits(model))


@pytest.mark.parametrize("family", ["Phi-3"], indirect=True)
def test_parts_with_wrappers(family: Any, tokenizer: Any, text: Path, tmp_path: Path) -> None:
    family.model().save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    config = PruneConfig(calibration=str(text), samples=4, seq_len=32, iterations=2, block_size=4)
    armor.prune(tmp_path / "source", config, tmp_path / "out")
    model = armor.load(tmp_path / "out")
    before = logits(model)
    model.dequantize()
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    assert isinstance(model.model.layers[0].self_attn.qkv_proj, torch.nn.Linear)


@pytest.mark.parametrize("family", ["Llama 1 and 2"], indirect=True)
def test_in_another_dtype_and_offloaded(
    family: Any, tokenizer: Any, text: Path, tmp_path: Path
) -> None:
    family.model().save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    config = PruneConfig(calibration=str(text), samples=4, seq_len=32, method="magnitude")
    armor.prune(tmp_path / "source", config, tmp_path / "out")
    model = armor.load(tmp_path / "out")
    layer = model.model.layers[0].mlp.up_proj
    assert torch.equal(layer.weight, layer.dense_weight())
    assert "weight" not in layer.state_dict()
    model.hf_quantizer.dequantize(model, dtype=torch.float16)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.float16

    model = armor.load(tmp_path / "out")
    model.model.layers[0].mlp.up_proj.to("meta")
    with pytest.raises(armor.ArmorError, match=r"up_proj is offloaded: .* `armor export`"):
        model.dequantize()
