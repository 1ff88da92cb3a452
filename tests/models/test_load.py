"""Loading: what works, and one clear line for everything that does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.models.folder import ModelFolder
from armor.models.load import load_model, load_tokenizer
from armor.models.streamed import StreamedModel
from armor.run.open import open_model

pytestmark = pytest.mark.transformers_compat


@pytest.fixture(scope="module")
def saved(make_llama: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    make_llama(**sizes, tie_word_embeddings=True).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def change(folder: Path, **tensors: Any) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    for name, value in tensors.items():
        full = next(key for key in state if name in key)
        state.pop(full)
        if value is not None:
            state[full] = value
    save_file(state, file, metadata={"format": "pt"})


def refused(folder: Path | str, match: str) -> None:
    with pytest.raises(ArmorError, match=match) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


def test_loads_quietly_in_the_asked_dtype(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_model(str(folder))
    assert (model.dtype, model.training) == (torch.bfloat16, False)
    assert load_model(str(folder), torch.float32).dtype == torch.float32
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["/no/such/folder", "no-such-model", "no/such-model", "a/b/c", ""])
def test_nothing_there(name: str) -> None:
    if name:
        refused(name, "no such folder")
    with pytest.raises(ArmorError):
        load_tokenizer(name)


def test_a_file_is_not_a_folder(folder: Path) -> None:
    refused(folder / "config.json", "is a file; give the model's folder")


def test_a_folder_without_config(tmp_path: Path) -> None:
    refused(tmp_path, "not a model folder: it holds no config.json")


@pytest.mark.parametrize("config", ["{broken", "{}", '{"model_type": "unheard-of"}', "[]"])
def test_a_bad_config(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    refused(folder, r"cannot read .*config|config\.json is not a JSON object")


def test_code_in_the_checkpoint_is_not_run(folder: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('executed')")
    refused(folder, "needs code from the model's folder, which armor does not run")


def test_encoders_and_seq2seq_are_refused(tmp_path: Path) -> None:
    tiny = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    bert = BertForMaskedLM(BertConfig(hidden_size=16, intermediate_size=16, **tiny))
    bert.save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert", r"not a causal language model: architectures \['BertForMaskedLM'\]")
    t5 = T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=32)
    )
    t5.save_pretrained(tmp_path / "t5")
    refused(tmp_path / "t5", "not a causal language model: architectures.*T5ForConditional")


def test_no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "only pickled weights, which are never read")


def test_damaged_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a tensor file")
    refused(folder, "cannot read .*model.safetensors")


def test_a_missing_tensor(folder: Path) -> None:
    change(folder, q_proj=None, up_proj=None)
    refused(folder, "lacks 2 of the model's tensors, the first model.layers.0.mlp.up_proj.weight")


def add(folder: Path, **tensors: torch.Tensor) -> None:
    """Store tensors beside those of ``model.layers.0.self_attn``; two underscores are a dot."""
    file = folder / "model.safetensors"
    named = {
        f"model.layers.0.self_attn.{name.replace('__', '.')}": value
        for name, value in tensors.items()
    }
    save_file(load_file(file) | named, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["q_proj__scale", "v_proj__zeros", "o_proj__lut"])
def test_parts_of_weights_that_the_model_would_ignore(folder: Path, name: str) -> None:
    add(folder, **{name: torch.ones(1)})
    refused(
        folder, f"holds .*{name.split('__')[1]}, a part of a weight that the model would ignore"
    )
    with pytest.raises(ArmorError, match="a part of a weight that the model would ignore"):
        open_model(ModelFolder.open(folder), PruneConfig())


def test_other_tensors_beside_the_weights_are_ignored(folder: Path) -> None:
    add(folder, rotary_emb__inv_freq=torch.ones(4), q_proj__bias=torch.zeros(16))
    load_model(str(folder))
    open_model(ModelFolder.open(folder), PruneConfig())


def test_a_tensor_of_the_wrong_shape(folder: Path) -> None:
    change(folder, k_proj=torch.zeros(3, 3))
    refused(folder, "wrong shape for 1 of .* the first model.layers.0.self_attn.k_proj.weight")


def test_a_folder_without_tokenizer(folder: Path) -> None:
    with pytest.raises(ArmorError, match="holds no tokenizer"):
        load_tokenizer(str(folder))


def test_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ArmorError, match="cannot load the tokenizer of"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("name", ["model-overlay", "a-overlay", None])
def test_what_the_index_names_is_loaded_wherever_it_sorts(folder: Path, name: str | None) -> None:
    """transformers alone would read the copy whose file sorts last, or model.safetensors."""
    file = folder / "model.safetensors"
    state = load_file(file)
    changed = "model.layers.0.mlp.up_proj.weight"
    overlay = f"{name or 'model-overlay'}.safetensors"
    base = "model.safetensors" if name is None else "model-00001-of-00001.safetensors"
    file.rename(folder / base)
    doubled = {changed: state[changed] * 2}
    if name is None:  # beside a whole model that the index does not name
        doubled = {key: value * 2 for key, value in state.items()}
        index = dict.fromkeys(state, overlay)
    else:
        index = dict.fromkeys(state, base) | {changed: overlay}
    save_file(doubled, folder / overlay, metadata={"format": "pt"})
    data = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(data))
    loaded = load_model(str(folder))
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.get_parameter(changed), state[changed] * 2)
    assert torch.equal(StreamedModel(ModelFolder.open(folder)).load(changed), state[changed] * 2.0)
    head, embeddings = loaded.lm_head.weight, loaded.model.embed_tokens.weight
    assert head is embeddings
    assert torch.equal(embeddings, doubled.get("model.embed_tokens.weight", embeddings))
