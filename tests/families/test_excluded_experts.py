"""Experts in tensors for all of them, some or all of which stay dense: kept as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import armor
from armor.checkpoint.weights import read_weights
from armor.config import PruneConfig
from armor.linear import ArmorLinear
from armor.models.load import load_model

pytestmark = pytest.mark.transformers_compat
STACKED = pytest.mark.parametrize("family", ["gpt-oss", "Llama 4 (text)"], indirect=True)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(48).view(2, 24) + 10, use_cache=False).logits.float()


def raw(folder: Path) -> dict[str, bytes]:
    return {name: b"".join(stored.chunks()) for name, stored in read_weights(folder).items()}


@STACKED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "exclude",
    [("*experts*",), ("*layers.0.*",), ("*experts.*.down_proj",), ("*experts.[12].*",)],
    ids=lambda globs: globs[0],
)
def test_some_stay_dense(
    family: Any,
    exclude: tuple[str, ...],
    dtype: torch.dtype,
    tokenizer: Any,
    text: Path,
    tmp_path: Path,
) -> None:
    source, out, twin = (tmp_path / name for name in ("source", "out", "twin"))
    family.model(dtype).save_pretrained(source)
    tokenizer.save_pretrained(source)
    config = PruneConfig(
        calibration=str(text), samples=4, seq_len=32, method="wanda", exclude=exclude
    )
    result = armor.prune(source, config, out)
    model = armor.load(out, dtype=torch.float32)  # in bfloat16 one token may go elsewhere
    assert sum(isinstance(module, ArmorLinear) for module in model.modules()) == len(result.records)
    armor.export_dense(out, twin)
    exported = load_model(twin, dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(exported), rtol=1e-4, atol=1e-4)

    before, packed, after = map(raw, (source, out, twin))
    assert before.keys() == after.keys()
    joined = json.loads((out / "config.json").read_text())["quantization_config"].get("joined", {})
    assert bool(joined) == (exclude != ("*experts*",))
    changed = {f"{name}.weight" for name in result.records if f"{name}.weight" in before}
    for tensor, about in joined.items():
        if result.records.keys() & about["parts"].keys() and not about.get("bias"):
            changed.add(tensor)
    assert {name for name in before if before[name] != after[name]} == changed
    for name in before.keys() - changed - joined.keys():
        assert packed[name] == before[name]
