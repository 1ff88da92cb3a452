"""GPT-2's Conv1D: its weight is read as its transpose, and written so that it loads again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import armor
from armor.checkpoint.format import from_metadata
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.models.transposed import make_plain, transposed_shape

pytestmark = pytest.mark.transformers_compat


@pytest.fixture
def gpt2(byte_tokenizer: Any, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.15
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "source")
    byte_tokenizer.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(torch.arange(48).view(2, 24), use_cache=False).logits
    return found


def test_a_plain_linear_computes_the_same() -> None:
    model = torch.nn.Sequential(Conv1D(12, 8))
    x = torch.randn(3, 8)
    expected = model(x)
    assert transposed_shape(model[0]) == (12, 8)
    assert make_plain(model) == ["0"]
    assert transposed_shape(model[0]) is None
    torch.testing.assert_close(model(x), expected)


def test_pruned_loaded_and_exported(gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a line of text, and then another. " * 60)
    config = PruneConfig(
        calibration=str(tmp_path / "text"), samples=4, seq_len=32, iterations=2, block_size=4
    )
    result = armor.prune(gpt2, config, tmp_path / "out")
    assert len(result.records) == 8
    assert all(record.certificate for record in result.records.values())
    shapes = {plan.name: plan.shape for plan in result.plans}
    assert shapes["transformer.h.0.attn.c_attn"] == (96, 32)

    model = armor.load(tmp_path / "out")
    armor.export_dense(tmp_path / "out", tmp_path / "twin")
    twin = AutoModelForCausalLM.from_pretrained(tmp_path / "twin")
    torch.testing.assert_close(logits(model), logits(twin), rtol=1e-4, atol=1e-4)
    before, after = (load_file(f / "model.safetensors") for f in (gpt2, tmp_path / "twin"))
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in result.records}


def test_the_metadata_is_checked(gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a line of text, and then another. " * 60)
    config = PruneConfig(
        calibration=str(tmp_path / "text"), samples=2, seq_len=32, method="magnitude"
    )
    armor.prune(gpt2, config, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    data = json.loads(path.read_text())
    layer = data["quantization_config"]["layers"]["transformer.h.0.attn.c_proj"]
    assert layer["transposed"] is True
    layer["transposed"] = "yes"
    with pytest.raises(ArmorError, match="not true or false"):
        from_metadata(data["quantization_config"])
    del layer["transposed"]
    path.write_text(json.dumps(data))
    with pytest.raises(ArmorError, match="is a Conv1D"):
        armor.load(tmp_path / "out")
