"""Plain weights go back where they were: into fused tensors, and transposed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import armor
from armor.baselines.quantised import rounded
from armor.config import PruneConfig

from .conftest import FAMILIES


def model(kind: str) -> Any:
    if kind != "GPT-2":
        return FAMILIES[kind].model()
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=None, eos_token_id=None, **sizes))


@pytest.mark.parametrize("kind", ["Phi-3", "Mixtral", "GPT-2", "gpt-oss", "Llama 4 (text)"])
def test_where_they_were(kind: str, tokenizer: Any, text: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    model(kind).save_pretrained(source)
    tokenizer.save_pretrained(source)
    settings = {"calibration": str(text), "samples": 8, "seq_len": 32, "block_size": 4}
    for method in ("int8", "sparsegpt-lowrank"):
        config = PruneConfig(method=method, **settings)  # type: ignore[arg-type]
        result = armor.prune(source, config, tmp_path / method)
        assert all(record.compact_bytes for record in result.records.values())
    before, rounding, low_rank = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (source, tmp_path / "int8", tmp_path / "sparsegpt-lowrank")
    )
    changed = [name for name in before if not torch.equal(before[name], rounding[name])]
    assert changed == [name for name in before if not torch.equal(before[name], low_rank[name])]
    assert len(changed) > 5
    for name in changed:
        turned = kind == "GPT-2" or (kind in ("gpt-oss", "Llama 4 (text)") and "experts" in name)
        dense, found = (w[name].mT if turned else w[name] for w in (before, rounding))
        for one, other in zip(_matrices(dense), _matrices(found), strict=True):
            assert torch.equal(rounded(one, 8), other)
        torch.testing.assert_close(low_rank[name], before[name], atol=1.5, rtol=0.1)


def _matrices(weight: torch.Tensor) -> list[torch.Tensor]:
    """Those of each expert."""
    return list(weight) if weight.ndim == 3 else [weight]
