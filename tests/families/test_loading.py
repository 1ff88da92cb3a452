"""Models whose classes initialise, read or subclass their linears: pruned, and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import armor
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.linear import ArmorLinear
from armor.models.load import load_model
from armor.run import prune as prune_module

pytestmark = [
    pytest.mark.transformers_compat,
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),  # GPT-BigCode's of 4.57
]
# There Mamba calls the layer whose weight it reads in 5.
reads = pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 reads no weight")

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
MAMBA = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "time_step_rank": 16,
    "initializer_range": 0.15,
}
#: Configs by the name of the model.
MODELS: dict[str, dict[str, Any]] = {
    "GPTBigCode": {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "Mamba": MAMBA,
    "Mamba2": {
        "vocab_size": 128,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 16,
    },
    "FalconMamba": MAMBA,
    "NanoChat": SIZES,
    "ModernBertDecoder": {**SIZES, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}


def tiny(name: str, sizes: dict[str, Any], folder: Path, tokenizer: Any) -> Any:
    """A random model, saved with a tokenizer; skips where transformers does not know it."""
    if not hasattr(transformers, f"{name}ForCausalLM"):
        pytest.skip(f"this transformers has no {name}")
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**sizes)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def settings(text: Path, **changes: Any) -> PruneConfig:
    values = {"calibration": str(text), "samples": 4, "seq_len": 32, "iterations": 2}
    return PruneConfig(**{**values, "block_size": 4, **changes})


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(48).view(2, 24) + 10, use_cache=False).logits.float()


@pytest.mark.parametrize("name", MODELS)
def test_pruned_and_loaded_again(name: str, tokenizer: Any, text: Path, tmp_path: Path) -> None:
    dense = tiny(name, MODELS[name], tmp_path / "source", tokenizer)
    result = armor.prune(tmp_path / "source", settings(text), tmp_path / "out")
    model = armor.load(tmp_path / "out")
    assert sum(isinstance(module, ArmorLinear) for module in model.modules()) == len(result.records)
    armor.export_dense(tmp_path / "out", tmp_path / "twin")
    exported = load_model(tmp_path / "twin")
    torch.testing.assert_close(logits(model), logits(exported), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(model), logits(dense), atol=1e-3)


@reads
@pytest.mark.parametrize("method", ["armor", "magnitude"])
def test_a_weight_that_is_read_stays_dense(
    tokenizer: Any, text: Path, tmp_path: Path, method: str
) -> None:
    tiny("Mamba", MAMBA, tmp_path / "source", tokenizer)
    result = armor.prune(tmp_path / "source", settings(text, method=method), tmp_path / "out")
    dense = {plan.name: plan.note for plan in result.plans if plan.dense}
    assert dense == dict.fromkeys(
        (f"backbone.layers.{index}.mixer.dt_proj" for index in range(2)),
        "the model reads its weight",
    )


@reads
def test_nothing_but_weights_that_are_read(tokenizer: Any, text: Path, tmp_path: Path) -> None:
    tiny("Mamba", MAMBA, tmp_path / "source", tokenizer)
    with pytest.raises(ArmorError, match="the model does not call any of what is chosen"):
        armor.prune(tmp_path / "source", settings(text, include=("*dt_proj",)), tmp_path / "out")


def test_what_could_not_be_loaded_is_refused_before_it_is_solved(
    tokenizer: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model class that wants of its linears what ArmorLinear does not have."""
    if transformers.__version__ < "5":
        pytest.skip("transformers 4 does not initialise modules whose weights are all stored")
    tiny("Llama", SIZES, tmp_path / "source", tokenizer)

    original = transformers.LlamaPreTrainedModel._init_weights

    def initialise(self: Any, module: Any) -> None:
        original(self, module)
        if hasattr(module, "o_proj"):
            module.o_proj.reset_parameters()

    def solve(*_: Any) -> None:
        raise AssertionError("solving has begun")

    monkeypatch.setattr(transformers.LlamaPreTrainedModel, "_init_weights", initialise)
    monkeypatch.setattr(prune_module._Run, "solve_missing", solve)
    with pytest.raises(
        ArmorError, match=r"LlamaForCausalLM: once pruned .*reset_parameters"
    ) as one:
        armor.prune(tmp_path / "source", settings(text), tmp_path / "out")
    assert "\n" not in str(one.value)
    assert "--exclude" in str(one.value)
    with pytest.raises(AssertionError, match="solving has begun"):
        armor.prune(tmp_path / "source", settings(text, exclude=("*o_proj",)), tmp_path / "out")
