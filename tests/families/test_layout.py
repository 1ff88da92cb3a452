"""Experts and fused projections as linears of their own, in the model and in the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import armor
from armor.checkpoint import ModelFiles, assemble, export_dense
from armor.checkpoint.weights import read_weights
from armor.errors import ArmorError
from armor.models.layout import lay_out
from armor.models.load import load_model
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.masks import nm_mask

pytestmark = pytest.mark.transformers_compat
IN_PARTS = pytest.mark.parametrize(
    "family",
    ["Phi-3", "GPT-NeoX", "Mixtral", "Qwen3-MoE", "OLMoE", "gpt-oss", "Llama 4 (text)"],
    indirect=True,
)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(48).view(2, 24) + 10, use_cache=False).logits.float()


def sparse(weight: torch.Tensor) -> PackedLayer:
    mask = nm_mask(weight.abs())
    return PackedLayer.from_factors(Factors(weight * mask, mask))


def packed(source: Path, out: Path) -> Any:
    """A checkpoint in which all but expert 1 is pruned by magnitude; returns its layout."""
    model = load_model(str(source))
    layout = lay_out(model, read_weights(source), lambda shapes: True)
    layers = {
        layout.name(path): sparse(linear.weight.data)
        for index in range(len(layout.structure.blocks))
        for path, linear in layout.structure.linears(index).items()
        if ".experts.1." not in path
    }
    assemble(ModelFiles.read(source), out, layers, {}, joined=layout.joined)
    return layout


def check_round_trip(source: Path, out: Path, tmp: Path) -> None:
    """The checkpoint runs, exports and saves, and the export has the tensors of the source."""
    export_dense(out, tmp / "twin")
    model, twin = armor.load(out), AutoModelForCausalLM.from_pretrained(tmp / "twin")
    torch.testing.assert_close(logits(model), logits(twin), rtol=1e-4, atol=1e-4)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp / "twin"))
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    model.save_pretrained(tmp / "again")
    assert read_weights(tmp / "again").keys() == read_weights(out).keys()
    assert torch.equal(logits(armor.load(tmp / "again")), logits(model))


@IN_PARTS
def test_the_layout_changes_nothing_and_finds_every_tensor(family: Any, tmp_path: Path) -> None:
    family.model().save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    before = logits(model)
    layout = lay_out(model, read_weights(tmp_path), lambda shapes: True)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    state = model.state_dict()
    assert layout.tensors.keys() == state.keys()
    assert all(torch.equal(stored.load(), state[name]) for name, stored in layout.tensors.items())


@IN_PARTS
def test_parts_are_stored_run_and_joined_again(family: Any, tmp_path: Path) -> None:
    family.model().save_pretrained(tmp_path / "source")
    packed(tmp_path / "source", tmp_path / "out")
    check_round_trip(tmp_path / "source", tmp_path / "out", tmp_path)


@pytest.mark.skipif(transformers.__version__ < "5", reason="experts are modules in transformers 4")
@pytest.mark.parametrize("family", ["Mixtral", "Qwen3-MoE"], indirect=True)
def test_experts_that_lie_in_3d_tensors_on_the_disk(family: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    model = family.model()
    model.save_pretrained(source)
    save_file(model.state_dict(), source / "model.safetensors", {"format": "pt"})
    layout = packed(source, tmp_path / "out")
    assert layout.joined["model.layers.0.mlp.experts.gate_up_proj"].shape[0] == 4
    check_round_trip(source, tmp_path / "out", tmp_path)


@pytest.mark.parametrize("family", ["Phi-3"], indirect=True)
def test_damaged_parts_are_refused(family: Any, tmp_path: Path) -> None:
    family.model().save_pretrained(tmp_path / "source")
    packed(tmp_path / "source", tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    sound = json.loads(path.read_text())
    name = "model.layers.0.mlp.gate_up_proj.weight"
    for joined, says in (
        ({name: {"shape": [128, 32], "parts": {"model.nothing": 128}}}, "missing or misshapen"),
        ({name: {"shape": [192, 32], "parts": {f"{name[:-7]}.0": 64}}}, "do not fill"),
        ({name: {"shape": [128, 32], "parts": {f"{name[:-7]}.0": True}}}, "lacks its shape"),
        ({"lm_head.weight": {"shape": [64, 32], "parts": {f"{name[:-7]}.0": 64}}}, "stored whole"),
        ([1], "not a table"),
    ):
        bad = sound["quantization_config"] | {"joined": joined}
        path.write_text(json.dumps(sound | {"quantization_config": bad}))
        with pytest.raises(ArmorError, match=says):
            armor.load(tmp_path / "out")
