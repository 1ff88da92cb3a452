"""ModelFolder: opened once, handed on; and the model that is built of it without weights."""

from __future__ import annotations

import json
import pickle
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CodeGenConfig, CodeGenForCausalLM, LlamaConfig, LlamaForCausalLM

from armor.checkpoint import tensorfile, weights
from armor.errors import ArmorError
from armor.models.folder import ModelFolder
from armor.models.load import empty_model, load_model
from armor.models.streamed import StreamedModel

pytestmark = pytest.mark.transformers_compat
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_what_an_open_folder_tells(folder: Path) -> None:
    opened = ModelFolder.open(str(folder))
    assert opened.path == folder
    assert opened.files.config == json.loads((folder / "config.json").read_text())
    assert opened.config.intermediate_size == 44
    assert opened.tensors[NAME].shape == (44, 32)
    assert ModelFolder.open(opened) is opened


def test_another_process_need_not_read_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = ModelFolder.open(folder)
    sent: ModelFolder = pickle.loads(pickle.dumps(opened))
    monkeypatch.setattr(weights, "read_file", None)
    assert ModelFolder.open(sent).files == opened.files
    assert torch.equal(StreamedModel(sent).load(NAME), StreamedModel(opened).load(NAME))


def test_an_empty_model_has_buffers_and_no_weights(folder: Path) -> None:
    opened = ModelFolder.open(folder)
    empty, full = empty_model(opened), load_model(opened, torch.float32)
    assert all(parameter.is_meta for parameter in empty.parameters())
    found, expected = dict(empty.named_buffers()), dict(full.named_buffers())
    assert found.keys() == expected.keys() != set()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert opened.config.dtype == ModelFolder.open(folder).config.dtype


def test_buffers_beyond_all_memory_are_refused_and_never_made(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}
    CodeGenForCausalLM(CodeGenConfig(n_positions=32, **sizes)).save_pretrained(tmp_path)
    empty_model(ModelFolder.open(tmp_path))
    data: dict[str, Any] = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | {"n_positions": 1 << 29}))
    opened, before = ModelFolder.open(tmp_path), peak_bytes()
    with pytest.raises(ArmorError, match="numbers beside the weights: copy or download"):
        empty_model(opened)
    assert peak_bytes() - before < 300 << 20


def test_stored_integers_stay_integers(tmp_path: Path) -> None:
    ids = torch.arange(6).view(2, 3) + 2**53
    tensorfile.write_file(tmp_path / "ids.safetensors", {"ids": ids, "none": ids[:0]})
    for tensors in (
        tensorfile.map_file(tmp_path / "ids.safetensors"),
        {n: t.load() for n, t in tensorfile.read_file(tmp_path / "ids.safetensors").items()},
    ):
        assert tensors["ids"].dtype == torch.int64
        assert torch.equal(tensors["ids"], ids)
        assert tensors["none"].shape == (0, 3)


def test_buffers_of_integers_are_loaded_as_they_are(folder: Path) -> None:
    model = StreamedModel(ModelFolder.open(folder))
    path = folder.parent / "steps.safetensors"
    tensorfile.write_file(path, {"steps": torch.tensor([2**53 + 1])})
    model.stored["steps"] = tensorfile.read_file(path)["steps"]
    assert torch.equal(model.load("steps"), torch.tensor([2**53 + 1]))


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
