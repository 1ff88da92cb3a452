"""Models with a text decoder inside: it is pruned, the rest stays byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import armor
from armor.checkpoint.weights import read_weights
from armor.config import PruneConfig
from armor.linear import ArmorLinear
from armor.models.auto import is_causal

TEXT = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
#: Larger than the text model.
VISION = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "image_size": 32}


def qwen3_5() -> Any:
    text = TEXT | {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [1, 1, 0],
            "partial_rotary_factor": 0.5,
        },
    }
    vision = {
        "depth": 2,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 4,
        "num_position_embeddings": 16,
    }
    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision)
    return transformers.Qwen3_5ForConditionalGeneration(config)


def mistral3() -> Any:
    vision = VISION | {"model_type": "pixtral", "num_attention_heads": 4, "patch_size": 8}
    text = TEXT | {"model_type": "mistral"}
    config = transformers.Mistral3Config(text_config=text, vision_config=vision)
    return transformers.Mistral3ForConditionalGeneration(config)


def gemma3() -> Any:
    vision = VISION | {"num_attention_heads": 4, "patch_size": 8}
    text = TEXT | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def llama4() -> Any:
    vision = VISION | {"num_attention_heads": 4, "patch_size": 8, "pixel_shuffle_ratio": 0.5}
    vision |= {"projector_input_dim": 64, "projector_output_dim": 64, "vision_output_dim": 64}
    text = TEXT | {"num_local_experts": 4, "intermediate_size_mlp": 48, "attention_chunk_size": 16}
    config = transformers.Llama4Config(text_config=text, vision_config=vision)
    return transformers.Llama4ForConditionalGeneration(config)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.arange(48).view(2, 24) + 10, use_cache=False).logits
    return found.float()


@pytest.mark.transformers_compat
@pytest.mark.parametrize("make", [qwen3_5, mistral3, gemma3, llama4])
def test_the_whole_way(make: Any, tokenizer: Any, text: Path, tmp_path: Path) -> None:
    if make is qwen3_5 and not hasattr(transformers, "Qwen3_5Config"):
        pytest.skip("this version of transformers does not know Qwen3.5")
    if make is llama4 and transformers.__version__ < "5":
        pytest.skip("transformers 4 cannot build the text part of Llama 4 by its config")
    source, out, twin = (tmp_path / folder for folder in ("source", "out", "twin"))
    torch.manual_seed(0)
    whole = make().eval()
    whole.save_pretrained(source)
    tokenizer.save_pretrained(source)
    stored = load_file(source / "model.safetensors")
    stored["mtp.fc.weight"] = torch.randn(32, 64)  # of no module, as on the Hub
    save_file(stored, source / "model.safetensors", {"format": "pt"})

    config = PruneConfig(
        calibration=str(text), samples=4, seq_len=32, method="wanda", block_size=None
    )
    result = armor.prune(source, config, out)
    assert len(result.records) == {qwen3_5: 15, llama4: 38}.get(make, 14)
    assert not any("vision" in name or "visual" in name for name in result.records)
    about = json.loads((out / "config.json").read_text())
    assert about["architectures"] == [type(whole).__name__]
    wholes = {
        part: tensor
        for tensor, joined in about["quantization_config"].get("joined", {}).items()
        for part in joined["parts"]
    }
    changed = {wholes.get(name, f"{name}.weight") for name in result.records}

    armor.export_dense(out, twin)
    before, after = read_weights(source), read_weights(twin)
    assert before.keys() == after.keys()
    same = {n for n in before if b"".join(before[n].chunks()) == b"".join(after[n].chunks())}
    assert before.keys() - same == changed
    assert "mtp.fc.weight" in same

    autos = [AutoModelForImageTextToText]
    if type(whole.config) in AutoModelForCausalLM._model_mapping:
        autos.append(AutoModelForCausalLM)
    for auto in autos:
        pruned, exported = (auto.from_pretrained(folder).eval() for folder in (out, twin))
        layers = sum(isinstance(module, ArmorLinear) for module in pruned.modules())
        assert layers == len(result.records)
        torch.testing.assert_close(logits(pruned), logits(exported), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(logits(pruned), logits(whole), atol=1e-2)
    torch.testing.assert_close(logits(armor.load(out)), logits(pruned), rtol=1e-5, atol=1e-5)


def test_what_is_a_causal_language_model() -> None:
    config = transformers.Mistral3Config(text_config=TEXT | {"model_type": "mistral"})
    assert is_causal(config, ["Mistral3ForConditionalGeneration"])
    assert not is_causal(config, ["Mistral3Model"])
    assert not is_causal(transformers.T5Config(), ["T5ForConditionalGeneration"])
    assert not is_causal(transformers.BertConfig(), ["BertForMaskedLM"])
    assert not is_causal(transformers.SiglipVisionConfig(), ["SiglipVisionModel"])
    assert not is_causal(transformers.LlamaConfig(), None)
