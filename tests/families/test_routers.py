"""Routers stay dense whatever their shape, and so does a linear with a forward of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import armor
from armor.checkpoint.weights import read_weights
from armor.config import PruneConfig
from armor.models.experts import split_experts
from armor.models.load import load_model
from armor.models.structure import find_structure

pytestmark = pytest.mark.transformers_compat

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GEMMA4 = {
    **SIZES,
    "head_dim": 8,
    "global_head_dim": 8,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 48,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}
DBRX = {
    "vocab_size": 128,
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 64,
    "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
    "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
}
#: By the names of the config and the model, the sizes and the router's name in a block.
ROUTERS: dict[tuple[str, str], tuple[dict[str, Any], str]] = {
    ("Gemma4TextConfig", "Gemma4ForCausalLM"): (GEMMA4, "router"),
    ("HunYuanMoEV1Config", "HunYuanMoEV1ForCausalLM"): (
        {**SIZES, "num_experts": 4, "moe_topk": 2, "head_dim": 8},
        "mlp.gate",
    ),
    ("AfmoeConfig", "AfmoeForCausalLM"): (
        {
            **SIZES,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "num_dense_layers": 0,
            "head_dim": 8,
        },
        "mlp.router",
    ),
    ("DbrxConfig", "DbrxForCausalLM"): (DBRX, "ffn.router"),
    ("JetMoeConfig", "JetMoeForCausalLM"): (
        {**SIZES, "num_local_experts": 4, "kv_channels": 8},
        "mlp.router",
    ),
    ("Llama4TextConfig", "Llama4ForCausalLM"): (
        {**SIZES, "num_local_experts": 4, "head_dim": 8, "intermediate_size_mlp": 48},
        "feed_forward.router",
    ),
    ("ZayaConfig", "ZayaForCausalLM"): (
        {
            **SIZES,
            "num_experts": 4,
            "moe_intermediate_size": 48,
            "router_hidden_size": 16,
            "head_dim": 8,
        },
        "mlp.gate",
    ),
    ("PhimoeConfig", "PhimoeForCausalLM"): ({**SIZES, "num_local_experts": 4}, "mlp.router"),
    # Its experts are rows of embeddings, its router chooses by two halves of their numbers.
    ("DogeConfig", "DogeForCausalLM"): (
        {**SIZES, "is_moe": True, "num_experts": 64, "num_experts_per_tok": 4},
        "mlp.router_gate",
    ),
    ("Gemma3nTextConfig", "Gemma3nForCausalLM"): (
        {
            **SIZES,
            "head_dim": 8,
            "vocab_size_per_layer_input": 128,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "num_kv_shared_layers": 0,
            "intermediate_size": [64] * 2,
            "activation_sparsity_pattern": [0.0] * 2,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "altup.modality_router",
    ),
}


def build(config: str, model: str, sizes: dict[str, Any]) -> Any:
    if not hasattr(transformers, model):
        pytest.skip(f"this transformers has no {model}")
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**sizes))


@pytest.mark.parametrize("names", ROUTERS, ids=lambda names: names[1])
def test_no_linear_of_a_router_is_a_layer(names: tuple[str, str]) -> None:
    sizes, router = ROUTERS[names]
    model = build(*names, sizes)
    split_experts(model, [])
    structure = find_structure(model)
    for index, block in enumerate(structure.blocks):
        linears = {
            name.split(f"{structure.prefix}.{index}.")[1] for name in structure.linears(index)
        }
        assert linears
        if index == 0 and router not in dict(block.named_modules()):
            continue  # a block without experts
        assert any(name.startswith(("self_att", "norm_attn")) for name in linears)
        assert not any(f"{name}.".startswith(f"{router}.") for name in linears)


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_linear_that_computes_something_else_is_no_layer() -> None:
    model = build("LlamaConfig", "LlamaForCausalLM", SIZES)
    model.model.layers[0].mlp.up_proj = Doubled(32, 64, bias=False)
    structure = find_structure(model)
    assert "model.layers.0.mlp.up_proj" not in structure.linears(0)
    assert "model.layers.1.mlp.up_proj" in structure.linears(1)


class WrittenOut(nn.Linear):
    """As Falcon's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x @ self.weight.T
        return hidden if self.bias is None else hidden + self.bias


def test_a_linear_that_writes_its_product_out_is_a_layer() -> None:
    model = build("LlamaConfig", "LlamaForCausalLM", SIZES)
    model.model.layers[0].mlp.up_proj = WrittenOut(32, 64, bias=False)
    assert "model.layers.0.mlp.up_proj" in find_structure(model).linears(0)


@pytest.mark.parametrize("names", [*ROUTERS][:3], ids=lambda names: names[1])
@pytest.mark.parametrize("method", ["armor", "wanda"])
def test_experts_of_such_routers_the_whole_way(
    names: tuple[str, str], method: str, tokenizer: Any, text: Path, tmp_path: Path
) -> None:
    sizes, router = ROUTERS[names]
    source, out = tmp_path / "source", tmp_path / "out"
    build(*names, sizes).save_pretrained(source)
    tokenizer.save_pretrained(source)
    config = PruneConfig(
        calibration=str(text), samples=8, seq_len=64, iterations=2, block_size=4, method=method
    )
    result = armor.prune(source, config, out)
    assert sum(".experts." in name for name in result.records) == 2 * 4 * 3
    assert not any(f".{router}." in f"{name}." for name in result.records)
    armor.export_dense(out, tmp_path / "twin")
    before, after = read_weights(source), read_weights(tmp_path / "twin")
    assert before.keys() == after.keys()
    same = [name for name in before if f".{router}." in name]
    assert same
    for name in same:
        assert b"".join(before[name].chunks()) == b"".join(after[name].chunks())
    ids = torch.arange(10, 58).view(2, 24)
    with torch.no_grad():
        packed, plain = (
            armor.load(out),
            load_model(tmp_path / "twin"),
        )
        torch.testing.assert_close(
            packed(ids, use_cache=False).logits,
            plain(ids, use_cache=False).logits,
            rtol=1e-4,
            atol=1e-4,
        )
