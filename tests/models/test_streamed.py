"""A model on the disk, block by block: the same modules and numbers as the model in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from armor.calibrate.state import State
from armor.calibrate.stream import batches, observe, open_stream
from armor.errors import ArmorError
from armor.models.digest import digest_weights
from armor.models.folder import ModelFolder
from armor.models.streamed import StreamedModel

pytestmark = pytest.mark.transformers_compat

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(params=["llama", "tied", "mixtral"])
def saved(
    request: pytest.FixtureRequest, make_llama: Callable[..., Any], tmp_path: Path
) -> tuple[Any, Path]:
    torch.manual_seed(0)
    if request.param == "mixtral":
        model: Any = MixtralForCausalLM(MixtralConfig(num_local_experts=4, **SIZES))
    else:
        model = make_llama(tie_word_embeddings=request.param == "tied", **SIZES)
    model.eval().save_pretrained(tmp_path / "model", max_shard_size="20kB")
    return model, tmp_path / "model"


@torch.no_grad()
def test_the_blocks_give_what_the_model_gives(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    streamed = StreamedModel(ModelFolder.open(folder))
    tokens = torch.arange(60).view(2, 30)
    with streamed.first_block_loaded():
        ((hidden, calls),) = open_stream(streamed.model, streamed.structure, batches(tokens))
    assert all(parameter.is_meta for parameter in streamed.model.parameters())
    for index, call in enumerate(calls):
        state, stages = observe(streamed.block(index), call, State(hidden))
        hidden = state.hidden
    assert stages[0][0] == [f"self_attn.{name}_proj" for name in "qkv"]
    expected = model.model(tokens).last_hidden_state
    torch.testing.assert_close(model.model.norm(hidden), expected, rtol=1e-5, atol=1e-5)


def test_missing_and_misshapen_tensors(saved: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = saved
    for file in folder.glob("*.safetensors"):
        state = load_file(file)
        if name := next((key for key in state if "q_proj" in key), None):
            state[name] = torch.zeros(3, 3)
            save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ArmorError, match=r"wrong shape for .*q_proj.weight"):
        StreamedModel(ModelFolder.open(folder))


def test_bfloat16_is_loaded_as_float32(make_llama: Callable[..., Any], tmp_path: Path) -> None:
    model = make_llama().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    streamed = StreamedModel(ModelFolder.open(tmp_path))
    name = "model.layers.1.mlp.up_proj.weight"
    assert streamed.dtype(name) == torch.bfloat16
    assert torch.equal(streamed.load(name), model.get_parameter(name).float())
    assert {p.dtype for p in streamed.block(1).parameters()} == {torch.float32}


def test_digests_change_with_the_weights(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    tensors = ModelFolder.open(folder).tensors
    before = digest_weights(tensors)
    name = next(name for name in tensors if "q_proj" in name)
    state = load_file(tensors[name].path)
    state[name][0, 0] += 1
    save_file(state, tensors[name].path, metadata={"format": "pt"})
    after = digest_weights(ModelFolder.open(folder).tensors)
    assert [key for key in before if before[key] != after[key]] == [name]
    state[name][0, 0] = float("nan")
    save_file(state, tensors[name].path, metadata={"format": "pt"})
    with pytest.raises(ArmorError, match=f"{name} holds NaN"):
        digest_weights(ModelFolder.open(folder).tensors)
