"""config.json as transformers 5 writes it, read by transformers 4: the same model, or one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from armor.checkpoint import assemble
from armor.errors import ArmorError
from armor.models.folder import ModelFolder
from armor.models.load import load_model
from armor.models.newer_config import newer_hint
from armor.models.streamed import StreamedModel
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.masks import nm_mask

pytestmark = [
    pytest.mark.transformers_compat,
    pytest.mark.skipif(transformers.__version__ >= "5", reason="transformers 5 reads its own"),
]
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
TWO_KINDS = {
    "sliding_window": 8,
    "head_dim": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
SLIDING = {"rope_theta": 10000.0, "rope_type": "default"}
#: class of config: what transformers 4 calls it, what transformers 5 writes in its place.
FORMS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("Llama", {"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_type": "default"}),
    ("Llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3}, {"rope_theta": 5e5, **LLAMA3}),
    ("Qwen2", {"rope_theta": 2e4, "rope_scaling": YARN}, {"rope_theta": 2e4, **YARN}),
    ("Mixtral", {"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_type": "default"}),
    (
        "Mistral",
        {"head_dim": 8, "rope_theta": 5e5, "rope_scaling": YARN},
        {"rope_theta": 5e5, **YARN},
    ),
    (
        "Phi",
        {"rope_theta": 2e4, "partial_rotary_factor": 0.25},
        {"rope_theta": 2e4, "partial_rotary_factor": 0.25, "rope_type": "default"},
    ),
    (
        "GPTNeoX",
        {"rotary_emb_base": 2e4, "rotary_pct": 0.5},
        {"rope_theta": 2e4, "partial_rotary_factor": 0.5, "rope_type": "default"},
    ),
    (
        "Phi3",
        {
            "rope_theta": 2e4,
            "original_max_position_embeddings": 16,
            "rope_scaling": {"type": "longrope", **LONG},
        },
        {
            "rope_theta": 2e4,
            "original_max_position_embeddings": 16,
            "rope_type": "longrope",
            "type": "longrope",
            "partial_rotary_factor": 1.0,
            **LONG,
        },
    ),
    (
        "Gemma3Text",
        {
            "rope_theta": 2e6,
            "rope_local_base_freq": 2e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            **TWO_KINDS,
        },
        {
            "full_attention": {"rope_theta": 2e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 2e4, "rope_type": "default"},
        },
    ),
    (
        "Olmo3",
        {"rope_theta": 2e4, "rope_scaling": YARN, **TWO_KINDS},
        {
            "full_attention": {"rope_theta": 2e4, **YARN},
            "sliding_attention": {"rope_theta": 2e4, "rope_type": "default"},
        },
    ),
]
OLD = (
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "rotary_pct",
    "rotary_emb_base",
    "rope_local_base_freq",
)


def save(folder: Path, name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def edit(folder: Path, remove: tuple[str, ...] = (), **changes: Any) -> None:
    """Write config.json as a newer version would."""
    file = folder / "config.json"
    data = {key: value for key, value in json.loads(file.read_text()).items() if key not in remove}
    file.write_text(json.dumps(data | {"transformers_version": "5.23.0"} | changes))


@torch.no_grad()
@pytest.mark.parametrize(("name", "old", "new"), FORMS)
def test_rotary_settings_are_translated(
    tmp_path: Path, name: str, old: dict[str, Any], new: dict[str, Any]
) -> None:
    model = save(tmp_path, name, **old)
    tokens = torch.arange(48).view(1, -1)
    expected = model(tokens).logits
    edit(tmp_path, OLD, rope_parameters=new)
    opened = ModelFolder.open(tmp_path)
    loaded = load_model(opened)
    torch.testing.assert_close(loaded(tokens).logits, expected, rtol=0, atol=0)
    empty = dict(StreamedModel(opened).model.named_buffers())
    fresh = type(model)(model.config)  # a long input changes the frequencies of Phi-3
    for key, buffer in fresh.named_buffers():
        assert torch.equal(empty[key], buffer)
    wrong = AutoModelForCausalLM.from_pretrained(tmp_path)  # transformers 4 alone
    assert not torch.equal(wrong(tokens).logits, expected)


@torch.no_grad()
def test_a_pruned_model_says_it_in_both_ways(tmp_path: Path) -> None:
    save(tmp_path / "model", "Llama", rope_theta=5e5)
    edit(tmp_path / "model", OLD, rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    streamed = StreamedModel(ModelFolder.open(tmp_path / "model"))
    name = "model.layers.0.mlp.up_proj"
    weight = streamed.load(f"{name}.weight")
    mask = nm_mask(weight.abs())
    layers = {name: PackedLayer.from_factors(Factors(weight * mask, mask))}
    assemble(streamed.files, tmp_path / "out", layers, {})
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.rope_theta == config.rope_parameters["rope_theta"] == 5e5


def test_other_names_and_numbers(tmp_path: Path) -> None:
    save(tmp_path, "Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    edit(tmp_path, ("num_experts",), num_local_experts=4)
    assert load_model(str(tmp_path)).config.num_experts == 4
    sizes = {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1}
    transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(vocab_size=64, hidden_size=32, num_hidden_layers=1, **sizes)
    ).save_pretrained(tmp_path / "mamba")
    edit(tmp_path / "mamba", time_step_limit=[0.0, {"__float__": "Infinity"}])
    limit = load_model(str(tmp_path / "mamba")).config.time_step_limit
    assert tuple(limit) == (0.0, float("inf"))


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("Llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("Llama", {"rope_parameters": {"rope_theta": 1e4, "unheard_of": 3}}, "unheard_of to 3"),
        ("Llama", {"rope_parameters": [1]}, "rope_parameters to"),
        ("Llama", {"rope_parameters": {"sliding": {}, "full": {}}}, "rope_parameters for"),
        (
            "Olmo3",
            {
                **TWO_KINDS,
                "rope_parameters": {"full_attention": {"rope_theta": 5e5}}
                | {"sliding_attention": SLIDING},
            },
            "sliding_attention.rope_theta to 10000.0",
        ),
        ("Gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention to True"),
        ("Qwen2Moe", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ],
)
def test_what_cannot_be_said_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], says: str
) -> None:
    getattr(transformers, f"{name}Config")(**SIZES).save_pretrained(tmp_path)
    edit(tmp_path, architectures=[f"{name}ForCausalLM"], **changes)
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(ArmorError, match=f"sets .*{says}.* would ignore .*install -U") as caught:
        ModelFolder.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_newer_version_is_named_where_its_config_cannot_be_read() -> None:
    assert newer_hint({"transformers_version": transformers.__version__}) == ""
    assert newer_hint({"transformers_version": "4.9"}) == newer_hint({}) == ""
    assert "pip install -U transformers" in newer_hint({"transformers_version": "5.23.0"})
