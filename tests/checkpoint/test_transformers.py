"""Checkpoints through transformers, 4.57 and 5.x: load, run, generate, save, load again."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

import armor
from armor.checkpoint import export_dense
from armor.errors import ArmorError
from armor.hf.config import ArmorConfig
from armor.linear import ArmorLinear

pytestmark = pytest.mark.transformers_compat
Q_PROJ = "model.layers.0.self_attn.q_proj"
NEEDS_ACCELERATE = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="transformers needs accelerate for this"
)


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Any:
    """Fails the test if transformers logs a warning (newly initialized weights and the like)."""
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        yield
    transformers_logging.disable_propagation()
    assert [record.getMessage() for record in caplog.records] == []


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(make: Callable[..., Any], tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    shutil.copytree(make().folder, tmp_path / "packed")
    return tmp_path / "packed"


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids, use_cache=False).logits.float()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("block", "tie"), [(16, True), (8, False), (None, True)])
def test_same_logits_and_text_as_the_dense_twin(
    make: Callable[..., Any], tmp_path: Path, ids: torch.Tensor, block: int | None, tie: bool
) -> None:
    made = make(block=block, tie=tie, bias=True)
    export_dense(made.folder, tmp_path / "twin")
    packed = AutoModelForCausalLM.from_pretrained(made.folder)
    twin = AutoModelForCausalLM.from_pretrained(tmp_path / "twin")
    layers = {n for n, module in packed.named_modules() if isinstance(module, ArmorLinear)}
    assert layers == set(made.layers)
    torch.testing.assert_close(logits(packed, ids), logits(twin, ids), rtol=0, atol=1e-4)
    settings = {"max_new_tokens": 100, "do_sample": False}
    text = packed.generate(ids[:1, :5], attention_mask=torch.ones(1, 5), **settings)
    assert text.shape == (1, 105)
    assert torch.equal(
        text, twin.generate(ids[:1, :5], attention_mask=torch.ones(1, 5), **settings)
    )
    shared = packed.lm_head.weight.data_ptr() == packed.model.embed_tokens.weight.data_ptr()
    assert shared == tie


def test_generation_may_compile_the_decoding_step(make: Callable[..., Any]) -> None:
    """transformers asks the quantizer of a loaded model; another answer makes a GPU slower."""
    model = AutoModelForCausalLM.from_pretrained(make().folder)
    assert model.hf_quantizer.is_compileable


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (torch.float32, "auto"),
        (torch.bfloat16, "auto"),
        (torch.float16, "auto"),
        (torch.float32, torch.float16),
        (torch.float16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_dtypes(make: Callable[..., Any], stored: torch.dtype, asked: Any) -> None:
    made = make(stored)
    model = AutoModelForCausalLM.from_pretrained(made.folder, dtype=asked)
    expected = stored if asked == "auto" else asked
    layer = model.get_submodule(Q_PROJ)
    assert model.dtype == layer.core_values.dtype == layer.left.dtype == expected
    assert torch.equal(layer.core_indices, made.layers[Q_PROJ].core_indices)
    assert torch.equal(layer.core_values, made.layers[Q_PROJ].core_values.to(expected))
    assert logits(model, torch.arange(9).unsqueeze(0)).isfinite().all()


@pytest.mark.usefixtures("quiet")
@NEEDS_ACCELERATE
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_maps(make: Callable[..., Any], ids: torch.Tensor, device_map: Any) -> None:
    made = make()
    model = AutoModelForCausalLM.from_pretrained(made.folder, device_map=device_map)
    plain = AutoModelForCausalLM.from_pretrained(made.folder)
    assert torch.equal(logits(model, ids.to(model.device)).cpu(), logits(plain, ids))


@NEEDS_ACCELERATE
def test_offload_to_disk(make: Callable[..., Any], ids: torch.Tensor, tmp_path: Path) -> None:
    made = make()
    device_map = {"model.layers.1": "disk", "model.layers.0": "cpu", "lm_head": "cpu"}
    device_map |= {f"model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
    model = AutoModelForCausalLM.from_pretrained(
        made.folder, device_map=device_map, offload_folder=tmp_path / "offload"
    )
    plain = AutoModelForCausalLM.from_pretrained(made.folder)
    assert torch.equal(logits(model, ids), logits(plain, ids))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("shard", ["50GB", "60KB"])
def test_save_and_reload_is_lossless(
    make: Callable[..., Any], ids: torch.Tensor, tmp_path: Path, shard: str
) -> None:
    made = make(torch.bfloat16, bias=True)
    model = armor.load(made.folder, dtype="auto")
    model.save_pretrained(tmp_path / "again", max_shard_size=shard)
    again = armor.load(tmp_path / "again", dtype="auto")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(model, ids), logits(again, ids))
    old, new = (
        json.loads((where / "config.json").read_text())["quantization_config"]
        for where in (made.folder, tmp_path / "again")
    )
    assert new == old
    assert armor.inspect(tmp_path / "again")["totals"]["layers"] == 14


@pytest.mark.usefixtures("quiet")
def test_casting_the_model(make: Callable[..., Any], ids: torch.Tensor) -> None:
    made = make(torch.bfloat16)
    model = armor.load(made.folder, dtype="auto")
    indices = made.layers[Q_PROJ].core_indices
    for cast in (model.float, model.half, lambda: model.to(torch.float32)):
        cast()
        assert model.get_submodule(Q_PROJ).core_indices.dtype == torch.uint8
        assert torch.equal(model.get_submodule(Q_PROJ).core_indices, indices)
        assert logits(model, ids).isfinite().all()


def test_memory_after_load_is_the_packed_size(make: Callable[..., Any]) -> None:
    made = make(torch.bfloat16, block=4)
    model = armor.load(made.folder, dtype="auto")
    for name, layer in made.layers.items():
        module = model.get_submodule(name)
        held = sum(parameter.nbytes for parameter in module.parameters())
        assert held == sum(tensor.nbytes for tensor in layer.tensors().values())
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not list(module.buffers())


@pytest.mark.usefixtures("quiet")
def test_headless_model(make: Callable[..., Any], ids: torch.Tensor) -> None:
    made = make()
    model = AutoModel.from_pretrained(made.folder)
    whole = AutoModelForCausalLM.from_pretrained(made.folder)
    with torch.no_grad():
        assert torch.equal(model(ids)[0], whole.model(ids)[0])


def test_pruning_on_the_fly_is_refused(make: Callable[..., Any]) -> None:
    made = make()
    metadata = json.loads((made.folder / "config.json").read_text())["quantization_config"]
    with pytest.raises(ArmorError, match="armor prune"):
        AutoModelForCausalLM.from_pretrained(
            made.source, quantization_config=ArmorConfig(**metadata)
        )


def test_a_newer_format_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    for load in (AutoModelForCausalLM.from_pretrained, armor.load):
        with pytest.raises(ArmorError, match="format 7 was written by a newer armor; upgrade"):
            load(folder)


def test_damaged_tensors_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    indices = tensors[f"{Q_PROJ}.core_indices"].clone()
    indices[0, 0] = 0
    save_file(tensors | {f"{Q_PROJ}.core_indices": indices}, path, {"format": "pt"})
    with pytest.raises(ArmorError, match=r"q_proj.* do not name 2 of every 4"):
        AutoModelForCausalLM.from_pretrained(folder)
    del tensors[f"{Q_PROJ}.left"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ArmorError, match="left is missing"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_missing_tensors_are_refused_wherever_the_weights_lie(folder: Path) -> None:
    """From a subfolder the headers cannot be compared beforehand on transformers 4."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{Q_PROJ}.left"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArmorError, match="left is missing"):
        AutoModelForCausalLM.from_pretrained(folder.parent, subfolder=folder.name)


def test_metadata_of_another_model(folder: Path, make: Callable[..., Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArmorError, match=r"no layer model\.layers\.1\."):
        AutoModelForCausalLM.from_pretrained(folder)
    config |= {"num_hidden_layers": 2, "intermediate_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArmorError, match="gate_proj is a Linear"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_load_wants_an_armor_folder(make: Callable[..., Any]) -> None:
    with pytest.raises(ArmorError, match="not an armor checkpoint"):
        armor.load(make().source)
