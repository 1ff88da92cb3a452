"""armor prune with other patterns than 2:4, alone and mixed, the whole way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import armor
from armor.config import PruneConfig


@pytest.mark.parametrize("method", ["armor", "wanda"])
@pytest.mark.parametrize("pattern", ["1:4", "4:8", "2:8", "50%", "4:8 and others"])
def test_pruned_stored_loaded_and_multiplied_out(
    tiny_model: Path, text: Path, tmp_path: Path, pattern: str, method: str
) -> None:
    common, _, mixed = pattern.partition(" ")
    overrides = {"*q_proj": {"pattern": "75%"}, "*.1.mlp.*": {"pattern": "2:4"}} if mixed else {}
    config = PruneConfig(
        calibration=str(text),
        samples=8,
        seq_len=32,
        iterations=2,
        block_size=8,
        method=method,
        pattern=common,
        overrides=overrides,
    )
    armor.prune(tiny_model, config, tmp_path / "out")
    found = armor.inspect(tmp_path / "out")
    named = {layer["pattern"] for layer in found["layers"].values()}
    assert named == ({"4:8", "75%", "2:4"} if mixed else {common})
    armor.export_dense(tmp_path / "out", tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        ours, theirs = (model(ids).logits for model in (armor.load(tmp_path / "out"), dense))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
