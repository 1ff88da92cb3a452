"""Every causal type of transformers, tiny: it works the whole way, or is refused in one line.

A few of them by default; all with ``--every-architecture`` (make families), which can also write
the table in docs/models.md.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import armor
from armor.checkpoint.weights import read_weights
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.models.load import load_model

pytestmark = pytest.mark.skipif(
    transformers.__version__ < "5", reason="the table is that of transformers 5"
)
#: Run by default, one of each kind of structure: fused experts on the disk, rows that transformers
#: takes apart, embeddings under the name of the head, a tower of images, transposed weights, blocks
#: that share weights.
CHOSEN = [
    "camembert",
    "gemma3",
    "gpt2",
    "gpt_oss",
    "granitemoe",
    "inkling_text",
    "llama4",
    "zamba2",
]
EVERY = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
MOST = 3_000_000  # parameters of a tiny model
#: By the names of settings, as patterns: their tiny values. The first that fits counts.
SIZES: list[tuple[str, Any]] = [
    (r"(.*_)?vocab_size.*|n_tokens", 128),
    (r"hidden_size_per_layer_input", 8),
    (
        r"hidden_size|d_model|n_embd|dim|model_dim|embedding_size|embed_dim|word_embed_proj_dim"
        r"|emb_dim|input_embedding_size|cross_attention_hidden_size|embedding_dim|width|lru_width"
        r"|out_hidden_size|hidden_dim|n_embed|patch_embedding_dim",
        32,
    ),
    (r".*intermediate_size.*|(.*_)?ffn(_hidden)?(_dim|_size)?|d_ff|d_inner|n_inner|inner_dim", 64),
    (r"(num_|n_)?(hidden_|encoder_|decoder_)?(layers?|blocks)|.*(en|de)coder_layers|depth", 2),
    (r".*(key_value_heads|num_kv_heads|n_kv_heads).*|multi_query_group_num", 2),
    (r".*linear_num_.*_heads|mamba_n(um)?_heads|n_mamba_heads", 4),
    (r".*linear_(key|value)_head_dim|mamba_(d_head|head_?dim)", 16),
    (r"(.*num_|.*_|n_)?(attention_|query_)?heads?", 4),
    (r".*head_dim|d_kv|kv_channels|d_head|attention_head_size", 8),
    (r"n_positions|(original_)?max_.*(positions?|position_embeddings)|n_ctx", 64),
    (r"max_seq(uence)?_len(gth)?|seq_length|context_length|time_step_limit", 64),
    (r"num_local_experts|(moe_)?num_(routed_)?experts|n_routed_experts", 4),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|num_selected_experts|top_k_experts", 2),
    (r"n_group|topk_group|num_expert_group|.*n_?groups", 1),
    (r"(moe_num_|n_|num_)shared_experts|num_mem_blocks|num_kv_shared_layers", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r".*_lora_rank|adapter_rank|.*low_rank.*|laurel_rank", 16),
    (r".*sliding_window|attention_window_size|local_window|window_size|attention_chunk_size", 16),
    (r"(ssm_)?state_size|(mamba_)?d_state|(mamba_)?chunk_size", 8),
    (r"time_step_rank|mamba_dt_rank", 4),
    (r".*token(_id|_index)?", 1),
    (r"initializer_range|init_std", 0.15),
    (r"image_size", 32),
    (r"patch_size", 8),
]
_EQUAL_HEADS = {"num_key_value_heads": 4}
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32"), _EQUAL_HEADS),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu"), _EQUAL_HEADS),
    **dict.fromkeys(("bailing_hybrid", "kimi_linear", "dots3_note_text"), _EQUAL_HEADS),
    **{kind: {"head_dim": 8} for kind in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    **{kind: {"rotary_dim": 4} for kind in ("codegen", "gptj")},
    "deepseek_v2": {**_EQUAL_HEADS, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "nemotron": {**_EQUAL_HEADS, "head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [8, 24],
    },
    "xmod": {"default_language": "en_XX"},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {**_EQUAL_HEADS, "head_dim": 8, "num_layers": 2},
    "xlnet": {"n_layer": 2},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "mamba_headdim": 16,
    },
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 128,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
}


def tiny_config(kind: str) -> Any:
    """A config of small sizes, with a block of every kind that this type of model has."""
    cls = CONFIG_MAPPING[kind]
    own = _OWN.get(kind, {})
    default = cls()
    values = {**_small(default.to_dict()), **own}
    for name, sub in (getattr(cls, "sub_configs", None) or {}).items():
        data = (getattr(default, name, None) or sub()).to_dict()
        small = _small(data) | own.get(name, {})
        values[name] = small | ({"model_type": data["model_type"]} if "model_type" in data else {})
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        values.setdefault(token, 1)
    return cls(**values)


def _small(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        tiny = next((tiny for name, tiny in SIZES if re.fullmatch(name, key)), None)
        if tiny is None or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if isinstance(tiny, float) or "token" in key or value > tiny:
            found[key] = tiny
    kinds = data.get("layer_types")
    if isinstance(kinds, (list, tuple)) and len(set(kinds)) > 1:
        found["layer_types"] = list(dict.fromkeys(kinds))
        if "num_hidden_layers" in found:
            found["num_hidden_layers"] = len(found["layer_types"])
    return found


def tiny_model(kind: str) -> Any:
    """A random model in float32. Raises whatever transformers raises, and ValueError if large."""
    config = tiny_config(kind)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    if (count := sum(parameter.numel() for parameter in empty.parameters())) > MOST:
        raise ValueError(f"the smallest found has {count:.2g} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(torch.arange(32).view(2, 16) + 10, use_cache=False).logits
    return found.float()


def whole_way(source: Path, tmp: Path, text: Path) -> str:
    """Prune, reload, export; what the table says of it. Raises `ArmorError` where it is refused.

    (Pruning itself compares the hidden states between the blocks with the model's own forward.)
    """
    out, twin = tmp / "out", tmp / "twin"
    config = PruneConfig(calibration=str(text), samples=16, seq_len=16, method="magnitude")
    result = armor.prune(source, config, out)
    model = armor.load(out)
    armor.export_dense(out, twin)
    exported = load_model(twin)
    torch.testing.assert_close(logits(model), logits(exported), rtol=1e-3, atol=1e-3)
    buffers = dict(exported.named_buffers())
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=0, atol=0, equal_nan=True)
    before, after = read_weights(source), read_weights(twin)
    assert before.keys() == after.keys()
    same = {n for n in before if b"".join(before[n].chunks()) == b"".join(after[n].chunks())}
    about = json.loads((out / "config.json").read_text())
    assert about["architectures"] == [type(load_model(source)).__name__]
    joined = about["quantization_config"].get("joined", {})
    assert before.keys() - same <= {f"{name}.weight" for name in result.records} | joined.keys()
    pruned, dense = len(result.records), sum(plan.dense for plan in result.plans)
    return f"works: {pruned} layers" + (f", {dense} stay dense" if dense else "")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        every = metafunc.config.getoption("--every-architecture")
        known = [kind for kind in CHOSEN if kind in EVERY]
        metafunc.parametrize("kind", EVERY if every else known)


def test_it_works_or_is_refused_in_one_line(
    kind: str,
    tokenizer: Any,
    text: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    def note(outcome: str) -> None:
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
        request.node.user_properties.append(("architecture", (kind, name, outcome)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = tiny_model(kind)
            logits(model)
            model.save_pretrained(tmp_path / "source")
        except Exception as error:
            note(f"not tried: no tiny model ({type(error).__name__})")
            pytest.skip(f"{kind} cannot be built tiny: {error}")
        tokenizer.save_pretrained(tmp_path / "source")
        try:
            note(whole_way(tmp_path / "source", tmp_path, text))
        except ArmorError as error:
            said = str(error)
        else:
            return
    note(f"refused: {_reason(said, tmp_path / 'source', type(model).__name__)}")
    assert not re.search(r"\w(Error|Exception)\b", said)
    assert "again" not in said, "not damaged"


def _reason(message: str, source: Path, name: str) -> str:
    """The message as it is in the table: without names of this model."""
    for own in (f"{name}: ", f"{name} ", f"{source} ", f"{source}: "):
        message = message.removeprefix(own)
    return message.replace("|", "\\|").partition("; to prune the rest")[0]
