"""Every family the whole way: pruned, saved, loaded, run, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import armor
from armor.checkpoint.reader import Checkpoint
from armor.config import PruneConfig
from armor.linear import ArmorLinear

pytestmark = pytest.mark.transformers_compat


def settings(text: Path, **changes: Any) -> PruneConfig:
    values = {"calibration": str(text), "samples": 4, "seq_len": 32, "iterations": 2}
    return PruneConfig(**{**values, "block_size": 4, **changes})


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(48).view(2, 24) + 10, use_cache=False).logits.float()


def generated(model: Any) -> torch.Tensor:
    start = torch.arange(10, 20)[None]
    mask = torch.ones_like(start)
    return model.generate(start, attention_mask=mask, max_new_tokens=12, do_sample=False)


def test_the_whole_way(family: Any, tokenizer: Any, text: Path, tmp_path: Path) -> None:
    source, out, twin = (tmp_path / folder for folder in ("source", "out", "dense"))
    dense = family.model()
    dense.save_pretrained(source)
    tokenizer.save_pretrained(source)

    result = armor.prune(source, settings(text), out)
    assert len(result.records) == family.linears
    assert all(record.certificate for record in result.records.values())

    model = armor.load(out)
    armor.export_dense(out, twin)
    exported = AutoModelForCausalLM.from_pretrained(twin)
    torch.testing.assert_close(logits(model), logits(exported), rtol=1e-4, atol=1e-4)
    assert torch.equal(generated(model), generated(exported))
    assert not torch.allclose(logits(model), logits(dense), atol=1e-2)
    assert sum(isinstance(module, ArmorLinear) for module in model.modules()) == family.linears

    before, after = (load_file(folder / "model.safetensors") for folder in (source, twin))
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    wholes = {
        part: tensor
        for tensor, joined in Checkpoint.open(out).joined.items()
        for part in joined.parts
        if not joined.bias
    }
    assert changed == {wholes.get(name, f"{name}.weight") for name in result.records}
    tied = dense.config.tie_word_embeddings
    for network in (model, exported):
        shared = network.get_output_embeddings().weight is network.get_input_embeddings().weight
        assert shared == tied


def test_the_table_in_the_documentation_is_current(
    families: dict[str, Any], table: list[list[str]]
) -> None:
    """Written by ``pytest tests/families --families-table docs/models.md`` on both versions."""
    assert [row[:3] for row in table] == [
        [name, family.note, str(family.linears)] for name, family in families.items()
    ]
    for _, _, _, four, five in table:
        assert four.startswith("4.")
        assert five.startswith("5.")
        assert "whole way" in four
        assert "whole way" in five
        assert "FAILED" not in four + five
