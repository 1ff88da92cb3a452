"""Codes of quantised models are refused by name and dtype, integers that are integers are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

from armor.errors import ArmorError
from armor.models.folder import ModelFolder
from armor.models.load import load_model
from armor.models.streamed import StreamedModel

pytestmark = pytest.mark.transformers_compat
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(make_llama: Callable[..., Any], tmp_path: Path) -> Path:
    make_llama(vocab_size=32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, **tensors: Tensor) -> None:
    """Store these beside NAME, in its place if called "weight"."""
    file = folder / "model.safetensors"
    stem = NAME.removesuffix("weight")
    state = load_file(file) | {stem + leaf: tensor for leaf, tensor in tensors.items()}
    save_file(state, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.uint8, "U8"),
        (torch.int8, "I8"),
        (torch.int32, "I32"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
    ],
)
def test_codes_are_not_weights(folder: Path, dtype: torch.dtype, name: str) -> None:
    shape = load_file(folder / "model.safetensors")[NAME].shape
    change(folder, weight=torch.ones(shape).to(dtype))
    for use in (StreamedModel, load_model):
        with pytest.raises(ArmorError, match=f"{NAME} is stored as {name}: .* dense model"):
            use(ModelFolder.open(folder))


@pytest.mark.parametrize("leaf", ["weight_scale_inv", "weight_scale", "weight.absmax"])
def test_a_scale_beside_a_weight_is_not_dropped(folder: Path, leaf: str) -> None:
    change(folder, **{leaf: torch.full((1, 1), 0.001)})
    for use in (StreamedModel, load_model):
        with pytest.raises(ArmorError, match=f"{NAME}' has '.*{leaf}' beside it, which the model"):
            use(ModelFolder.open(folder))


def test_mxfp4_is_named_as_such(tmp_path: Path) -> None:
    """As gpt-oss is published, but without what its config.json says of that."""
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "head_dim": 8}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = GptOssConfig(**sizes, **heads, num_local_experts=4)
    GptOssForCausalLM(config).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    del state[name]
    state[f"{name}_blocks"] = torch.zeros(4, 64, 1, 16, dtype=torch.uint8)
    state[f"{name}_scales"] = torch.zeros(4, 64, 1, dtype=torch.uint8)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for use in (StreamedModel, load_model):
        with pytest.raises(ArmorError, match=f"{name}' is stored as '{name}_blocks' .* bfloat16"):
            use(ModelFolder.open(tmp_path))


def test_integers_and_masks_that_the_model_does_not_learn_are_fine(folder: Path) -> None:
    beside = {
        "position_ids": torch.arange(8),
        "bias": torch.ones(4, 4, dtype=torch.bool),  # GPT-2's causal mask
        "k_scale": torch.ones(1),
    }
    attention = NAME.replace("mlp.up_proj.weight", "self_attn.")
    file = folder / "model.safetensors"
    stored_now = load_file(file) | {attention + leaf: tensor for leaf, tensor in beside.items()}
    save_file(stored_now, file, metadata={"format": "pt"})
    opened = ModelFolder.open(folder)
    assert StreamedModel(opened).dtype(NAME) == torch.float32
    load_model(opened)
    for leaf in ("position_ids", "bias"):
        stored = opened.tensors[attention + leaf]
        assert not stored.load().is_floating_point()
